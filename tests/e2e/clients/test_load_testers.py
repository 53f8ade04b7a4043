"""`vllm bench serve` as the documentation runs it. `make loadtest` runs the other testers, whose packages are large."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.drills.load_testers import REQUESTS, LoadTest, load_test

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def test(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoadTest]:
    with load_test(tmp_path_factory.mktemp("load")) as test:
        yield test


def test_vllm_bench_with_random_films(test: LoadTest) -> None:
    assert test.successes("random-mm") == REQUESTS
    assert {request.json["ignore_eos"] for request in test.gateway.engine.chats} == {True}
