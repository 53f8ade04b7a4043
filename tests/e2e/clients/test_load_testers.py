"""The load testers as the documentation runs them, with unique films and a key, at a gateway with a fake engine.

`make test` skips guidellm, whose packages take 5 GB, unless `make loadtest` has installed it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from tests.drills.load_testers import REQUESTS, TESTERS, LoadTest, commands, load_test

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def test(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoadTest]:
    with load_test(tmp_path_factory.mktemp("load")) as test:
        yield test


@pytest.mark.parametrize("words", TESTERS)
def test_a_load_tester_sends_different_films(test: LoadTest, words: str) -> None:
    program = next(word for word in commands(words).split() if "=" not in word)
    if shutil.which(program, path=test.environment["PATH"]) is None:
        pytest.skip(f"{program} is not installed; `make loadtest` installs it")
    assert test.successes(words) == REQUESTS
    films = {request.json["messages"][-1]["content"][0]["image_url"]["url"] for request in test.gateway.engine.chats}
    assert len(films) == REQUESTS
    exact_lengths = {request.json.get("ignore_eos", False) for request in test.gateway.engine.chats}
    assert exact_lengths == {words == "random-mm"}
