"""The simulation of a fleet, held against real gateways before fake engines."""

from __future__ import annotations

import asyncio
import sys
import time

import pytest

from tests.deploy.test_fleet import local_fleet, need
from tests.drills.fleet.simulation import BALANCERS, EngineModel, Fleet, saturated
from tests.support.servers.fleet_load import Load, drive

PIECES, GAP_S, SLOTS, REPLICAS, USERS = 10, 0.25, 4, 2, 12


def simulated_rate() -> float:
    """Reports per second of replicas whose reports all take 2.5 s, with more clients than slots."""
    model = EngineModel(slots=SLOTS, tokens=PIECES, spread=0, step_s=GAP_S, step_per_request_s=0)
    fleet = Fleet("requests", REPLICAS, {"anonymous": 1}, model)
    fleet.clients("anonymous", USERS)
    fleet.run(10)
    fleet.measuring = True
    fleet.run(1010)
    return fleet.completed / 1000


def test_rate_of_real_gateways_is_within_15_percent() -> None:
    need("haproxy")
    engine = ["--slots", str(SLOTS), "--pieces", str(PIECES), "--gap", str(GAP_S)]
    command = [sys.executable, "-m", "tests.support.servers.replica", "start", "--", *engine]

    async def rate(url: str) -> float:
        load = Load()
        driver = asyncio.create_task(drive(url, USERS, load, film_bytes=1000))
        await load.until(USERS)
        start, before = time.monotonic(), len(load.outcomes)
        await load.until(48)
        seconds, count = time.monotonic() - start, len(load.outcomes) - before
        load.stop.set()
        await driver
        assert load.failures == []
        return count / seconds

    with local_fleet.running(command, REPLICAS) as (_, balancers):
        measured = asyncio.run(rate(balancers["haproxy"].url))
    print(f"measured {measured:.2f}/s, simulated {simulated_rate():.2f}/s")
    # Reports take 2.5 s of waiting, so that a busy machine adds little to them.
    assert measured == pytest.approx(simulated_rate(), rel=0.15)


@pytest.mark.parametrize("balancer", BALANCERS)
def test_pinned_connections_lose_a_part_of_the_fleet(balancer: str) -> None:
    fleet = saturated(balancer, 8, seconds=10)
    rate = fleet.completed / 10 / (fleet.model.rate * 8)
    share = fleet.service["three"] / sum(fleet.service.values())
    if balancer == "connections":
        assert rate < 0.85
    else:
        assert rate > 0.95
        assert share == pytest.approx(0.75, abs=0.01)
