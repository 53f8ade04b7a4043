"""Kill the engine under load, repeatedly: ``make drill``, or ``python -m tests.drills.kill_engine --rounds 10``.

Each round keeps 32 requests in flight, half of them streamed. It suspends the engine core, so that at least half of
them are in the engine for certain. Then it kills one process of vLLM with SIGKILL (in turn the engine core, the worker
and the HTTP server), lets the rest go on, and waits until a report is complete again.
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
from pedcxr_serve.demo.findings import sample
from tests.support.servers.live_server import alive, family, held_still, title
from tests.support.servers.local_server import LocalServer, server

AT_ONCE = 32
TYPED_S = 2.0  # promised with nothing else on the machine; 0.1 to 0.4 s are usual
BACK_S = 600.0  # separates a slow restart, of about 40 s on two idle cores, from none at all
CODES = {"engine_lost", "engine_restarting", "not_ready", "engine_aborted"}
VICTIMS = ("EngineCore", "Worker", "vllm_main")
HEAD = (
    f"{'round':>5} {'killed':>12} {'all ended in':>12} {'refused':>8} {'ready after':>12}  outcomes of the 32 requests"
)
_SEED = 9_500_000


@dataclass(frozen=True)
class Outcome:
    """The end of one request.

    Attributes:
        result: ``complete``, or the error code.
        time: `time.monotonic` value of the end.
    """

    result: str
    time: float


@dataclass(frozen=True)
class Round:
    """The effects of one kill.

    Attributes:
        victim: part of the title of the killed process.
        outcomes: the requests in flight at the kill.
        last_end_s: seconds from the kill until the last of these requests had ended.
        refused: number of requests refused with 503 and Retry-After during the restart.
        ready_s: seconds from the kill until a report was complete again.
    """

    victim: str
    outcomes: tuple[Outcome, ...]
    last_end_s: float
    refused: int
    ready_s: float

    def failures(self, typed_s: float = TYPED_S) -> list[str]:
        """Return the broken promises, in words; empty if all were kept.

        Args:
            typed_s: the longest time from the kill until the last request in flight has ended.
        """
        failures = [outcome.result for outcome in self.outcomes if outcome.result not in CODES | {"complete"}]
        if not any(outcome.result in CODES for outcome in self.outcomes):
            failures.append("no request was lost: none was in flight at the kill")
        if self.last_end_s > typed_s:
            failures.append(f"the last request ended after {self.last_end_s:.1f} s")
        if not self.refused:
            failures.append("no request was refused during the restart")
        return failures

    def row(self, number: int) -> str:
        """Return a row of the table under `HEAD`."""
        counts = Counter(outcome.result for outcome in self.outcomes)
        results = ", ".join(f"{count} {result}" for result, count in counts.most_common())
        times = f"{self.last_end_s:>10.2f} s {self.refused:>8} {self.ready_s:>10.1f} s"
        return f"{number:>5} {self.victim:>12} {times}  {results}"


def rounds(running: LocalServer, count: int) -> Iterator[Round]:
    """Kill the engine ``count`` times, and yield the effects of each kill."""
    for number in range(count):
        yield asyncio.run(_round(running, VICTIMS[number % len(VICTIMS)]))


async def _round(running: LocalServer, victim: str) -> Round:
    timeout = aiohttp.ClientTimeout(total=BACK_S)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        stop = asyncio.Event()
        tasks = [asyncio.create_task(_report_until(session, running, number, stop)) for number in range(AT_ONCE)]
        pid, killed = await _kill(session, running, victim, tasks)
        stop.set()
        outcomes = await asyncio.gather(*tasks)
        refused = await _wait_for_report(session, running)
        assert not alive({pid})
        last_end_s = max((outcome.time for outcome in outcomes), default=killed) - killed
        return Round(victim, tuple(outcomes), last_end_s, refused, time.monotonic() - killed)


async def _kill(
    session: aiohttp.ClientSession, running: LocalServer, victim: str, tasks: list[asyncio.Task[Outcome]]
) -> tuple[int, float]:
    """Kill the process while at least half of the requests are in the engine; return its id and the time."""
    end = time.monotonic() + BACK_S
    while True:
        while await _running_requests(session, running) < AT_ONCE / 2:
            for task in tasks:
                assert not task.done(), f"a request ended before the kill: {task.result()}"
            assert time.monotonic() < end, "the engine never had half of the requests at once"
            await asyncio.sleep(0.1)
        # The page may be old by now: this process, too, may have stood still. While the engine core is suspended, no
        # further report can end. Its last outputs may still be on the way to the HTTP server, which counts them.
        with held_still(running.process.pid):
            count, before = await _running_requests(session, running), -1
            while count != before:
                count, before = await _running_requests(session, running), count
            if count >= AT_ONCE / 2:
                [pid] = [pid for pid in family(running.process.pid) if victim in title(pid)][:1]
                killed = time.monotonic()
                os.kill(pid, signal.SIGKILL)
                return pid, killed


async def _wait_for_report(session: aiohttp.ClientSession, running: LocalServer) -> int:
    """Repeat a request until its report is complete; return how often it was refused with 503."""
    refused, end = 0, time.monotonic() + BACK_S
    while True:
        async with session.get(running.root + "/health/live") as live:
            assert live.status == 200
        async with session.post(running.url + "/chat/completions", json=body(_SEED, stream=False)) as answer:
            content = await answer.json()
            if answer.status == 200 and content["choices"][0]["finish_reason"] == "stop":
                return refused
            assert content["error"]["code"] in CODES, answer.status
            refused += answer.status == 503 and int(answer.headers["Retry-After"]) >= 1
        assert time.monotonic() < end, "the engine was not restarted"
        await asyncio.sleep(0.25)


async def _report_until(
    session: aiohttp.ClientSession, running: LocalServer, number: int, stop: asyncio.Event
) -> Outcome:
    """Request one report after the other until ``stop``; return the outcome of the last."""
    request = body(_SEED + number, stream=bool(number % 2))
    while (outcome := await _send(session, running, request)).result == "complete" and not stop.is_set():
        pass
    return outcome


async def _send(session: aiohttp.ClientSession, running: LocalServer, request: dict[str, object]) -> Outcome:
    async with session.post(running.url + "/chat/completions", json=request) as answer:
        data = await answer.read()
    complete = b'"finish_reason":"stop"' in data and (not request["stream"] or b"data: [DONE]" in data)
    code = next((code for code in CODES if f'"code": "{code}"'.encode() in data), None)
    return Outcome(
        "complete" if complete and not code else code or f"untyped, status {answer.status}", time.monotonic()
    )


async def _running_requests(session: aiohttp.ClientSession, running: LocalServer) -> int:
    """Return the number of requests in the engine's batch; 0 if the engine was too busy to answer the gateway."""
    async with session.get(running.metrics_url) as answer:
        page = await answer.text()
    lines = [line for line in page.splitlines() if line.startswith("vllm:num_requests_running{")]
    return sum(int(float(line.split()[-1])) for line in lines)


def body(seed: int, *, stream: bool) -> dict[str, object]:
    """Return the request body for the report of a drawn film."""
    case = sample(seed)
    # Bytes behind the image make each film a new one: a film that is in flight at two deaths is refused for an hour.
    png = drawing.encode_png(drawing.render(case, seed)) + os.urandom(8)
    url = "data:image/png;base64," + base64.b64encode(png).decode()
    return {"messages": prompts.messages(prompts.card(case.age, case.sex), url), "stream": stream}


def main() -> int:
    """Run the drill; return 1 if a promise was broken or the server failed."""
    parser = argparse.ArgumentParser("python -m tests.drills.kill_engine")
    parser.add_argument("--rounds", type=int, default=10, choices=range(1, 101), metavar="N")
    count = parser.parse_args().rounds
    failures = 0
    with server("--restart-wait-s", "2") as running:
        print(HEAD, flush=True)
        for number, effects in enumerate(rounds(running, count), 1):
            print(effects.row(number), flush=True)
            for failure in effects.failures():
                failures += 1
                print(f"      FAILURE: {failure}", flush=True)
        status = running.stop(signal.SIGTERM)
    print(f"{count} kills, {failures} failures; exit status of the server: {status}")
    return 1 if failures or status else 0


if __name__ == "__main__":
    sys.exit(main())
