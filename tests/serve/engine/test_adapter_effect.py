"""The comparison of an adapter with its base at start: the engine must not answer as if the adapter were absent."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from pedcxr_serve.engine import health
from pedcxr_serve.errors import AdapterError, EngineNotReady
from tests.support.servers.fake_engine import Answer, FakeEngine

BASE = {"FIND": -0.1, "The": -3.0, "IMP": -4.5}


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[FakeEngine]:
    with FakeEngine(uds=tmp_path / "engine.sock") as engine:
        yield engine


def distribution(logprobs: dict[str, float]) -> Answer:
    top = [{"token": token, "logprob": value} for token, value in logprobs.items()]
    content = [{"token": top[0]["token"], "logprob": top[0]["logprob"], "top_logprobs": top}]
    body = {"choices": [{"message": {"content": "F"}, "logprobs": {"content": content}}]}
    return Answer(raw=json.dumps(body).encode(), content_type="application/json")


def check(engine: FakeEngine, *answers: Answer) -> None:
    engine.reply(*answers)

    async def ask() -> None:
        assert engine.uds is not None
        async with aiohttp.ClientSession("http://engine", connector=aiohttp.UnixConnector(str(engine.uds))) as session:
            await health.check_adapter(session, "north", "base")

    asyncio.run(ask())


@pytest.mark.parametrize(
    "changed",
    [{**BASE, "FIND": -0.4}, {**BASE, "IMP": -4.6}, {"Der": -0.1, "The": -3.0, "IMP": -4.5}],
    ids=["first", "last", "another token"],
)
def test_another_distribution_is_an_effect(engine: FakeEngine, changed: dict[str, float]) -> None:
    check(engine, distribution(changed), distribution(BASE))
    adapter, base = (request.json for request in engine.chats)
    assert (adapter["model"], base["model"]) == ("north", "base")
    assert adapter["messages"] == base["messages"]
    assert (adapter["max_tokens"], adapter["temperature"], adapter["top_logprobs"]) == (1, 0, 5)
    assert adapter["cache_salt"] != base["cache_salt"]  # a cached prefix changes the numbers


@pytest.mark.parametrize("rounding", [0.0, 1e-6])
def test_the_distribution_of_the_base_is_refused(engine: FakeEngine, rounding: float) -> None:
    same = {token: value + rounding for token, value in BASE.items()}
    with pytest.raises(AdapterError, match=r"adapters\.north: has no effect.* with base") as raised:
        check(engine, distribution(same), distribution(BASE))
    assert raised.value.exit_code == 3


@pytest.mark.parametrize("answer", [b"{}", b'{"choices": [{"logprobs": null}]}', None])
def test_an_engine_without_log_probabilities_is_not_ready(engine: FakeEngine, answer: bytes | None) -> None:
    with pytest.raises(EngineNotReady, match="without log probabilities"):
        check(engine, Answer(status=404) if answer is None else Answer(raw=answer, content_type="application/json"))
