"""The load testers as the documentation runs them, with unique films and a key, at a gateway with a fake engine.

`make loadtest` also runs guidellm, whose packages take 5 GB.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from tests.drills.load_testers import REQUESTS, LoadTest, load_test

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def test(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoadTest]:
    with load_test(tmp_path_factory.mktemp("load")) as test:
        yield test


@pytest.mark.parametrize("words", ["aiperf profile", "locust -f"])
def test_a_load_tester_sends_different_films(test: LoadTest, words: str) -> None:
    program = words.split()[0]
    if shutil.which(program, path=test.environment["PATH"]) is None:
        pytest.skip(f"{program} is not installed in .venv/loadtest; `make loadtest` installs it")
    assert test.successes(words) == REQUESTS
    films = {request.json["messages"][-1]["content"][0]["image_url"]["url"] for request in test.gateway.engine.chats}
    assert len(films) == REQUESTS


def test_vllm_bench_with_random_films(test: LoadTest) -> None:
    assert test.successes("random-mm") == REQUESTS
    assert {request.json["ignore_eos"] for request in test.gateway.engine.chats} == {True}
