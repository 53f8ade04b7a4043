"""The simulated replica predicts the throughput of the real server at a load that it was not fitted to."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from pedcxr_client.films.age import Age
from pedcxr_client.request import prompts
from pedcxr_serve.config.settings import DEMO_NAME
from pedcxr_serve.planner import measurement, simulate
from tests.benchmarks.throughput.unique_films import films
from tests.benchmarks.throughput.windows import Span, steady_rate
from tests.drills.fleet.simulation import fitted
from tests.support.servers.local_server import LocalServer

pytestmark = pytest.mark.slow

LOADS, ROUNDS, WAVES = (8, 16, 32), 3, 4
_WORD = re.compile(rb'"content": ?"[^"]')
_USAGE = re.compile(rb'"usage":\{"prompt_tokens":(\d+),"total_tokens":\d+,"completion_tokens":(\d+)')


@dataclass(frozen=True)
class Report:
    """Times of a report in seconds, and its tokens."""

    span: Span
    first: float
    prompt_tokens: int
    tokens: int


def body(film: bytes) -> bytes:
    url = "data:image/png;base64," + base64.b64encode(film).decode()
    messages = prompts.messages(prompts.card(Age(6, "Y"), "F"), url)
    options = {"stream": True, "stream_options": {"include_usage": True}}
    return json.dumps({"model": DEMO_NAME, "messages": messages, "max_tokens": 500, **options}).encode()


async def write(session: aiohttp.ClientSession, source: Iterator[bytes]) -> Report:
    data, first, start = b"", 0.0, time.perf_counter()
    headers = {"Content-Type": "application/json"}
    async with session.post("/v1/chat/completions", data=body(next(source)), headers=headers) as answer:
        async for chunk in answer.content.iter_any():
            data += chunk
            if not first and _WORD.search(data):
                first = time.perf_counter()
    end = time.perf_counter()
    assert answer.status == 200 and first, data[:300]
    prompt_tokens, tokens = map(int, _USAGE.findall(data)[-1])
    return Report(Span(start, end), first, prompt_tokens, tokens)


async def window(session: aiohttp.ClientSession, source: Iterator[bytes], in_flight: int) -> list[Report]:
    reports: list[Report] = []

    async def lane() -> None:
        for _ in range(WAVES):
            reports.append(await write(session, source))

    await asyncio.gather(*(lane() for _ in range(in_flight)))
    return reports


async def measured(root: str, source: Iterator[bytes]) -> dict[int, dict[str, object]]:
    """Return an object for each load, as `vllm bench serve` writes it; each value is the median of the rounds."""
    connector = aiohttp.TCPConnector(limit=0)
    windows: dict[int, list[list[Report]]] = {in_flight: [] for in_flight in LOADS}
    async with aiohttp.ClientSession(root, connector=connector) as session:
        await window(session, source, max(LOADS))  # the first requests at a batch size are slower
        for number in range(ROUNDS):  # in turns, so that a change of the machine reaches all loads
            for in_flight in LOADS if number % 2 else reversed(LOADS):
                windows[in_flight].append(await window(session, source, in_flight))
    return {in_flight: _stage(in_flight, parts) for in_flight, parts in windows.items()}


def _stage(in_flight: int, parts: list[list[Report]]) -> dict[str, object]:
    reports = [report for part in parts for report in part]
    ttft = [statistics.fmean(one.first - one.span.start for one in part) for part in parts]
    tpot = [statistics.fmean((one.span.end - one.first) / (one.tokens - 1) for one in part) for part in parts]
    return {
        "max_concurrency": in_flight,
        "completed": len(reports),
        "request_throughput": statistics.median(
            steady_rate([one.span for one in part], in_flight) for part in parts
        ),
        "mean_ttft_ms": 1e3 * statistics.median(ttft),
        "mean_tpot_ms": 1e3 * statistics.median(tpot),
        "total_input_tokens": sum(one.prompt_tokens for one in reports),
        "total_output_tokens": sum(one.tokens for one in reports),
        "output_lens": [one.tokens for one in reports],
    }  # fmt: skip


def test_prediction_between_two_measured_loads(running: LocalServer, tmp_path: Path) -> None:
    stages = asyncio.run(measured(running.root, films()))
    file = tmp_path / "bench.json"
    file.write_text(json.dumps({"stages": [stages[8], stages[32]]}))
    replica = fitted(measurement.read([file]))
    outcome = simulate.simulate(replica, in_flight=16, reports=2000)
    print({n: {k: v for k, v in one.items() if k != "output_lens"} for n, one in stages.items()}, replica, outcome)
    assert outcome.rate == pytest.approx(stages[16]["request_throughput"], rel=0.2)
