"""Two replicas with real vLLM and the demo checkpoint behind HAProxy: a part of ``make drill``.

First the simulation of a fleet is compared with this one. ``pedcxr bench`` measures three loads, the model of a replica
is fitted to the smallest and the largest, and the simulated rate at the one between must be within 15 %. The replicas
share the machine's cores, so that the fit contains what each takes from the other. They leave the load generator too
little of two cores: an INVALID run is printed and is no failure.

Then both replicas restart in turn under load: no request may be lost, and the p99 may be twice that of a steady load.
Last, one is killed under load: only what it had open may be lost, each request with a typed error or as a cut stream.
HAProxy must be installed.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pedcxr_serve.planner import measurement
from pedcxr_serve.planner.measurement import Measurement
from tests.drills.fleet.drills import local_fleet
from tests.drills.fleet.simulation import Fleet, fitted
from tests.drills.kill_engine import body
from tests.support.bench_command import BenchCommand
from tests.support.servers.fleet_load import Killing, Load, under_load

REPLICAS, USERS = 2, 8
LOADS = (8, 16, 32)  # the model is fitted to the first and the last
TOLERANCE = 0.15
_FIRST_SEED = 9_700_000


def compare(bench: BenchCommand, *, seconds: float, rounds: int) -> list[str]:
    """Return what is wrong with the simulated rate at the load that the model was not fitted to."""
    by_load: dict[int, list[measurement.Load]] = {in_flight: [] for in_flight in LOADS}
    for number in range(rounds):  # in turns, so that a change of the machine reaches all loads
        for in_flight in LOADS if number % 2 else reversed(LOADS):
            bench("run", load={"kind": "closed", "in_flight": in_flight, "seconds": seconds})
            by_load[in_flight] += measurement.read([bench.result_file]).loads
    points = {in_flight: _of_one_replica(loads) for in_flight, loads in by_load.items()}
    low, between, high = LOADS
    times = fitted(Measurement((points[low], points[high]), doubts=()))
    failures = []
    for in_flight, point in points.items():
        fleet = Fleet("requests", REPLICAS, {"one": 1}, times)
        fleet.clients({"one": in_flight})
        fleet.run(60)
        simulated, measured = fleet.run(600).rate, REPLICAS * point.rate
        deviation = simulated / measured - 1
        use = "predicted" if in_flight == between else "fitted"
        print(f"{in_flight} in flight: {measured:.2f} reports/s, simulated {simulated:.2f} ({deviation:+.1%}, {use})")
        if in_flight == between and abs(deviation) > TOLERANCE:
            failures.append(f"the simulated rate deviates by {deviation:+.1%}")
    return failures


def _of_one_replica(loads: list[measurement.Load]) -> measurement.Load:
    """Return the mean of several measurements of one load, for each replica."""
    return replace(
        loads[0],
        in_flight=loads[0].in_flight // REPLICAS,
        rate=statistics.fmean(one.rate for one in loads) / REPLICAS,
        ttft=statistics.fmean(one.ttft for one in loads),
        tpot=statistics.fmean(one.tpot for one in loads),
        lengths=tuple(length for one in loads for length in one.lengths),
    )


def disturb(url: str, event: Callable[[], object], reports: int) -> Load:
    """Run an event between reports of `USERS` clients; return what they saw."""
    seeds = itertools.count(_FIRST_SEED)

    def make_body(stream: bool) -> bytes:
        return json.dumps(body(next(seeds), stream=stream)).encode()

    seen = Load()
    asyncio.run(
        under_load({"": url}, {"": seen}, USERS, event, before=reports, after=reports, make_body=make_body)
    )  # fmt: skip
    return seen


def kill(url: str, fleet: Any) -> list[str]:
    """Kill a replica under load; return what was lost beyond the requests that it had open."""
    killing = Killing(fleet.replicas[0], fleet.replicas[1:])
    seen = disturb(url, killing, reports=4 * USERS)
    print(f"killed with {killing.opened} requests open: {seen.summary()}", flush=True)
    faults = killing.faults(seen)
    if len(seen.hit) > USERS:
        faults.append(f"{len(seen.hit)} requests were hit, {killing.opened} were open")
    return [f"kill: {fault}" for fault in faults]


def main() -> int:
    """Run the drill; return 1 if a promise was broken, 2 without HAProxy."""
    parser = argparse.ArgumentParser("python -m tests.drills.fleet.real_engines", description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=2, help="of the three loads; 0 skips them")
    args = parser.parse_args()
    if shutil.which("haproxy") is None:
        print("haproxy is not installed (Debian, Ubuntu: apt-get install haproxy)", file=sys.stderr)
        return 2
    command = [sys.executable, "-m", "pedcxr_serve", "start", "--device", "cpu"]
    with (
        tempfile.TemporaryDirectory(prefix="drill-") as name,
        local_fleet.running(command, REPLICAS) as (fleet, balancers),
    ):
        url = balancers["haproxy"].url
        pages = [replica.metrics_url for replica in fleet.replicas]
        bench = BenchCommand(f"{url}/v1", pages, Path(name))
        failures = compare(bench, seconds=args.seconds, rounds=args.rounds) if args.rounds else []
        steady = disturb(url, lambda: time.sleep(args.seconds), reports=4 * USERS)
        begin = time.monotonic()
        restart = disturb(url, fleet.rolling_restart, reports=4 * USERS)
        ratio = restart.p99 / steady.p99
        print(f"steady: {steady.summary()}")
        print(
            f"both restarted in turn, {time.monotonic() - begin:.0f} s: {restart.summary()}, {ratio:.1f} x", flush=True
        )
        failures += [f"restart: {one}" for one in restart.failures]
        failures += [f"restart: the p99 is {ratio:.1f} x the steady one"] if ratio > 2 else []
        failures += kill(url, fleet)
    for failure in failures:
        print(f"FAILURE: {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
