"""The simulation of a fleet, held against real gateways before fake engines."""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from dataclasses import replace

import pytest

from pedcxr_serve.planner.replica_model import Replica
from tests.deploy.test_fleet import local_fleet, need
from tests.drills.fleet.simulation import BALANCERS, Fleet, full_rate, planned, row
from tests.support.paths import ROOT
from tests.support.servers.fleet_load import Load, drive

PIECES, GAP_S, SLOTS, REPLICAS, USERS = 10, 0.25, 4, 2, 12


def simulated_rate() -> float:
    """Reports per second of replicas whose reports all take 2.5 s, with more clients than slots."""
    times = Replica(prepare=0, step=GAP_S, decode=0, prompt=0, lengths=(PIECES,), slots=SLOTS)
    fleet = Fleet("requests", REPLICAS, {"anonymous": 1}, times)
    fleet.clients({"anonymous": USERS})
    fleet.run(10)
    return fleet.run(1000).rate


def test_rate_of_real_gateways_is_within_15_percent() -> None:
    need("haproxy")
    engine = ["--slots", str(SLOTS), "--pieces", str(PIECES), "--gap", str(GAP_S)]
    command = [sys.executable, "-m", "tests.support.servers.replica", "start", "--", *engine]

    async def rate(url: str) -> float:
        load = Load()
        driver = asyncio.create_task(drive(url, USERS, load, film_bytes=1000))
        await load.until(USERS)
        rates = []
        for _ in range(3):
            start, before = time.monotonic(), len(load.outcomes)
            await load.until(32)
            rates.append((len(load.outcomes) - before) / (time.monotonic() - start))
        load.stop.set()
        await driver
        assert load.failures == []
        return statistics.median(rates)  # a pause of a busy machine falls into one of the three

    with local_fleet.running(command, REPLICAS) as (_, balancers):
        measured = asyncio.run(rate(balancers["haproxy"].url))
    print(f"measured {measured:.2f}/s, simulated {simulated_rate():.2f}/s")
    # Reports take 2.5 s of waiting, so that a busy machine adds little to them.
    assert measured == pytest.approx(simulated_rate(), rel=0.15)


@pytest.mark.parametrize("slots", [8, pytest.param(256, marks=pytest.mark.slow)])
@pytest.mark.parametrize("balancer", BALANCERS)
def test_rate_of_eight_replicas_is_that_of_the_benchmarks_page(balancer: str, slots: int) -> None:
    many, _, few = (ROOT / "docs/benchmarks.md").read_text().partition("with 8 slots")
    times = replace(planned("h100"), slots=slots)
    simulated = row(balancer, 8, times, full_rate(times))
    name = {"requests": "fewest open requests"}.get(balancer, balancer.replace("-", " "))
    assert f"| {name} | 8 | {100 * simulated.rate:.0f} % |" in (few if slots == 8 else many)
    if slots == 256 and balancer != "connections":
        assert simulated.share == pytest.approx(0.75, abs=0.01)


def test_lost_replica_takes_its_requests_with_it_and_the_others_serve_on() -> None:
    times = Replica(prepare=0.01, step=0.1, decode=0, prompt=0.02, lengths=(5, 10), slots=4)
    fleet = Fleet("requests", 2, {"one": 1}, times)
    fleet.clients({"one": 12})
    fleet.run(20)
    assert fleet.lose_replica() == 6
    assert fleet.run(100).rate == pytest.approx(full_rate(times), rel=0.05)
