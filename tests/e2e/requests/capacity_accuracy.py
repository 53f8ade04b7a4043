"""The simulated replica predicts rate and E2E of the real server within 15 % at a load that it was not fitted to.

The median of TTFT is printed without a limit. It is a tenth of E2E, and the fit uses its mean: in a quiet run it was
12 % off, with the rate 3 % and E2E less than 1 % off. A fit to the simulation's own figures has 20 % (`test_simulate`).
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from pedcxr_client.bench.figures import steady_window
from pedcxr_client.films.age import Age
from pedcxr_client.request import prompts
from pedcxr_serve.config.settings import DEMO_NAME
from pedcxr_serve.planner import measurement, simulate
from tests.benchmarks.throughput.unique_films import films
from tests.benchmarks.throughput.windows import Span
from tests.drills.fleet.simulation import fitted
from tests.support.servers.local_server import LocalServer

pytestmark = pytest.mark.slow

LOADS, PREDICTED, ROUNDS, WAVES, MOST_ERROR = (8, 16, 32), 16, 3, 4, 0.15
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


async def measured(root: str, source: Iterator[bytes]) -> dict[int, list[list[Report]]]:
    """Return the reports of each round, by load."""
    connector = aiohttp.TCPConnector(limit=0)
    windows: dict[int, list[list[Report]]] = {in_flight: [] for in_flight in LOADS}
    async with aiohttp.ClientSession(root, connector=connector) as session:
        await window(session, source, max(LOADS))  # the first requests at a batch size are slower
        for number in range(ROUNDS):  # in turns, so that a change of the machine reaches all loads
            for in_flight in LOADS if number % 2 else reversed(LOADS):
                windows[in_flight].append(await window(session, source, in_flight))
    return windows


def figures(reports: Sequence[Report], in_flight: int) -> dict[str, float]:
    """Return rate and latencies of a round, without its ramp-up and drain, which the simulation does not contain."""
    begin, last = steady_window([(one.span.start, one.span.end) for one in reports], in_flight)
    steady = [one for one in reports if begin < one.span.end <= last]
    ttft = [one.first - one.span.start for one in steady]
    return {
        "rate": len(steady) / (last - begin),
        "ttft": statistics.fmean(ttft),
        "tpot": statistics.fmean((one.span.end - one.first) / (one.tokens - 1) for one in steady),
        "ttft_p50": statistics.median(ttft),
        "e2e_p50": statistics.median(one.span.end - one.span.start for one in steady),
    }


def compare(rounds: Sequence[dict[str, float]], predicted: simulate.Outcome) -> tuple[str, dict[str, float]]:
    """Return the Markdown table of measured and predicted figures, and the relative errors that are limited."""
    lines, errors = [f"| {PREDICTED} in flight | measured | predicted | difference |", "|---|---|---|---|"], {}
    for name, key, value in (
        ("reports per second", "rate", predicted.rate),
        ("E2E, median, s", "e2e_p50", predicted.e2e.p50),
        ("TTFT, median, s", "ttft_p50", predicted.ttft.p50),
    ):
        values = [figure[key] for figure in rounds]
        middle = statistics.median(values)
        cell = f"{middle:.3g} ({min(values):.3g} to {max(values):.3g})"
        lines.append(f"| {name} | {cell} | {value:.3g} | {100 * (value / middle - 1):+.0f} % |")
        if key != "ttft_p50":
            errors[name] = value / middle - 1
    return "\n".join(lines), errors


def stage(in_flight: int, parts: list[list[Report]]) -> dict[str, object]:
    """Return a load as `vllm bench serve` writes it; each rate and time is the median of the rounds."""
    reports = [report for part in parts for report in part]
    rounds = [figures(part, in_flight) for part in parts]
    rate, ttft, tpot = (statistics.median(one[key] for one in rounds) for key in ("rate", "ttft", "tpot"))
    return {
        "max_concurrency": in_flight,
        "completed": len(reports),
        "request_throughput": rate,
        "mean_ttft_ms": 1e3 * ttft,
        "mean_tpot_ms": 1e3 * tpot,
        "total_input_tokens": sum(one.prompt_tokens for one in reports),
        "total_output_tokens": sum(one.tokens for one in reports),
        "output_lens": [one.tokens for one in reports],
    }  # fmt: skip


def test_prediction_between_two_measured_loads(running: LocalServer, tmp_path: Path) -> None:
    loads = asyncio.run(measured(running.root, films()))
    file = tmp_path / "bench.json"
    file.write_text(json.dumps({"stages": [stage(load, loads[load]) for load in LOADS if load != PREDICTED]}))
    replica = fitted(measurement.read([file]))
    outcome = simulate.simulate(replica, in_flight=PREDICTED, reports=2000)
    table, errors = compare([figures(part, PREDICTED) for part in loads[PREDICTED]], outcome)
    print(f"\n{table}\n\nMedian (lowest to highest) of {ROUNDS} rounds; fitted to the other loads of {LOADS}.")
    assert all(abs(error) <= MOST_ERROR for error in errors.values()), table
