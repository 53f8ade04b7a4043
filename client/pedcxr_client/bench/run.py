"""Run stages against a server: lanes of a closed loop, scheduled requests of an open one, and what watches them."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import aiohttp

from pedcxr_client.bench import figures, schedule, watch
from pedcxr_client.bench.bodies import Draw, Supply
from pedcxr_client.bench.figures import StageRun
from pedcxr_client.bench.schedule import Stage
from pedcxr_client.bench.send import REFUSED, Sample, Target
from pedcxr_client.bench.watch import ClockCheck, Lag, Metrics
from pedcxr_client.bench.workload import ALLOWABLE, Tenant
from pedcxr_client.errors import AuthenticationFailed, BadRequest, ConnectionFailed, RequestError, ServerFailed

T = TypeVar("T")

DEAD_AFTER = 20
"""Failures to connect or to get a response, one after the other, after which a stage ends: the server is gone."""
_LONGEST_PAUSE_S = 5.0  # of a lane that was refused
_SHORTEST_PAUSE_S = 0.1
CTRL_C = "stopped by Ctrl-C"
GONE = "the server no longer answers"


@dataclass(slots=True)
class Record:
    """Everything that a run measured; raw, so that every figure can be derived again.

    Attributes:
        alone: the first films, sent one at a time.
        server: what the server says about itself.
        interrupted: why the run ended early, or ""; ``server_is_gone`` if it was for that reason.
        clock_step_s: by how much the system's clock was set.
    """

    alone: list[Sample] = field(default_factory=list)
    stages: list[StageRun] = field(default_factory=list)
    server: dict[str, object] = field(default_factory=dict)
    interrupted: str = ""
    server_is_gone: bool = False
    clock_step_s: float = 0.0
    started: float = field(default_factory=time.time)


class Knee(NamedTuple):
    """Where the rate of the server no longer grows.

    Attributes:
        in_flight: requests in flight; 0 if the user states the rate.
        is_reached: False if the search ended at ``--most``, its last load still the fastest.
    """

    in_flight: float
    reports_per_second: float
    is_reached: bool = True


class Interrupted(Exception):
    """The user pressed Ctrl-C, the server is gone, or no film is left; what was measured is in the record."""


Progress = Callable[[int, str], None]
"""Called after each request with the number of requests of the stage so far and the stage's name."""


def _no_progress(_count: int, _stage: str) -> None:
    pass


class Runner:
    """Runs stages with one supply of requests and one connection pool.

    Args:
        metrics: the server's metrics page.
        server_pid: process of a server on this machine, whose descendants are measured too; None for none.
    """

    def __init__(
        self,
        target: Target,
        supply: Supply,
        record: Record,
        *,
        metrics: Metrics,
        server_pid: int | None = None,
        progress: Progress = _no_progress,
    ) -> None:
        self.record = record
        self._target, self._supply, self._metrics = target, supply, metrics
        self._pid, self._progress = server_pid, progress
        self._clock_check = ClockCheck()
        self._stop = asyncio.Event()
        self._in_flight = 0

    def stop(self, why: str = CTRL_C) -> None:
        """End the current stage at once; its open requests are cancelled and counted."""
        if not self._stop.is_set():
            self.record.interrupted = f"{why}, {self._in_flight} requests in flight were cancelled"
            self.record.server_is_gone = why == GONE
        self._stop.set()

    async def alone(self, number: int) -> None:
        """Send the first films one at a time. Raise a RequestError if the server refuses the first of them."""
        for draw in self._supply.alone(number):
            sample = await self._unless_stopped(self._target.send(draw))
            if sample is None:
                raise Interrupted(self.record.interrupted)
            self.record.alone.append(sample)
            if not sample.is_ok:
                _raise(sample)
            self._progress(len(self.record.alone), "alone")

    async def stage(self, stage: Stage) -> StageRun:
        """Run a stage, add it to the record and return it. Raise Interrupted after a stage that was cut short."""
        run = StageRun(stage, [], self._target.clock(), 0.0)
        self.record.stages.append(run)
        run.calibration_s = [watch.calibrate() for _ in range(3)]
        run.scrapes.before = await self._metrics.counters()
        before, lag = watch.processes(self._pid), Lag()
        watchers = [
            asyncio.create_task(self._metrics.follow(run.scrapes, self._target.clock)),
            asyncio.create_task(lag.follow()),
        ]
        cpu = time.thread_time()
        run.begin = self._target.clock()
        try:
            await self._unless_stopped(self._open(run) if stage.is_open else self._closed(run))
        finally:
            run.end, run.own_cpu_s, run.lag_s = self._target.clock(), time.thread_time() - cpu, lag.values
            for watcher in watchers:
                watcher.cancel()
            await asyncio.gather(*watchers, return_exceptions=True)
            run.interrupted = run.interrupted or self.record.interrupted
            self.record.clock_step_s = self._clock_check.step_s()
        run.scrapes.after = await self._metrics.counters()
        run.processes = (before, watch.processes(self._pid))
        run.calibration_s += [watch.calibrate() for _ in range(3)]
        if run.interrupted:
            raise Interrupted(run.interrupted)
        return run

    async def _closed(self, run: StageRun) -> None:
        stage = run.stage
        end, latest = run.begin + stage.seconds, run.begin + stage.max_seconds

        def continues() -> bool:
            now = self._target.clock()
            return now < end or (now < latest and len(run.samples) < stage.min_requests + stage.in_flight)

        async def lane(tenant: Tenant | None) -> None:
            while continues() and (draw := self._next(run, tenant)) is not None:
                sample = await self._send(run, draw, self._target.clock())
                if sample.outcome in REFUSED:
                    await asyncio.sleep(min(max(sample.retry_after or 0.0, _SHORTEST_PAUSE_S), _LONGEST_PAUSE_S))

        async with asyncio.TaskGroup() as group:
            for tenant in self._supply.lanes(stage.in_flight):
                group.create_task(lane(tenant))

    async def _open(self, run: StageRun) -> None:
        async with asyncio.TaskGroup() as group:
            for time_s in run.stage.times:
                due = run.begin + time_s
                await asyncio.sleep(due - self._target.clock())
                if (draw := self._next(run)) is None:
                    break
                group.create_task(self._send(run, draw, due))

    def _next(self, run: StageRun, tenant: Tenant | None = None) -> Draw | None:
        draw = self._supply.next(tenant)
        if draw is None:
            run.interrupted = f"each of the {self._supply.limit} films was sent once, and the stage needs more"
        return draw

    async def _send(self, run: StageRun, draw: Draw, scheduled: float) -> Sample:
        self._in_flight += 1
        try:
            sample = await self._target.send(draw, scheduled)
        finally:
            self._in_flight -= 1
        run.samples.append(sample)
        self._progress(len(run.samples), run.stage.name)
        recent = run.samples[-DEAD_AFTER:]
        if len(recent) == DEAD_AFTER and all(one.status is None for one in recent):
            self.stop(GONE)
        return sample

    async def _unless_stopped(self, work: Coroutine[Any, Any, T]) -> T | None:
        """Return the result of the work, or cancel it and return None once `stop` is called."""
        task = asyncio.ensure_future(work)
        stopped = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait([task, stopped], return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() else None
        finally:
            for one in (task, stopped):
                one.cancel()
            await asyncio.gather(task, stopped, return_exceptions=True)


def _raise(sample: Sample) -> None:
    """Raise the error of a request that the server refused while it was idle: no load would change that."""
    words = f"tenant {sample.tenant}: {sample.message}"
    if sample.outcome == "connection":
        raise ConnectionFailed(f"the server cannot be reached: {sample.message}; check --url and that it runs")
    if sample.outcome == "authentication":
        raise AuthenticationFailed(f"the server rejected the API key of {words}", status_code=sample.status)
    if sample.outcome == "bad_request":
        raise BadRequest(f"the server rejected a film of {words}", status_code=sample.status)
    if sample.status != 200 or sample.outcome == "server":
        raise ServerFailed(f"the idle server did not answer {words}", status_code=sample.status)
    advice = f"; if that is expected, set reports.allow = [{sample.outcome!r}]" if sample.outcome in ALLOWABLE else ""
    raise RequestError(f"the report of {sample.case}, alone, is {sample.outcome}: {sample.message}{advice}")


@asynccontextmanager
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    """Open a connection pool without a limit, a proxy or cookies."""
    connector = aiohttp.TCPConnector(limit=0, ttl_dns_cache=300)
    jar = aiohttp.DummyCookieJar()
    async with aiohttp.ClientSession(connector=connector, cookie_jar=jar, read_bufsize=1 << 18) as opened:
        yield opened


@contextmanager
def on_ctrl_c(runner: Runner) -> Iterator[None]:
    """Let the first Ctrl-C or SIGTERM end the run in order; a second one kills it."""
    loop = asyncio.get_running_loop()

    def first() -> None:
        runner.stop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, first)
    except (ValueError, RuntimeError, NotImplementedError):  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


async def run_all(runner: Runner, stages: list[Stage]) -> None:
    """Run the stages in turn."""
    for stage in stages:
        await runner.stage(stage)


async def find_knee(runner: Runner, seconds: float, most: int) -> Knee:
    """Double the requests in flight until two loads in a row gain less than 5 %, or to ``most``; return the knee."""
    load, loads, rates, is_saturated = 1, [], [], False
    while load <= most:
        run = await runner.stage(schedule.closed(load, seconds))
        loads.append(load)
        rates.append(run.part_rates(lambda sample: sample.is_ok))
        is_saturated = figures.is_saturated([sum(parts) / len(parts) if parts else 0.0 for parts in rates])
        if is_saturated:
            break
        load *= 2
    at = figures.knee(loads, rates)
    parts = rates[loads.index(int(at))]
    return Knee(at, sum(parts) / len(parts) if parts else 0.0, is_saturated or at < loads[-1])
