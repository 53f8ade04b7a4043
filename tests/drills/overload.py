"""Twice the load that the server can carry, then a soak: ``make drill``, or ``python -m tests.drills.overload``.

The server runs the demo checkpoint and refuses requests that would wait longer than two seconds. ``pedcxr bench``
finds the knee and sends the load. At twice the rate of the knee, goodput must hold, every refusal must be a 429 or 503
with Retry-After, memory must be flat, and the server must have recovered within 5 seconds of the last request. At 80 %,
no request may fail, and neither memory nor the number of open files may grow.

What was not tested or measured is a failure. So is an INVALID run of ``pedcxr bench``, such as one whose load generator
was late: its load is not the one that the drill states.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pedcxr_client.bench import figures, results, schedule, watch
from pedcxr_client.bench.figures import StageRun
from pedcxr_client.bench.send import REFUSED, Sample
from pedcxr_client.bench.workload import Objectives
from tests.support.bench_command import BenchCommand
from tests.support.servers.local_server import LocalServer, server

MAX_WAIT_S = "2"
OBJECTIVES = Objectives(ttft=3.0, e2e=15.0)
GOODPUT, RECOVERY_S = 0.9, 5.0
FLAT, SOAK_GROWTH = 0.05, 0.01
_PROBE_EVERY_S = 0.5
_SETTLED_S = 20.0  # idle connections between gateway and engine close after 15 s
_LIMIT_S = 180.0


@dataclass(frozen=True)
class Overload:
    """The part of a run that was offered too much, and the probes after it.

    Attributes:
        seconds: length of the load; requests that were due later are probes.
        memory: resident MiB of each process, once a second.
    """

    run: StageRun
    seconds: float
    memory: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @property
    def _load(self) -> list[Sample]:
        return [sample for sample in self.run.samples if sample.scheduled < self.run.begin + self.seconds]

    @property
    def _probes(self) -> list[Sample]:
        probes = [sample for sample in self.run.samples if sample.scheduled >= self.run.begin + self.seconds]
        return sorted(probes, key=lambda sample: sample.scheduled)

    @property
    def refused(self) -> list[Sample]:
        """The refused requests of the load."""
        return [sample for sample in self._load if sample.outcome in REFUSED]

    def goodput(self, slo: Objectives) -> float:
        """Return the reports per second that meet the objectives, of those that ended in the last 90 % of the load."""
        low, high = self.run.begin + 0.1 * self.seconds, self.run.begin + self.seconds
        return sum(low < sample.done <= high and figures.meets(sample, slo) for sample in self._load) / (high - low)

    def recovery_s(self, slo: Objectives) -> float | None:
        """Return the seconds from the load's end to the probe from which on all meet the objectives, or None."""
        start = None
        for sample in self._probes:
            if not figures.meets(sample, slo):
                start = None
            elif start is None:
                start = sample.scheduled - self.run.begin - self.seconds
        return start

    def growth(self) -> dict[str, float]:
        """Return the growth of each process's memory: the last fifth of the load over its second fifth."""
        growth = {}
        for name, values in self.memory.items():
            fifth = len(values) // 5
            if fifth:
                growth[name] = statistics.mean(values[-fifth:]) / statistics.mean(values[fifth : 2 * fifth]) - 1
        return growth

    def failures(self, knee: float, slo: Objectives) -> list[str]:
        """Return the broken promises, in words. ``knee`` is the goodput at the knee, per second."""
        failures = []
        if (share := self.goodput(slo) / knee) < GOODPUT:
            failures.append(f"goodput is {share:.0%} of that at the knee")
        others = Counter(sample.outcome for sample in self.run.samples if sample.outcome not in ("ok", *REFUSED))
        failures += [f"{count} requests ended as {outcome}" for outcome, count in others.items()]
        if not self.refused:
            failures.append("no request was refused: this is no overload")
        if bad := [sample for sample in self.refused if sample.retry_after is None or sample.retry_after < 1]:
            failures.append(f"{len(bad)} refusals without Retry-After, the first: {bad[0].message}")
        if not self.growth():
            failures.append("memory was not measured")
        failures += [f"memory of {name} grew by {value:.1%}" for name, value in self.growth().items() if value > FLAT]
        recovery = self.recovery_s(slo)
        if recovery is None or recovery > RECOVERY_S:
            failures.append(f"recovery took {recovery} s" if recovery is not None else "the server did not recover")
        return failures


@dataclass(frozen=True)
class Soak:
    """The result of a soak, and the open files of each process of the idle server before and after it."""

    stage: Mapping[str, Any]
    files: tuple[Mapping[str, int], Mapping[str, int]]

    def failures(self) -> list[str]:
        """Return the broken promises, in words."""
        values = self.stage["figures"]
        others = {outcome: count for outcome, count in values["outcomes"].items() if outcome != "ok"}
        before, after = self.files
        facts = {"reports": values["outcomes"].get("ok"), "memory": values["rss_growth"], "open files": all(self.files)}
        failures = [f"no {name} measured" for name, value in facts.items() if not value]
        failures += [f"{count} requests ended as {outcome}" for outcome, count in others.items()]
        failures += [
            f"memory of {name} grew by {growth:.2%}"
            for name, growth in values["rss_growth"].items()
            if growth > SOAK_GROWTH
        ]
        failures += [
            f"{name} has {after.get(name, 0)} open files, {count} before"
            for name, count in before.items()
            if after.get(name, 0) > count
        ]
        return failures


class Bench:
    """The loads of the drill, against one server.

    Args:
        slo: objectives of every run.

    Attributes:
        invalid: why runs are INVALID.
    """

    def __init__(self, running: LocalServer, folder: Path, slo: Objectives = OBJECTIVES) -> None:
        self.slo, self._pid, self._folder = slo, running.process.pid, folder
        self._bench = BenchCommand.of(running, folder, "--slo-ttft", str(slo.ttft), "--slo-e2e", str(slo.e2e))
        self.invalid: list[str] = []

    def _run(self, mode: str, *options: str, **load: Any) -> dict[str, Any]:
        result = self._bench(mode, *options, **({"load": load} if load else {}))
        self.invalid += [f"{mode}: INVALID: {reason}" for reason in result["reasons"]]
        return result

    def knee(self, seconds: float, most: int) -> tuple[int, float]:
        """Return the requests in flight at the knee and the goodput there."""
        result = self._run("knee", "--seconds", str(seconds), "--most", str(most))
        in_flight = int(result["knee"]["in_flight"])
        [stage] = [stage for stage in result["stages"] if stage["in_flight"] == in_flight]
        return in_flight, float(stage["figures"]["goodput"])

    def closed(self, in_flight: int, seconds: float) -> float:
        """Return the goodput with this many requests in flight."""
        result = self._run("run", kind="closed", in_flight=in_flight, seconds=seconds)
        return float(result["stages"][0]["figures"]["goodput"])

    def overload(self, rate: float, seconds: float, probes: int = 30) -> Overload:
        """Send at this rate for this long, and then a probe every half second."""
        after = (seconds + _PROBE_EVERY_S * number for number in range(1, probes + 1))
        times = (*schedule.poisson(rate, seconds, 1).times, *after)
        trace = self._folder / "times.txt"
        trace.write_text("\n".join(map(repr, times)))
        memory: dict[str, list[float]] = {}
        with _sampled(self._pid, memory):
            result = self._run("run", kind="trace", file=str(trace))
        return Overload(results.stages(result)[0], seconds, memory)

    def soak(self, rate: float, seconds: float) -> Soak:
        """Run ``pedcxr bench soak``, which sends at 80 % of this rate."""
        before = settled_files(self._pid)
        result = self._run("soak", "--rate", str(rate), "--seconds", str(seconds))
        return Soak(result["stages"][0], (before, settled_files(self._pid)))


@contextmanager
def _sampled(pid: int, memory: dict[str, list[float]]) -> Iterator[None]:
    """Append the resident MiB of each process of the server once a second during the block."""
    stop = threading.Event()

    def follow() -> None:
        while not stop.wait(1):
            for name, process in _named(pid).items():
                memory.setdefault(name, []).append(process.rss_mib)

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _named(pid: int) -> dict[str, watch.Process]:
    return figures.by_name(watch.processes(pid))


def settled_files(pid: int) -> dict[str, int]:
    """Return the open files of each process, once they have been the same for 20 seconds."""
    end = time.monotonic() + _LIMIT_S
    counts, since = _files(pid), time.monotonic()
    while time.monotonic() - since < _SETTLED_S and time.monotonic() < end:
        time.sleep(0.5)
        if (now := _files(pid)) != counts:
            counts, since = now, time.monotonic()
    return counts


def _files(pid: int) -> dict[str, int]:
    return {name: process.files for name, process in _named(pid).items()}


def drill(
    bench: Bench, *, seconds: float, soak_seconds: float, knee_seconds: float = 10.0, most: int = 64
) -> list[str]:
    """Run both parts, print their figures and return the broken promises."""
    print("knee", flush=True)
    in_flight, before = bench.knee(knee_seconds, most)
    print("overload", flush=True)
    overload = bench.overload(2 * before, seconds)
    # The machine's speed varies: the load of the knee is measured again, and the mean counts.
    knee = (before + bench.closed(in_flight, knee_seconds)) / 2
    failures = [f"overload: {failure}" for failure in overload.failures(knee, bench.slo)]
    goodput, recovery = overload.goodput(bench.slo), overload.recovery_s(bench.slo)
    statuses = Counter(sample.status for sample in overload.refused)
    print(f"  {in_flight} in flight at the knee, {knee:.2f} reports per second that meet {bench.slo.text()}")
    print(f"  {2 * before:.2f} requests per second for {seconds:g} s: goodput {goodput:.2f}, {goodput / knee:.0%}")
    print(f"  refused: {', '.join(f'{count} with {status}' for status, count in statuses.items()) or 'none'}")
    print(f"  memory: {_percent(overload.growth())}; recovery: {recovery} s after the load", flush=True)
    if soak_seconds:
        print("soak", flush=True)
        soak = bench.soak(knee, soak_seconds)
        failures += [f"soak: {failure}" for failure in soak.failures()]
        print(f"  {0.8 * knee:.2f} requests per second for {soak_seconds:g} s: {soak.stage['figures']['outcomes']}")
        print(f"  memory: {_percent(soak.stage['figures']['rss_growth'])}")
        print(f"  open files before and after: {soak.files[0]} {soak.files[1]}", flush=True)
    failures += bench.invalid
    for failure in failures:
        print(f"      FAILURE: {failure}")
    return failures


def _percent(growth: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:+.2%}" for name, value in growth.items())


def main() -> int:
    """Run the drill; return 1 if a promise was broken."""
    parser = argparse.ArgumentParser("python -m tests.drills.overload", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0, help="of twice the knee's rate")
    parser.add_argument("--soak-minutes", type=float, default=20.0, help="of 80 %% of the knee's rate; 0 skips it")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="drill-") as name, server("--max-wait-s", MAX_WAIT_S) as running:
        return bool(drill(Bench(running, Path(name)), seconds=60 * args.minutes, soak_seconds=60 * args.soak_minutes))


if __name__ == "__main__":
    sys.exit(main())
