"""Load for benchmarks: unique requests as the client builds them, and the timestamps of each.

Statistics and targets are those of the benchmarks.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import re
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import aiohttp

from pedcxr_client import Client
from pedcxr_serve.config.settings import DEMO_NAME
from pedcxr_serve.demo import drawing
from pedcxr_serve.demo.findings import sample
from pedcxr_serve.gateway.scheduler import OUTPUT_COST

_CHAT = "/v1/chat/completions"
_LIMIT, _MAX_TOKENS = b'"max_tokens":%d', 500
_HEAD = 33  # bytes of a PNG's signature and IHDR
_WORD = re.compile(rb'"content": ?"[^"]')
_TAIL = 4096  # bytes at the end of a stream that contain its last events


@dataclass(frozen=True, slots=True)
class Sample:
    """One request; times are those of `time.perf_counter`.

    Attributes:
        sender: name of the sender.
        first: time of the first word.
        cost: image + prompt + 2 x output tokens by the engine's count, as the gateway charges.
    """

    sender: str
    start: float
    first: float
    end: float
    cost: float

    @property
    def ttft(self) -> float:
        """Seconds from sending to the first word."""
        return self.first - self.start


class Films:
    """An endless supply of bodies. Each film is one of a few phantoms with a unique PNG chunk, so no cache has it.

    Args:
        seeds: of the phantoms.
        size: height and width of a film, in pixels.
        model: model name of the requests.
    """

    def __init__(self, seeds: Sequence[int], *, size: tuple[int, int] = drawing.SIZE, model: str = DEMO_NAME) -> None:
        self._films: list[tuple[bytes, bytes, bytes]] = []  # body before the film, film, body after it
        with Client("http://127.0.0.1/v1", model=model) as client:
            for seed in seeds:
                case = sample(seed)
                film = drawing.encode_png(drawing.render(case, seed, size=size))
                body = client.payload(film, age=case.age, sex=case.sex, max_tokens=_MAX_TOKENS)
                head, _, tail = body.partition(base64.b64encode(film))
                self._films.append((head, film, tail))
        self._numbers: Iterator[int] = itertools.count(time.time_ns())

    def body(self, max_tokens: int) -> bytes:
        """Return the body of the next request, streamed."""
        number = next(self._numbers)
        head, film, tail = self._films[number % len(self._films)]
        note = b"tEXt" + b"Comment\0%d" % number
        chunk = (len(note) - 4).to_bytes(4) + note + zlib.crc32(note).to_bytes(4)
        text = base64.b64encode(film[:_HEAD] + chunk + film[_HEAD:])
        return b"".join((head, text, tail)).replace(_LIMIT % _MAX_TOKENS, _LIMIT % max_tokens)


@dataclass(frozen=True, slots=True)
class Sender:
    """A client of the benchmark.

    Attributes:
        key: its API key, or an empty string.
        concurrency: number of requests that it keeps open; 0 sends a request every ``every_s`` seconds instead.
        max_tokens: of an answer.
    """

    name: str
    key: str
    concurrency: int = 0
    every_s: float = 0
    max_tokens: int = 500


async def send(session: aiohttp.ClientSession, sender: Sender, films: Films) -> Sample:
    """Send a request and read its stream to the end.

    Raises:
        SystemExit: the request was refused, or the stream had no token usage.
    """
    body = films.body(sender.max_tokens)
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {sender.key}"}
    start, first, tail = time.perf_counter(), 0.0, b""
    async with session.post(_CHAT, data=body, headers=headers) as answer:
        async for chunk in answer.content.iter_any():
            tail = (tail + chunk)[-_TAIL:]
            if not first and _WORD.search(tail):
                first = time.perf_counter()
    end = time.perf_counter()
    if answer.status != 200 or not first:
        raise SystemExit(f"a request of the benchmark failed: {answer.status}: {tail[:300]!r}")
    usage, _ = json.JSONDecoder().raw_decode(tail.rpartition(b'"usage":')[2].decode().lstrip())
    cost = usage["prompt_tokens"] + OUTPUT_COST * usage["completion_tokens"]
    return Sample(sender.name, start, first, end, cost)


async def run(session: aiohttp.ClientSession, senders: Sequence[Sender], films: Films, seconds: float) -> list[Sample]:
    """Let all senders send for a time. Return the requests that ended in that time; the open ones are cancelled."""
    samples: list[Sample] = []

    async def lane(sender: Sender) -> None:
        while True:
            samples.append(await send(session, sender, films))

    async def ticks(sender: Sender, group: asyncio.TaskGroup) -> None:
        while True:
            await asyncio.sleep(sender.every_s)
            group.create_task(keep(sender))

    async def keep(sender: Sender) -> None:
        samples.append(await send(session, sender, films))

    try:
        async with asyncio.timeout(seconds), asyncio.TaskGroup() as group:
            for sender in senders:
                if not sender.concurrency:
                    group.create_task(ticks(sender, group))
                for _ in range(sender.concurrency):
                    group.create_task(lane(sender))
    except TimeoutError:
        pass
    return samples
