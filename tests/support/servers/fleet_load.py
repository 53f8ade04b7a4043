"""A closed loop of clients that ask a fleet for reports, and what they saw."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import httpx
from prometheus_client.parser import text_string_to_metric_families

from pedcxr_client.bench.watch import parse
from tests.support.servers.gateway_server import BODY, CHAT

_FILM = "data:image/png;base64,"
_RETRIES = 2  # by default in openai-python and in pedcxr_client


@dataclass
class Outcome:
    """The end of one request; ``kind`` is ``ok``, ``cut`` (a stream without its end), or the code of an error.

    ``resent``: the balancer closed the connection before it answered, and the request was sent again, at most
    twice, as the clients of OpenAI and of this project do.
    """

    kind: str
    status: int
    start: float
    seconds: float
    retry_after: str | None = None
    resent: bool = False

    @property
    def end(self) -> float:
        return self.start + self.seconds


@dataclass
class Load:
    """The outcomes so far; ``stop`` ends the loop after the requests in flight."""

    outcomes: list[Outcome] = field(default_factory=list)
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def failures(self) -> list[Outcome]:
        return [one for one in self.outcomes if one.kind != "ok"]

    @property
    def hit(self) -> list[Outcome]:
        """Requests that failed or were sent again."""
        return [one for one in self.outcomes if one.kind != "ok" or one.resent]

    @property
    def _seconds(self) -> list[float]:
        return sorted(one.seconds for one in self.outcomes if one.kind == "ok") or [float("nan")]

    @property
    def p99(self) -> float:
        """Of the seconds until a complete report."""
        return quantile(self._seconds, 0.99)

    def summary(self) -> str:
        counts = Counter(one.kind for one in self.outcomes).most_common()
        resent = sum(one.resent for one in self.outcomes)
        kinds = ", ".join(f"{count} {kind}" for kind, count in counts)
        return (
            f"{len(self.outcomes)} requests, {resent} resent: {kinds}; "
            f"p50 {1e3 * quantile(self._seconds, 0.5):.0f} ms, p99 {1e3 * self.p99:.0f} ms"
        )

    async def until(self, count: int, seconds: float = 240) -> None:
        """Wait for that many more outcomes."""
        target, end = len(self.outcomes) + count, time.monotonic() + seconds
        while len(self.outcomes) < target:
            assert time.monotonic() < end, f"{self.summary()}; no {count} more within {seconds:g} s"
            await asyncio.sleep(0.02)


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value below which that share of sorted values lies."""
    return values[min(len(values) - 1, int(len(values) * share))]


def body(*, film_bytes: int = 100, stream: bool = False, text: str = "Generate a report.") -> bytes:
    """Return a request whose film has about that many bytes; the fake engine does not decode it."""
    film = _FILM + base64.b64encode(b"\x89PNG\r\n\x1a\n" + os.urandom(film_bytes)).decode()
    content = [{"type": "image_url", "image_url": {"url": film}}, {"type": "text", "text": text}]
    return json.dumps(BODY | {"messages": [{"role": "user", "content": content}], "stream": stream}).encode()


async def send(session: aiohttp.ClientSession, url: str, data: bytes, **headers: str) -> Outcome:
    """Send one request and read its answer to the end."""
    start = time.monotonic()
    outcome = await _send(session, url, data, headers)
    for _ in range(_RETRIES):
        if outcome.kind != "closed":
            break
        outcome = await _send(session, url, data, headers)
        outcome.resent = True
    outcome.start, outcome.seconds = start, time.monotonic() - start
    return outcome


async def _send(session: aiohttp.ClientSession, url: str, data: bytes, headers: dict[str, str]) -> Outcome:
    status, retry_after = 0, None
    try:
        headers = {"Content-Type": "application/json", **headers}
        async with session.post(url + CHAT, data=data, headers=headers) as answer:
            status, retry_after = answer.status, answer.headers.get("Retry-After")
            kind = _kind(status, await answer.read(), answer.content_type)
    except aiohttp.ClientPayloadError:
        kind = "cut"
    except aiohttp.ClientConnectionError:
        kind = "cut" if status else "closed"
    return Outcome(kind, status, 0, 0, retry_after)


def _kind(status: int, page: bytes, content_type: str) -> str:
    if content_type == "text/event-stream":
        if b'data: {"error"' in page:
            return str(json.loads(page.rpartition(b"data: ")[2])["error"]["code"])
        return "ok" if b"data: [DONE]" in page else "cut"
    try:
        value = json.loads(page)
    except ValueError:
        return f"untyped {status}"
    return "ok" if status == 200 and "choices" in value else str(value["error"]["code"])


async def drive(
    url: str,
    users: int,
    load: Load,
    *,
    film_bytes: int = 100_000,
    pause_s: float = 0.0,
    key: str = "",
    make_body: Callable[[bool], bytes] | None = None,
) -> None:
    """Keep ``users`` requests in flight until ``load.stop``; every second user streams.

    Args:
        key: of a tenant.
        make_body: called for each request, with whether it streams; by default a user sends one body again and again.
    """
    bodies = [body(film_bytes=film_bytes, stream=bool(number % 2)) for number in range(2)]
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def user(number: int) -> None:
            while not load.stop.is_set():
                data = make_body(bool(number % 2)) if make_body else bodies[number % 2]
                outcome = await send(session, url, data, **headers)
                load.outcomes.append(outcome)
                if outcome.kind != "ok" or pause_s:
                    await asyncio.sleep(pause_s or 0.05)

        await asyncio.gather(*(user(number) for number in range(users)))


async def under_load(
    urls: Mapping[str, str],
    loads: Mapping[str, Load],
    users: int,
    event: Callable[[], object],
    *,
    before: int = 40,
    after: int = 40,
    make_body: Callable[[bool], bytes] | None = None,
) -> None:
    """Drive each address; once ``before`` requests have ended at each, run ``event``, then wait for ``after`` more."""
    drivers = [asyncio.create_task(drive(url, users, loads[name], make_body=make_body)) for name, url in urls.items()]
    try:
        await asyncio.gather(*(load.until(before) for load in loads.values()))
        await asyncio.to_thread(event)
        await asyncio.gather(*(load.until(after) for load in loads.values()))
    finally:
        for load in loads.values():
            load.stop.set()
        await asyncio.gather(*drivers)


class Killing:
    """Kills a replica that has requests open, and says what was lost beyond those.

    Attributes:
        opened: requests that the replica had open.
        at: `time.monotonic` before it was killed.
        dead_at: the same after the kill; a request that began before may have reached the replica.
    """

    def __init__(self, victim: Any, survivors: Sequence[Any]) -> None:
        self._victim, self._survivors = victim, survivors
        self.opened, self.at, self.dead_at = 0, 0.0, 0.0

    def __call__(self) -> None:
        """Kill the replica as soon as it has a request open."""
        self._before = [_ended(one) for one in self._survivors]
        while not self.opened:
            self.opened = int(parse(_page(self._victim))["pedcxr_requests_in_flight"])
        self.at = time.monotonic()
        self._victim.kill()
        self.dead_at = time.monotonic()

    def faults(self, *loads: Load) -> list[str]:
        """Return what was lost although the replica did not have it open, or without a clear end.

        Such a request began before the replica was killed, and no other replica failed it.
        """
        hit = [one for load in loads for one in load.hit]
        wrong = [one for one in hit if one.kind not in ("ok", "server_lost", "cut") or one.start > self.dead_at + 0.1]
        faults = [f"lost: {one}" for one in wrong]
        for before, replica in zip(self._before, self._survivors, strict=True):
            if others := [name for name, count in _ended(replica).items() if name != "ok" and count > before[name]]:
                faults.append(f"a replica that was not killed ended requests as {', '.join(others)}")
        return faults if hit else [*faults, "no request was hit"]


def _page(replica: Any) -> str:
    return httpx.get(replica.metrics_url, timeout=60, trust_env=False).text


def _ended(replica: Any) -> Counter[str]:
    """Return how many requests a replica ended with each outcome."""
    counts = Counter[str]()
    for family in text_string_to_metric_families(_page(replica)):
        for sample in family.samples:
            if sample.name == "pedcxr_tenant_requests_total":
                counts[sample.labels["outcome"]] += int(sample.value)
    return counts
