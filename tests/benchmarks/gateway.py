"""``make bench-gateway``: what the gateway itself costs, in front of an engine that answers at once.

Engine, gateway and load are three processes on one machine, so that a rate by the clock depends on its other work;
beside it stands the rate for each second of processor time that the gateway took, which does not. Tenants, policy,
admission, metering and the audit log are on.
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
    """Run the benchmark and print its figures, each beside the one to reach."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.gateway", description=__doc__)
    parser.add_argument("--requests", type=int, default=2000, help="requests with bodies of 0.1 MB")
    parser.add_argument("--streams", type=int, default=200, help=f"streams of {EVENTS} events")
    args = parser.parse_args()
    print(f"{'':30}{'measured':>14}   to reach")
    _policy()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with processes.engine(folder), processes.gateway(folder, _TEAM) as gateway:
            uvloop.run(_load(folder, gateway, args.requests, args.streams))


def body(film_bytes: int, *, stream: bool = False, order: str | None = None) -> bytes:
    """A request with a film of random bytes, such that the body is about ``film_bytes`` long.

    Args:
        order: how `bench_engine` answers, if not at once.
    """
    film = base64.b64encode(os.urandom(film_bytes * 3 // 4)).decode()
    content = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{film}"}},
        {"type": "text", "text": "Generate a radiology report for this chest X-ray of a 5-year-old male."},
    ]
    asked: dict[str, object] = {"model": "bench", "messages": [{"role": "user", "content": content}]}
    asked |= {"max_tokens": 500, "stream": stream} | ({"stop": [order]} if order else {})
    return json.dumps(asked).encode()


def _policy() -> None:
    raw, rules, tenant = bytearray(body(3_000_000)), validation.Rules("bench", 500), Tenant("bench")
    took = []
    for _ in range(50):
        start = time.process_time()
        validation.apply(raw, tenant, rules)
        took.append(1e3 * (time.process_time() - start))
    most = f"at most {max(took):.2f}"
    _say("policy of a 3 MB body", f"{statistics.median(took):.2f} ms", f"<= 3 of processor time; {most}")


def _say(what: str, measured: str, aim: str) -> None:
    print(f"{what:30}{measured:>14}   {aim}", flush=True)


class _Took(NamedTuple):
    seconds: float
    processor: float


class _Load:
    """Requests to one gateway."""

    def __init__(self, session: aiohttp.ClientSession, gateway: Gateway) -> None:
        self._session, self._gateway = session, gateway
        self._url = gateway.url + _CHAT

    async def send(self, data: bytes, number: int, at_once: int) -> _Took:
        """The same body, so often; every answer must be 200."""
        turns = asyncio.Semaphore(at_once)

        async def one() -> None:
            async with turns, self._session.post(self._url, data=data) as answer:
                text = await answer.read()
                if answer.status != 200:
                    raise SystemExit(f"{answer.status}: {text[:200]!r}")

        before, start = self._gateway.processor_s(), time.perf_counter()
        await asyncio.gather(*(one() for _ in range(number)))
        return _Took(time.perf_counter() - start, self._gateway.processor_s() - before)

    async def gaps_ms(self, data: bytes) -> float:
        """99th percentile of the time between the events of `_PACED_STREAMS` streams."""
        return await _gaps_ms(self._session, self._url, data)

    async def while_idle(self, streams: int, look: Callable[[], float]) -> float:
        """What ``look`` says while so many streams are open and had their first event."""
        data, opened = body(10_000, stream=True, order="idle"), asyncio.Semaphore(64)
        answers: list[aiohttp.ClientResponse] = []

        async def one() -> None:
            async with opened:
                answer = await self._session.post(self._url, data=data)
                answers.append(answer)
                if answer.status != 200 or not await answer.content.readany():
                    raise SystemExit(f"{answer.status}: no stream")

        try:
            await asyncio.gather(*(one() for _ in range(streams)))
            return look()
        finally:
            for answer in answers:
                answer.close()


async def _load(folder: Path, gateway: Gateway, requests: int, streams: int) -> None:
    headers = {"Authorization": f"Bearer {gateway.keys[_TEAM]}", "Content-Type": "application/json"}
    async with aiohttp.ClientSession(headers=headers, connector=aiohttp.TCPConnector(limit=0)) as session:
        load = _Load(session, gateway)
        await load.send(body(100_000), 200, 32)
        took = await load.send(body(100_000), requests, 32)
        a_core = f"{requests / took.processor:.0f} a second of its processor"
        _say("requests with 0.1 MB", f"{requests / took.seconds:.0f} /s", f">= 500; {a_core}")
        took, events = await load.send(body(10_000, stream=True), streams, 32), streams * EVENTS
        a_core = f"{events / took.processor:.0f} a second of its processor"
        _say("events in bursts", f"{events / took.seconds:.0f} /s", f">= 30,000; {a_core}")
        paced = body(10_000, stream=True, order="pace")
        bare, through = await _bare_gaps_ms(folder, paced), await load.gaps_ms(paced)
        aim = f"<= 10; {_PACED_STREAMS} streams of {PACE} events/s, 99 % of gaps {through:.1f}, bare {bare:.1f}"
        _say("added to a gap", f"{through - bare:.1f} ms", aim)
        before = gateway.memory_mib()
        held = await load.while_idle(_IDLE_STREAMS, gateway.memory_mib)
        _say(f"{_IDLE_STREAMS} idle streams", f"{held:.0f} MiB", f"<= 300; {before:.0f} before")
        before = gateway.memory_mib()
        gateway.forget_peak()
        await load.send(body(3_000_000, order="wait"), _LARGE_BODIES, _LARGE_BODIES)
        aim = f"<= 1024; {before:.0f} before, {gateway.memory_mib():.0f} after"
        _say(f"{_LARGE_BODIES} bodies of 3 MB at once", f"{gateway.peak_mib():.0f} MiB", aim)


async def _bare_gaps_ms(folder: Path, data: bytes) -> float:
    connector = app.engine_connector(folder / ENGINE_SOCKET)
    async with aiohttp.ClientSession(connector=connector) as session:
        compact = json.dumps(json.loads(data), separators=(",", ":")).encode()  # as the gateway gives it
        return await _gaps_ms(session, f"http://engine/v1{_CHAT}", compact)


async def _gaps_ms(session: aiohttp.ClientSession, url: str, data: bytes) -> float:
    gaps: list[float] = []

    async def one() -> None:
        async with session.post(url, data=data) as answer:
            last = None
            async for _ in answer.content.iter_any():
                now = time.perf_counter()
                if last is not None:
                    gaps.append(now - last)
                last = now

    await asyncio.gather(*(one() for _ in range(_PACED_STREAMS)))
    return 1e3 * statistics.quantiles(gaps, n=100)[98]


if __name__ == "__main__":
    main()
