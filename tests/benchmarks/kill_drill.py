"""Kill the engine under load, repeatedly: ``make drill``, or ``python -m tests.benchmarks.kill_drill --rounds 10``.

Each round keeps 32 reports in work, half of them streamed, kills one process of vLLM with SIGKILL (its core, its worker
and its HTTP server in turn) and waits until a report is written again.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import aiohttp

from pedcxr_client.request import prompts
from pedcxr_serve.demo import drawing
from tests.benchmarks.local_server import LocalServer, server
from tests.support.live_server import alive, family, title

AT_ONCE = 32
TYPED_S = 2.0
BACK_S = 300.0
CODES = {"engine_lost", "engine_restarting", "not_ready", "engine_aborted"}
VICTIMS = ("EngineCore", "Worker", "vllm_main")
HEAD = f"{'round':>5} {'killed':>12} {'told within':>12} {'refused':>8} {'ready after':>12}  how the 32 in work ended"
_SEED = 9_500_000


@dataclass(frozen=True)
class Ended:
    """How one request ended: ``complete``, or the code of its error, seconds after the kill."""

    how: str
    seconds: float


@dataclass(frozen=True)
class Round:
    """What one kill did.

    Attributes:
        told_s: seconds from the kill until the last of the requests in work had ended.
        refused: requests turned away with 503 and Retry-After while the engine was away.
        ready_s: seconds from the kill until a report was complete again.
    """

    victim: str
    ended: tuple[Ended, ...]
    told_s: float
    refused: int
    ready_s: float

    @property
    def failures(self) -> list[str]:
        """What was not as promised; empty if all was."""
        found = [one.how for one in self.ended if one.how not in CODES | {"complete"}]
        if self.told_s > TYPED_S:
            found.append(f"the last was told after {self.told_s:.1f} s")
        if not self.refused:
            found.append("nobody was told that the engine is away")
        return found

    def row(self, number: int) -> str:
        """A line below `HEAD`."""
        ends = ", ".join(f"{count} {how}" for how, count in Counter(one.how for one in self.ended).most_common())
        return f"{number:>5} {self.victim:>12} {self.told_s:>10.2f} s {self.refused:>8} {self.ready_s:>10.1f} s  {ends}"


def rounds(running: LocalServer, count: int) -> Iterator[Round]:
    """Kill ``count`` times."""
    for number in range(count):
        yield asyncio.run(_round(running, VICTIMS[number % len(VICTIMS)]))


async def _round(running: LocalServer, victim: str) -> Round:
    timeout = aiohttp.ClientTimeout(total=BACK_S)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        stop = asyncio.Event()
        work = [asyncio.create_task(_work(session, running, number, stop)) for number in range(AT_ONCE)]
        while await _in_work(session, running) < AT_ONCE / 2:
            await asyncio.sleep(0.1)
        [pid] = [pid for pid in family(running.process.pid) if victim in title(pid)][:1]
        killed = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        stop.set()
        ended = await asyncio.gather(*work)
        refused = await _away(session, running)
        assert not alive({pid})
        told = max((one.seconds for one in ended), default=killed) - killed
        return Round(victim, tuple(ended), told, refused, time.monotonic() - killed)


async def _away(session: aiohttp.ClientSession, running: LocalServer) -> int:
    """Ask until a report is complete; how often that was refused."""
    refused, end = 0, time.monotonic() + BACK_S
    while True:
        async with session.get(running.root + "/health/live") as live:
            assert live.status == 200
        async with session.post(running.url + "/chat/completions", json=body(_SEED, stream=False)) as answer:
            told = await answer.json()
            if answer.status == 200 and told["choices"][0]["finish_reason"] == "stop":
                return refused
            assert told["error"]["code"] in CODES, answer.status
            refused += answer.status == 503 and int(answer.headers["Retry-After"]) >= 1
        assert time.monotonic() < end, "the engine did not come back"
        await asyncio.sleep(0.25)


async def _work(session: aiohttp.ClientSession, running: LocalServer, number: int, stop: asyncio.Event) -> Ended:
    """One report after the other; how the one ended that was in work at the stop."""
    asked = body(_SEED + number, stream=bool(number % 2))
    while (ended := await _ask(session, running, asked)).how == "complete" and not stop.is_set():
        pass
    return ended


async def _ask(session: aiohttp.ClientSession, running: LocalServer, asked: dict[str, object]) -> Ended:
    async with session.post(running.url + "/chat/completions", json=asked) as answer:
        data = await answer.read()
    whole = b'"finish_reason":"stop"' in data and (not asked["stream"] or b"data: [DONE]" in data)
    code = next((code for code in CODES if f'"code": "{code}"'.encode() in data), None)
    return Ended("complete" if whole and not code else code or f"untyped, status {answer.status}", time.monotonic())


async def _in_work(session: aiohttp.ClientSession, running: LocalServer) -> int:
    async with session.get(running.metrics_url) as answer:
        page = await answer.text()
    [line] = [line for line in page.splitlines() if line.startswith("vllm:num_requests_running{")]
    return int(float(line.split()[-1]))


def body(seed: int, *, stream: bool) -> dict[str, object]:
    """A request for the report of a drawn film."""
    case = drawing.sample(seed)
    url = "data:image/png;base64," + base64.b64encode(drawing.encode_png(drawing.render(case, seed))).decode()
    return {"messages": prompts.messages(prompts.card(case.age, case.sex), url), "stream": stream}


def main() -> int:
    """Run the drill; 1 if a promise was broken."""
    parser = argparse.ArgumentParser("python -m tests.benchmarks.kill_drill")
    parser.add_argument("--rounds", type=int, default=10, choices=range(1, 101), metavar="N")
    count = parser.parse_args().rounds
    broken = 0
    with server("--restart-wait-s", "2") as running:
        print(HEAD, flush=True)
        for number, one in enumerate(rounds(running, count), 1):
            print(one.row(number), flush=True)
            for failure in one.failures:
                broken += 1
                print(f"      BROKEN: {failure}", flush=True)
        status = running.stop(signal.SIGTERM)
    print(f"{count} kills, {broken} promises broken; the server ended with {status}")
    return 1 if broken or status else 0


if __name__ == "__main__":
    sys.exit(main())
