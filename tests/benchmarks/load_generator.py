"""Load for benchmarks: senders that keep requests open or send at intervals, on the parts of `pedcxr bench`.

Statistics and targets are those of the benchmarks.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass

import aiohttp

from pedcxr_client.bench import bodies
from pedcxr_client.bench.bodies import Draw
from pedcxr_client.bench.send import Sample, Target
from pedcxr_client.bench.workload import Tenant
from pedcxr_client.request.film_request import FilmRequest
from pedcxr_client.request.settings import Timeouts
from pedcxr_client.types import ServedModel
from pedcxr_serve.config.settings import DEMO_NAME
from pedcxr_serve.demo import drawing
from pedcxr_serve.demo.findings import sample
from pedcxr_serve.gateway.scheduler import OUTPUT_COST

_LIMIT, _MAX_TOKENS = b'"max_tokens":%d', 500
_CUT = ("truncated", "looping")  # outcomes of a report that `max_tokens` cuts


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


class Films:
    """An endless supply of requests. Each film is one of a few phantoms with a unique comment, so no cache has it.

    Args:
        seeds: of the phantoms.
        size: height and width of a film, in pixels.
        model: model name of the requests.
    """

    def __init__(self, seeds: Sequence[int], *, size: tuple[int, int] = drawing.SIZE, model: str = DEMO_NAME) -> None:
        self._cases = []
        for seed in seeds:
            case = sample(seed)
            film = drawing.encode_png(drawing.render(case, seed, size=size))
            request = FilmRequest(film, age=case.age, sex=case.sex, max_tokens=_MAX_TOKENS, key=str(seed))
            self._cases.append(bodies.case(request, ServedModel(model)))
        self._numbers = itertools.count(time.time_ns())

    def draw(self, sender: Sender) -> Draw:
        """Return the next request of a sender."""
        number = next(self._numbers)
        case = self._cases[number % len(self._cases)]
        body = case.unique_body(number).replace(_LIMIT % _MAX_TOKENS, _LIMIT % sender.max_tokens)
        return Draw(Tenant(sender.name), case, body)


def cost(one: Sample) -> float:
    """Return image + prompt + 2 x output tokens by the engine's count, as the gateway charges."""
    return (one.prompt_tokens or 0) + OUTPUT_COST * (one.completion_tokens or 0)


async def send(session: aiohttp.ClientSession, sender: Sender, films: Films) -> Sample:
    """Send a request and read its stream to the end. Raise SystemExit if it fails."""
    return await _send(_target(session, [sender]), sender, films)


async def run(session: aiohttp.ClientSession, senders: Sequence[Sender], films: Films, seconds: float) -> list[Sample]:
    """Let all senders send for a time. Return the requests that ended in that time; the open ones are cancelled.

    The times of a sample count from the call.
    """
    samples: list[Sample] = []
    target = _target(session, senders)

    async def keep(sender: Sender) -> None:
        samples.append(await _send(target, sender, films))

    async def lane(sender: Sender) -> None:
        while True:
            await keep(sender)

    async def ticks(sender: Sender, group: asyncio.TaskGroup) -> None:
        while True:
            await asyncio.sleep(sender.every_s)
            group.create_task(keep(sender))

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


def _target(session: aiohttp.ClientSession, senders: Sequence[Sender]) -> Target:
    keys = {sender.name: sender.key for sender in senders}
    return Target(session, "/v1", keys, timeouts=Timeouts(), allow=_CUT)


async def _send(target: Target, sender: Sender, films: Films) -> Sample:
    one = await target.send(films.draw(sender))
    if not one.is_ok or one.completion_tokens is None:
        raise SystemExit(f"a request of the benchmark failed: {one.outcome}: {one.message}")
    return one
