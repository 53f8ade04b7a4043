"""``make bench-gateway``: the gateway's own cost, in front of an engine that answers immediately.

Engine, gateway and load generator are three processes on one machine, so a rate per second of wall-clock time depends
on the other two. The rate per second of the gateway's processor time does not, and is printed too. Tenants, validation,
scheduling, usage and the audit log are enabled.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import aiohttp
import uvloop

from pedcxr_serve.gateway import app
from pedcxr_serve.gateway.auth.tenants import Tenant
from pedcxr_serve.gateway.request import validation
from tests.benchmarks import processes
from tests.benchmarks.instant_engine import EVENTS, PACE
from tests.benchmarks.processes import ENGINE_SOCKET, Gateway

_PACED_STREAMS = 250
_IDLE_STREAMS = 1000
_LARGE_BODIES = 200
_TEAM = "bench"
_CHAT = "/chat/completions"


def main() -> None:
    """Run the benchmark and print each result with its target."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.gateway", description=__doc__)
    parser.add_argument("--requests", type=int, default=2000, help="number of requests with bodies of 0.1 MB")
    parser.add_argument("--streams", type=int, default=200, help=f"number of streams of {EVENTS} events")
    args = parser.parse_args()
    print(f"{'':30}{'measured':>14}   target")
    _validation()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with processes.engine(folder), processes.gateway(folder, _TEAM) as gateway:
            uvloop.run(_load(folder, gateway, args.requests, args.streams))


def body(film_bytes: int, *, stream: bool = False, answer: str | None = None) -> bytes:
    """Return a request with an image of random bytes; the body has about ``film_bytes`` bytes.

    Args:
        answer: the kind of answer of the instant engine; see `instant_engine`.
    """
    film = base64.b64encode(os.urandom(film_bytes * 3 // 4)).decode()
    content = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{film}"}},
        {"type": "text", "text": "Generate a radiology report for this chest X-ray of a 5-year-old male."},
    ]
    request: dict[str, object] = {"model": "bench", "messages": [{"role": "user", "content": content}]}
    request |= {"max_tokens": 500, "stream": stream} | ({"stop": [answer]} if answer else {})
    return json.dumps(request).encode()


def _validation() -> None:
    raw, rules, tenant = bytearray(body(3_000_000)), validation.Rules("bench", 500), Tenant("bench")
    times_ms = []
    for _ in range(50):
        start = time.process_time()
        validation.apply(raw, tenant, rules)
        times_ms.append(1e3 * (time.process_time() - start))
    maximum = f"maximum {max(times_ms):.2f}"
    _print_row(
        "validation of a 3 MB body", f"{statistics.median(times_ms):.2f} ms", f"<= 3 of processor time; {maximum}"
    )


def _print_row(name: str, result: str, target: str) -> None:
    print(f"{name:30}{result:>14}   {target}", flush=True)


class _Times(NamedTuple):
    seconds: float
    processor: float


class _Load:
    """Sends requests to one gateway."""

    def __init__(self, session: aiohttp.ClientSession, gateway: Gateway) -> None:
        self._session, self._gateway = session, gateway
        self._url = gateway.url + _CHAT

    async def send(self, data: bytes, number: int, concurrency: int) -> _Times:
        """Send a body ``number`` times; every answer must be 200."""
        limit = asyncio.Semaphore(concurrency)

        async def request() -> None:
            async with limit, self._session.post(self._url, data=data) as answer:
                text = await answer.read()
                if answer.status != 200:
                    raise SystemExit(f"{answer.status}: {text[:200]!r}")

        before, start = self._gateway.processor_s(), time.perf_counter()
        await asyncio.gather(*(request() for _ in range(number)))
        return _Times(time.perf_counter() - start, self._gateway.processor_s() - before)

    async def gaps_ms(self, data: bytes) -> float:
        """Return the 99th percentile of the time between the events of `_PACED_STREAMS` streams, in ms."""
        return await _gaps_ms(self._session, self._url, data)

    async def while_idle(self, streams: int, measure: Callable[[], float]) -> float:
        """Return the result of ``measure`` while streams are open after their first event."""
        data, limit = body(10_000, stream=True, answer="idle"), asyncio.Semaphore(64)
        answers: list[aiohttp.ClientResponse] = []

        async def request() -> None:
            async with limit:
                answer = await self._session.post(self._url, data=data)
                answers.append(answer)
                if answer.status != 200 or not await answer.content.readany():
                    raise SystemExit(f"{answer.status}: no stream")

        try:
            await asyncio.gather(*(request() for _ in range(streams)))
            return measure()
        finally:
            for answer in answers:
                answer.close()


async def _load(folder: Path, gateway: Gateway, requests: int, streams: int) -> None:
    headers = {"Authorization": f"Bearer {gateway.keys[_TEAM]}", "Content-Type": "application/json"}
    async with aiohttp.ClientSession(headers=headers, connector=aiohttp.TCPConnector(limit=0)) as session:
        load = _Load(session, gateway)
        await load.send(body(100_000), 200, 32)
        times = await load.send(body(100_000), requests, 32)
        per_core = f"{requests / times.processor:.0f} per second of processor time"
        _print_row("requests with 0.1 MB", f"{requests / times.seconds:.0f} /s", f">= 500; {per_core}")
        times, events = await load.send(body(10_000, stream=True), streams, 32), streams * EVENTS
        per_core = f"{events / times.processor:.0f} per second of processor time"
        _print_row("events in bursts", f"{events / times.seconds:.0f} /s", f">= 30,000; {per_core}")
        paced = body(10_000, stream=True, answer="pace")
        bare, through = await _bare_gaps_ms(folder, paced), await load.gaps_ms(paced)
        target = f"<= 10; {_PACED_STREAMS} streams of {PACE} events/s, 99 % of gaps {through:.1f}, bare {bare:.1f}"
        _print_row("added to a gap", f"{through - bare:.1f} ms", target)
        before = gateway.memory_mib()
        idle = await load.while_idle(_IDLE_STREAMS, gateway.memory_mib)
        _print_row(f"{_IDLE_STREAMS} idle streams", f"{idle:.0f} MiB", f"<= 300; {before:.0f} before")
        before = gateway.memory_mib()
        gateway.reset_peak()
        await load.send(body(3_000_000, answer="wait"), _LARGE_BODIES, _LARGE_BODIES)
        target = f"<= 1024; {before:.0f} before, {gateway.memory_mib():.0f} after"
        _print_row(f"{_LARGE_BODIES} bodies of 3 MB at once", f"{gateway.peak_mib():.0f} MiB", target)


async def _bare_gaps_ms(folder: Path, data: bytes) -> float:
    connector = app.engine_connector(folder / ENGINE_SOCKET)
    async with aiohttp.ClientSession(connector=connector) as session:
        compact = json.dumps(json.loads(data), separators=(",", ":")).encode()  # the gateway sends compact JSON
        return await _gaps_ms(session, f"http://engine/v1{_CHAT}", compact)


async def _gaps_ms(session: aiohttp.ClientSession, url: str, data: bytes) -> float:
    gaps: list[float] = []

    async def request() -> None:
        async with session.post(url, data=data) as answer:
            last = None
            async for _ in answer.content.iter_any():
                now = time.perf_counter()
                if last is not None:
                    gaps.append(now - last)
                last = now

    await asyncio.gather(*(request() for _ in range(_PACED_STREAMS)))
    return 1e3 * statistics.quantiles(gaps, n=100)[98]


if __name__ == "__main__":
    main()
