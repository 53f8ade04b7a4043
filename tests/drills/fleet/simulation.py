"""A discrete-event simulation of a fleet: ``python -m tests.drills.fleet.simulation`` prints a table.

``--plot FILE`` also draws it. A replica is that of `pedcxr_serve.planner`: with the times that the planner gives the
published model on a GPU, and the gateway's own queue. Clients are closed loops: each sends its next request when one
has ended. 1,000 replicas with 256 slots take ten minutes of one core per balancer.

Balancers: ``requests`` sends a request to the replica with the fewest open ones, ties at random (of 24, if there are
over 64 replicas); ``better-of-two`` compares two; ``in-turn`` takes them in turn; ``connections`` sends the requests of
a tenant over 16 connections, each pinned to a replica, as a balancer of TCP connections does.

`tests/deploy/test_fleet_simulation.py` compares it with real gateways before fake engines, and the drill ``vllm`` of
`drills` with real engines. Not simulated: the network, and cores that processes share.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import math
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist

from pedcxr_client.bench.charts import Series, lines
from pedcxr_serve.checkpoint import inspect
from pedcxr_serve.config import load
from pedcxr_serve.demo import CHECKPOINT
from pedcxr_serve.gateway.auth.tenants import Tenant
from pedcxr_serve.gateway.scheduler import OUTPUT_COST
from pedcxr_serve.planner import capacity, devices, plan, simulate
from pedcxr_serve.planner.measurement import Measurement
from pedcxr_serve.planner.replica_model import Agenda, Replica, Request, RunningReplica
from tests.drills.fleet.sheet import sheet
from tests.support import checkpoint_folders

BALANCERS = ("requests", "better-of-two", "in-turn", "connections")
CONNECTIONS = 16
_PROMPT_TOKENS = 300
_WARM_UP, _MEASURED = 4.0, 3.0  # in units of the time that a report takes with all slots in use
_LEAST_S = 20.0
_MEAN_LOG, _SPREAD_LOG = 5.78, 0.385  # of the tokens of a report: a mean of 350, a standard deviation of 140


def planned(gpu: str) -> Replica:
    """Return the replica that the planner expects of the published model on a GPU, with reports of 350 tokens."""
    quantile = NormalDist(_MEAN_LOG, _SPREAD_LOG).inv_cdf
    lengths = [round(math.exp(quantile((number + 0.5) / 500))) for number in range(500)]
    with tempfile.TemporaryDirectory(prefix="model-") as name:
        model = Path(name)
        checkpoint = inspect.inspect(checkpoint_folders.medgemma_4b(model))
        assert checkpoint.shape is not None
        engine = plan.make(
            checkpoint, devices.TABLE[gpu], load.load(None, {}), model_dir=model, socket=model / "socket"
        )
        return capacity.replica(engine, checkpoint.shape, lengths)


def fitted(measured: Measurement) -> Replica:
    """Return a replica of the demo checkpoint on this machine's CPU that reproduces measured loads."""
    checkpoint = inspect.inspect(CHECKPOINT)
    assert checkpoint.shape is not None
    device, config = devices.detect("cpu"), load.load(None, {})
    engine = plan.make(checkpoint, device, config, model_dir=CHECKPOINT, socket=Path("/run/engine.sock"))
    return capacity.measured_replica(engine, checkpoint.shape, measured)


@dataclass(frozen=True)
class Window:
    """What a fleet did in a time.

    Attributes:
        rate: reports per second.
        shares: of the service that left the queues, by tenant.
        waits: seconds in the queue of each request that ended.
    """

    rate: float
    shares: Mapping[str, float]
    waits: Sequence[float]


@dataclass
class Fleet:
    """Replicas behind a balancer, and closed-loop tenants.

    Attributes:
        weights: of the tenants, by name.
    """

    balancer: str
    replicas: int
    weights: Mapping[str, float]
    times: Replica
    seed: int = 1

    def __post_init__(self) -> None:
        self._agenda = Agenda()
        self._random = random.Random(self.seed)
        self._up = [RunningReplica(self.times, self._agenda, self._end) for _ in range(self.replicas)]
        self._tenants = {
            name: Tenant(name, weight=weight, max_concurrent=10**9) for name, weight in self.weights.items()
        }
        self._turn = itertools.count()
        self._pins: dict[str, list[RunningReplica]] = {}
        self._waits: list[float] = []  # of the requests that ended

    def run(self, seconds: float) -> Window:
        """Simulate for a time."""
        before = self._service()
        self._waits = []
        self._agenda.run(self._agenda.now + seconds)
        service = self._service() - before
        shares = {tenant: cost / service.total() for tenant, cost in service.items()}
        return Window(len(self._waits) / seconds, shares, self._waits)

    def clients(self, counts: Mapping[str, int]) -> None:
        """Add closed loops of tenants, by name, in random order."""
        tenants = list(Counter(counts).elements())
        self._random.shuffle(tenants)
        for tenant in tenants:
            self._send(tenant)

    def lose_replica(self) -> int:
        """End the first replica; return the number of requests that are lost. Their clients send the next ones."""
        lost = self._up.pop(0).lose()
        for request in lost if self._up else []:
            self._send(request.tenant.name)
        return len(lost)

    def _service(self) -> Counter[str]:
        total = Counter[str]()
        for replica in self._up:
            total.update(replica.service())  # type: ignore[arg-type] # costs are floats
        return total

    def _end(self, request: Request) -> None:
        self._waits.append(request.wait_s)
        self._send(request.tenant.name)

    def _send(self, tenant: str) -> None:
        tokens = self._random.choice(self.times.lengths)
        cost = _PROMPT_TOKENS + OUTPUT_COST * tokens
        self._choose(tenant).take(Request(self._tenants[tenant], tokens, self._agenda.now, cost))

    def _choose(self, tenant: str) -> RunningReplica:
        up = self._up
        if self.balancer == "connections":
            pins = self._pins.setdefault(tenant, self._random.choices(up, k=CONNECTIONS))
            at = self._random.randrange(CONNECTIONS)
            if self.replicas > len(up) and pins[at] not in up:
                pins[at] = self._random.choice(up)
            return pins[at]
        if self.balancer == "in-turn":
            return up[next(self._turn) % len(up)]
        if self.balancer == "better-of-two":
            sample = self._random.sample(up, min(2, len(up)))
        else:  # with replacement, which is fast; two of 24 are seldom the same
            sample = up if len(up) <= 64 else self._random.choices(up, k=24)
        fewest = min(one.open for one in sample)
        return self._random.choice([one for one in sample if one.open == fewest])


def full_rate(times: Replica) -> float:
    """Return the reports per second of a replica that is never short of requests."""
    return simulate.simulate(times, in_flight=4 * times.slots, reports=max(5000, 20 * times.slots)).rate


def warmed(balancer: str, replicas: int, times: Replica, full: float, clients: Mapping[str, int]) -> Fleet:
    """Return a fleet with clients of the tenants ``one`` and ``three``, of weights 1 and 3, after a warm-up.

    Args:
        full: reports per second of a replica whose slots are all in use.
    """
    gc.collect()  # the fleet before
    fleet = Fleet(balancer, replicas, {"one": 1, "three": 3}, times)
    fleet.clients(clients)
    fleet.run(_WARM_UP * times.slots / full)
    return fleet


def saturated(balancer: str, replicas: int, times: Replica, full: float) -> Fleet:
    """Return a fleet, see `warmed`, whose two tenants both ask for more than their share."""
    slots = times.slots * replicas
    return warmed(balancer, replicas, times, full, {"one": int(1.5 * slots), "three": int(1.25 * slots)})


@dataclass(frozen=True)
class Row:
    """What a balancer makes of a number of replicas.

    Attributes:
        rate: reports per second of the saturated fleet, as a share of all slots in use.
        share: what the tenant with three quarters of the weight got.
        wait_s: p99 of the time in the queue, with one client for each of 90 % of the slots.
        lost: share of the open requests that end with one replica, at 1.5 clients per slot.
    """

    balancer: str
    replicas: int
    rate: float
    share: float
    wait_s: float
    lost: float

    def __str__(self) -> str:
        """Return the row of the table under `HEAD`."""
        figures = f"{self.rate:.0%} | {self.share:.1%} | {self.wait_s:.1f} s | {self.lost:.1%}"
        return f"| {self.balancer} | {self.replicas:,} | {figures} |"


def row(balancer: str, replicas: int, times: Replica, full: float) -> Row:
    """Simulate the three loads; ``full`` is that of `warmed`."""
    slots = times.slots * replicas
    seconds = max(_MEASURED * times.slots / full, _LEAST_S)
    busy = saturated(balancer, replicas, times, full).run(seconds)
    most = warmed(balancer, replicas, times, full, {"one": int(0.9 * slots)}).run(seconds)
    waits = sorted(most.waits)
    clients = int(1.5 * slots)
    lost = warmed(balancer, replicas, times, full, {"one": clients}).lose_replica() / clients
    rate = busy.rate / (full * replicas)
    return Row(balancer, replicas, rate, busy.shares["three"], waits[int(0.99 * len(waits))], lost)


HEAD = """| balancer | replicas | of the full rate | tenant with 3/4 | p99 wait at 90 % load | lost with one replica |
|---|---|---|---|---|---|"""


def plot(rows: Sequence[Row]) -> str:
    """Return an SVG with a chart of each column against the number of replicas."""
    columns: list[tuple[str, str, Callable[[Row], float]]] = [
        ("Reports per second of the saturated fleet", "% of the full rate", lambda row: 100 * row.rate),
        ("Share of the tenant with 3/4 of the weight", "%", lambda row: 100 * row.share),
        ("p99 wait at 90 % load", "seconds", lambda row: row.wait_s),
        ("Open requests lost with one replica", "%", lambda row: 100 * row.lost),
    ]
    charts = []
    for title, unit, value in columns:
        series = [
            Series(balancer, [(row.replicas, value(row)) for row in rows if row.balancer == balancer])
            for balancer in BALANCERS
        ]
        charts.append((title, lines(series, "replicas", unit, log_x=True)))
    return sheet(charts)


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser("python -m tests.drills.fleet.simulation")
    parser.add_argument("replicas", type=int, nargs="*", default=[1, 2, 8, 64])
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a chart of each column, as SVG")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="processes")
    parser.add_argument("--gpu", default="h100", choices=sorted(devices.TABLE), help="of each replica (default h100)")
    parser.add_argument("--slots", type=int, metavar="N", help="of each replica (default: those of the plan)")
    args = parser.parse_args()
    gc.disable()  # there are millions of requests; only the fleets themselves are cycles, which `row` collects
    times = planned(args.gpu)
    times = replace(times, slots=args.slots or times.slots)
    full = full_rate(times)
    print(f"{times.slots} slots, {full:.2f} reports per second each\n\n{HEAD}")
    rows = []
    with ProcessPoolExecutor(args.jobs) as pool:
        cells = [(balancer, replicas) for replicas in args.replicas for balancer in BALANCERS]
        for one in pool.map(row, *zip(*cells, strict=True), itertools.repeat(times), itertools.repeat(full)):
            rows.append(one)
            print(one, flush=True)
    if args.plot:
        args.plot.write_text(plot(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
