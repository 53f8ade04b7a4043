"""CPU time of each process of the server, per request and per event: the second part of ``make bench-overhead``.

Short and long reports of the demo checkpoint are measured in turns by ``pedcxr bench``. The difference of the CPU times
over the difference of the events is the cost of an event; what is left of a report is the cost of its request, the
film's preparation included. `pedcxr_serve.planner.roofline` uses the values of the gateway and of vLLM's API process.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.bench_command import BenchCommand
from tests.support.servers.local_server import server

SHORT, LONG = 8, 500
"""Largest number of tokens of a report; reports of the demo checkpoint end after about 45."""


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU time in milliseconds of one process."""

    request: float
    event: float


def costs(short: Mapping[str, Any], long: Mapping[str, Any]) -> dict[str, Cost]:
    """Return the costs by process, from two stages of results."""
    events = [_events(stage) for stage in (short, long)]
    by_process = {}
    for name, long_ms in long["figures"]["server_cpu_ms"].items():
        short_ms = short["figures"]["server_cpu_ms"].get(name)
        if short_ms is not None:
            event = (long_ms - short_ms) / (events[1] - events[0])
            by_process[name] = Cost(short_ms - events[0] * event, event)
    return by_process


def _events(stage: Mapping[str, Any]) -> float:
    """Return the mean number of events with text of a report."""
    return statistics.fmean(len(sample["gaps"]) + 1 for sample in stage["samples"] if sample["outcome"] == "ok")


def measure(bench: BenchCommand, *, in_flight: int, seconds: float, rounds: int) -> None:
    """Measure a server and print the table."""
    load = {"kind": "closed", "in_flight": in_flight, "seconds": seconds}
    by_round = []
    for _ in range(rounds):
        stages = [
            bench("run", load=load, reports={"max_tokens": tokens, "allow": ["truncated"]})["stages"][0]
            for tokens in (SHORT, LONG)
        ]
        by_round.append(costs(*stages))
    print(f"\n{'CPU time, median of the rounds':40}{'a request':>14}{'an event':>14}")
    for process in by_round[0]:
        request = statistics.median(one[process].request for one in by_round if process in one)
        event = statistics.median(one[process].event for one in by_round if process in one)
        print(f"{process:40}{request:>11.2f} ms{1e3 * event:>11.1f} us", flush=True)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.throughput.event_cost", description=__doc__)
    parser.add_argument("--in-flight", type=int, default=16, help="requests in flight")
    parser.add_argument("--seconds", type=float, default=10.0, help="least length of a run")
    parser.add_argument("--rounds", type=int, default=3, help="runs of short and of long reports, in turns")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as name, server() as running:
        bench = BenchCommand.of(running, Path(name))
        measure(bench, in_flight=args.in_flight, seconds=args.seconds, rounds=args.rounds)


if __name__ == "__main__":
    main()
