"""``make bench-gateway``: the gateway's own cost, in front of an engine that answers immediately.

Engine, gateway and load generator are three processes on one machine, so a rate per second of wall-clock time depends
on the other two. The gateway's processor time per request and per event depends on them less, and its multiple of that
of a bare proxy in the same run (`bare_proxy`) least. Tenants, validation, scheduling, usage and the audit log are
enabled.

vLLM sends each token as an event of its own: only the paced events cost what events cost in service. A burst hands the
gateway hundreds of events in one read.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import aiohttp
import uvloop

from pedcxr_serve.engine import address
from pedcxr_serve.gateway.accounting import metrics
from pedcxr_serve.gateway.accounting.metrics import RequestRecord
from pedcxr_serve.gateway.accounting.usage import TokenUsage
from pedcxr_serve.gateway.auth.tenants import Tenant
from pedcxr_serve.gateway.http.server import short_pauses
from pedcxr_serve.gateway.request import validation
from pedcxr_serve.gateway.request.image_splice import RequestRefused
from pedcxr_serve.gateway.state import State
from tests.benchmarks import processes
from tests.benchmarks.gateway.instant_engine import EVENTS, PACE, PACED_EVENTS
from tests.benchmarks.processes import ENGINE_SOCKET, Gateway
from tests.support.servers.otlp_receiver import otlp_receiver

_PACED_STREAMS = 250
_ROUNDS = 5  # of gateway and bare proxy in turns; medians are printed
_IDLE_STREAMS = 1000
_LARGE_BODIES = 200
_TENANTS = 200
_TICK_S = 0.002
_TEAM = "bench"
_CHAT = "/chat/completions"


def main() -> None:
    """Run the benchmark and print each result with its target."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.gateway", description=__doc__)
    parser.add_argument("--requests", type=int, default=500, help="number of requests with bodies of 0.1 MB per round")
    parser.add_argument("--streams", type=int, default=200, help=f"streams of {EVENTS} events per round")
    args = parser.parse_args()
    print(f"{'':30}{'measured':>14}   target")
    _validation()
    _hostile_body()
    _metrics_page()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (
            processes.engine(folder),
            processes.gateway(folder, _TEAM) as gateway,
            processes.bare_proxy(folder) as bare,
            processes.relay(folder) as relay,
            _traced_gateway(folder) as traced,
        ):
            # The relay comes last: spans are sent after the end of their requests.
            sides = {"gateway": gateway, "proxy": bare, "traced": traced, "relay": relay}
            uvloop.run(_compare(sides, args.requests, args.streams))
            uvloop.run(_load(folder, gateway))


@contextlib.contextmanager
def _traced_gateway(folder: Path) -> Iterator[Gateway]:
    """Run another gateway of the same engine, which records every request."""
    own = folder / "traced"
    own.mkdir()
    (own / ENGINE_SOCKET).symlink_to(folder / ENGINE_SOCKET)
    with (
        otlp_receiver() as collector,
        processes.gateway(own, _TEAM, env={"PEDCXR_TELEMETRY_OTLP_ENDPOINT": collector.url}) as gateway,
    ):
        yield gateway


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
    return json.dumps(request, separators=(",", ":")).encode()  # as the instant engine expects it


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


def _hostile_body() -> None:
    raw, rules, tenant = b'{"messages":[' + b"{}," * 106_000 + b"{}]}", validation.Rules("bench", 500), Tenant("bench")
    times_ms = []
    for _ in range(20):
        start = time.process_time()
        with contextlib.suppress(RequestRefused):
            validation.apply(raw, tenant, rules)
        times_ms.append(1e3 * (time.process_time() - start))
    _print_row(
        "refusal of 106,000 objects", f"{statistics.median(times_ms):.2f} ms", "<= 5 of processor time; 318 kB of {}"
    )


def _metrics_page() -> None:
    """Print how long the event loop stands still while the page of 200 tenants is rendered."""
    state = State(Path("none"), demo=False, body_limit=1)
    for index in range(_TENANTS):
        for outcome in ("ok", "length", "client_left", "refused", "engine_lost"):
            record = RequestRecord(Tenant(f"tenant-{index}"), "id", outcome=outcome)
            record.usage = TokenUsage(300, 50) if outcome in ("ok", "length") else None
            record.first_token_at = record.last_token_at = record.arrived_at
            record.stages = dict.fromkeys(("body", "policy", "queue", "engine", "stream"), (0.0, 0.01))
            state.tenant_metrics.count(record)

    async def longest_pause_ms(work: Awaitable[object]) -> float:
        running = asyncio.ensure_future(work)
        longest, last = 0.0, time.perf_counter()
        while not running.done():
            await asyncio.sleep(_TICK_S)
            now = time.perf_counter()
            longest, last = max(longest, now - last - _TICK_S), now
        return 1e3 * longest

    async def measure() -> None:
        with short_pauses():
            page = len(await metrics.render(state.metrics.registry))
            start = time.process_time()
            await metrics.render(state.metrics.registry)
            cost_ms = 1e3 * (time.process_time() - start)
            idle = [await longest_pause_ms(asyncio.sleep(0.3)) for _ in range(5)]
            busy = [await longest_pause_ms(metrics.render(state.metrics.registry)) for _ in range(5)]
        text = f"<= 5: median of the longest pauses of the event loop; {statistics.median(idle):.1f} without rendering"
        text += f"; {page / 1e3:.0f} kB, {cost_ms:.0f} ms of processor time"
        _print_row(f"/metrics of {_TENANTS} tenants", f"{statistics.median(busy):.1f} ms", text)

    uvloop.run(measure())


def _print_row(name: str, result: str, target: str) -> None:
    print(f"{name:30}{result:>14}   {target}", flush=True)


class _Times(NamedTuple):
    seconds: float
    processor: float
    chunks: int


class _Costs(NamedTuple):
    """Processor time of one round; ``event_us`` does not include the opening of its stream."""

    request_ms: float
    film_ms: float
    opening_ms: float
    burst_us: float
    event_us: float
    requests_per_s: float
    reads: float


class _Load:
    """Sends requests to one gateway."""

    def __init__(self, session: aiohttp.ClientSession, gateway: Gateway) -> None:
        self._session, self._gateway = session, gateway
        self._url = gateway.url + _CHAT

    async def send(self, data: bytes, number: int, concurrency: int) -> _Times:
        """Send a body ``number`` times; every answer must be 200."""
        limit, chunks = asyncio.Semaphore(concurrency), 0

        async def request() -> None:
            nonlocal chunks
            async with limit, self._session.post(self._url, data=data) as answer:
                async for chunk in answer.content.iter_any():
                    chunks += 1
                    if answer.status != 200:
                        raise SystemExit(f"{answer.status}: {chunk[:200]!r}")

        before, start = self._gateway.processor_s(), time.perf_counter()
        await asyncio.gather(*(request() for _ in range(number)))
        return _Times(time.perf_counter() - start, self._gateway.processor_s() - before, chunks)

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


@contextlib.asynccontextmanager
async def _load_on(gateway: Gateway) -> AsyncIterator[_Load]:
    headers = {"Authorization": f"Bearer {gateway.keys.get(_TEAM, '')}", "Content-Type": "application/json"}
    async with aiohttp.ClientSession(headers=headers, connector=aiohttp.TCPConnector(limit=0)) as session:
        yield _Load(session, gateway)


async def _compare(sides: Mapping[str, Gateway], requests: int, streams: int) -> None:
    """Print the processor time of each side per request and per event, taken in turns."""
    films, large, burst = body(100_000), body(500_000), body(10_000, stream=True)
    brief, paced = body(10_000, stream=True, answer="brief"), body(10_000, stream=True, answer="pace")
    rounds: list[dict[str, _Costs]] = []
    async with contextlib.AsyncExitStack() as stack:
        loads = {name: await stack.enter_async_context(_load_on(side)) for name, side in sides.items()}
        for load in loads.values():
            await load.send(films, 200, 32)
        for _ in range(_ROUNDS):
            rounds.append({})
            for name, load in loads.items():
                whole = await load.send(films, requests, 32)
                film = await load.send(large, requests // 2, 32)
                opening = await load.send(brief, _PACED_STREAMS, 32)
                block = await load.send(burst, streams, 32)
                events = await load.send(paced, _PACED_STREAMS, _PACED_STREAMS)
                rounds[-1][name] = _Costs(
                    1e3 * whole.processor / requests,
                    1e3 * film.processor / (requests // 2),
                    1e3 * opening.processor / _PACED_STREAMS,
                    1e6 * block.processor / (streams * EVENTS),
                    1e6 * (events.processor - opening.processor) / (_PACED_STREAMS * PACED_EVENTS),
                    requests / whole.seconds,
                    events.chunks / (_PACED_STREAMS * PACED_EVENTS),
                )
    rows = (
        ("request with 0.1 MB", "request_ms", "ms", "<= 1.2"),
        ("request with 0.5 MB", "film_ms", "ms", "none"),
        ("stream without events", "opening_ms", "ms", "none"),
        ("event in a burst", "burst_us", "us", "<= 33"),
        ("event alone, as vLLM sends it", "event_us", "us", "<= 25"),
    )
    for name, key, unit, target in rows:
        measured = {side: statistics.median(getattr(costs[side], key) for costs in rounds) for side in sides}
        rate = (1e3 if unit == "ms" else 1e6) / measured["gateway"]
        words = [f"{target} of processor time; {rate:,.0f} per core-second"]
        for side in ("proxy", "relay", "traced"):
            ratio = statistics.median(getattr(costs["gateway"], key) / getattr(costs[side], key) for costs in rounds)
            words.append(f"{side} {measured[side]:.2f} {unit}, x {ratio:.2f}")
        _print_row(name, f"{measured['gateway']:.2f} {unit}", "; ".join(words))
    reads, rate = (
        statistics.median(getattr(costs["gateway"], key) for costs in rounds) for key in ("reads", "requests_per_s")
    )
    _print_row("requests with 0.1 MB", f"{rate:.0f} /s", ">= 500, on a machine with nothing else to do")
    _print_row("reads per event", f"{reads:.2f}", "1; below, the client was late and several events came together")


async def _load(folder: Path, gateway: Gateway) -> None:
    async with _load_on(gateway) as load:
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
    connector = address.connector(folder / ENGINE_SOCKET)
    async with aiohttp.ClientSession(connector=connector) as session:
        return await _gaps_ms(session, f"http://engine/v1{_CHAT}", data)


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
