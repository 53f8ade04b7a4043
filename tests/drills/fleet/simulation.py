"""A discrete-event simulation of a fleet: ``python -m tests.drills.fleet.simulation`` prints a table.

``--plot FILE`` also draws it. The time grows with replicas and slots: 64 replicas with 256 slots take a minute of one
core per balancer, and so do 1,000 with 8.

A replica admits requests by the Virtual Token Counter of `pedcxr_serve.gateway.scheduler`, simplified, and runs them by
continuous batching: a step of a batch of b takes ``step_s + step_per_request_s * b``. The length of a report is
lognormal. Clients are closed loops: each sends its next request when one has ended.

Balancers: ``requests`` sends a request to the replica with the fewest open ones, ties at random (of 24, if there are
over 64 replicas); ``better-of-two`` compares two; ``in-turn`` takes them in turn; ``connections`` sends the requests of
a tenant over 16 connections, each pinned to a replica, as a balancer of TCP connections does.

`tests/deploy/test_fleet_simulation.py` compares it with real gateways before fake engines. Not simulated: preparation
of films, prefill, network.
"""

from __future__ import annotations

import argparse
import gc
import heapq
import itertools
import math
import random
import sys
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from pedcxr_client.bench.charts import Series, lines
from tests.drills.fleet.sheet import sheet

BALANCERS = ("requests", "better-of-two", "in-turn", "connections")
CONNECTIONS = 16


@dataclass(frozen=True)
class EngineModel:
    """How fast an engine is. The default is an H100 at 256 slots: 27 reports of 350 tokens per second.

    Attributes:
        tokens: mean length of a report.
        spread: coefficient of variation of the length; 0 makes all reports equal.
    """

    slots: int = 256
    tokens: float = 350
    spread: float = 0.4
    step_s: float = 0.00642
    step_per_request_s: float = 0.0000801

    @property
    def rate(self) -> float:
        """Reports per second with all slots in use."""
        return self.slots / (self.tokens * (self.step_s + self.step_per_request_s * self.slots))


@dataclass(eq=False)
class _Request:
    tenant: str
    tokens: float
    sent: float


class _Replica:
    """A gateway with fair queueing and its engine. ``progress`` counts tokens that every running request has got."""

    def __init__(self, fleet: Fleet, model: EngineModel) -> None:
        self._fleet, self._model = fleet, model
        self._counters: Counter[str] = Counter()
        self._waiting: dict[str, deque[_Request]] = {}
        self._running: list[tuple[float, int, _Request]] = []
        self._progress, self._at, self._plan = 0.0, 0.0, 0
        self.open = 0

    def take(self, request: _Request) -> None:
        self.open += 1
        queue = self._waiting.setdefault(request.tenant, deque())
        if not queue:
            others = [self._counters[name] for name, waiting in self._waiting.items() if waiting]
            floor = min(others, default=0)
            self._counters[request.tenant] = max(self._counters[request.tenant], floor)
        queue.append(request)
        if len(self._running) < self._model.slots:
            self._advance()
            self._start()

    def lose(self) -> list[_Request]:
        """End the replica; return what it had open."""
        lost = [request for _, _, request in self._running] + list(itertools.chain(*self._waiting.values()))
        self._running, self._waiting, self.open = [], {}, 0
        self._plan += 1
        return lost

    def _step_s(self) -> float:
        return self._model.step_s + self._model.step_per_request_s * len(self._running)

    def _advance(self) -> None:
        if self._running:
            self._progress += (self._fleet.now - self._at) / self._step_s()
        self._at = self._fleet.now

    def _start(self) -> None:
        while len(self._running) < self._model.slots:
            names = [name for name, waiting in self._waiting.items() if waiting]
            if not names:
                break
            name = min(names, key=lambda one: self._counters[one])
            request = self._waiting[name].popleft()
            cost = 316 + 2 * request.tokens
            self._counters[name] += cost / self._fleet.weights[name]
            self._fleet.measure_start(request, cost)
            heapq.heappush(self._running, (self._progress + request.tokens, self._fleet.number(), request))
        self._plan += 1
        if self._running:
            seconds = (self._running[0][0] - self._progress) * self._step_s()
            plan = self._plan
            self._fleet.at(self._fleet.now + seconds, lambda: self._finish(plan))

    def _finish(self, plan: int) -> None:
        if plan != self._plan:
            return
        self._advance()
        _, _, request = heapq.heappop(self._running)
        self.open -= 1
        self._start()
        self._fleet.ended(request)


@dataclass
class Fleet:
    """Replicas behind a balancer, and closed-loop tenants.

    Attributes:
        weights: of the tenants, by name.
        completed: requests that ended while `measuring`.
        service: cost given to each tenant while `measuring`.
        waits: seconds in the queue of each request that started while `measuring`, by tenant.
    """

    balancer: str
    replicas: int
    weights: Mapping[str, float]
    model: EngineModel = field(default_factory=EngineModel)
    seed: int = 1
    now: float = 0.0
    measuring: bool = False
    completed: int = 0
    service: Counter[str] = field(default_factory=Counter)
    waits: dict[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._numbers = itertools.count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._up = [_Replica(self, self.model) for _ in range(self.replicas)]
        self._turn = itertools.count()
        self._pins: dict[str, list[_Replica]] = {}

    def number(self) -> int:
        return next(self._numbers)

    def at(self, time: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time, self.number(), call))

    def run(self, until: float) -> None:
        """Simulate until a time."""
        while self._events and self._events[0][0] <= until:
            self.now, _, call = heapq.heappop(self._events)
            call()
        self.now = until

    def clients(self, tenant: str, count: int) -> None:
        """Add closed loops of a tenant."""
        for _ in range(count):
            self._send(tenant)

    def lose_replica(self) -> int:
        """End the first replica; return the number of requests that are lost. Their clients send the next ones."""
        lost = self._up.pop(0).lose()
        for request in lost if self._up else []:
            self._send(request.tenant)
        return len(lost)

    def measure_start(self, request: _Request, cost: float) -> None:
        if self.measuring:
            self.service[request.tenant] += cost  # type: ignore[assignment]
            self.waits.setdefault(request.tenant, []).append(self.now - request.sent)

    def ended(self, request: _Request) -> None:
        self.completed += self.measuring
        self._send(request.tenant)

    def _send(self, tenant: str) -> None:
        self._choose(tenant).take(_Request(tenant, self._tokens(), self.now))

    def _tokens(self) -> float:
        spread = self.model.spread
        if not spread:
            return self.model.tokens
        sigma = math.sqrt(math.log(1 + spread * spread))
        return max(1.0, self._random.lognormvariate(math.log(self.model.tokens) - sigma * sigma / 2, sigma))

    def _choose(self, tenant: str) -> _Replica:
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


def saturated(balancer: str, replicas: int, model: EngineModel | None = None, *, seconds: float = 30) -> Fleet:
    """Return a fleet measured with two tenants of weights 1 and 3, which both ask for more than their share."""
    fleet = Fleet(balancer, replicas, {"one": 1, "three": 3}, model or EngineModel())
    slots = fleet.model.slots * replicas
    fleet.clients("one", int(1.5 * slots))
    fleet.clients("three", int(1.25 * slots))
    fleet.run(30)
    fleet.measuring = True
    fleet.run(30 + seconds)
    return fleet


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


def row(balancer: str, replicas: int, slots: int) -> Row:
    """Simulate the three loads on replicas with a number of slots."""
    model = EngineModel(slots=slots)
    fleet = saturated(balancer, replicas, model)
    rate = fleet.completed / 30 / (fleet.model.rate * replicas)
    share = fleet.service["three"] / sum(fleet.service.values())
    slots *= replicas
    fleet = Fleet(balancer, replicas, {"one": 1}, model)
    fleet.clients("one", int(0.9 * slots))
    fleet.run(30)
    fleet.measuring = True
    fleet.run(60)
    waits = sorted(fleet.waits["one"])
    fleet = Fleet(balancer, replicas, {"one": 1}, model)
    fleet.clients("one", int(1.5 * slots))
    fleet.run(20)
    return Row(balancer, replicas, rate, share, waits[int(0.99 * len(waits))], fleet.lose_replica() / int(1.5 * slots))


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
    parser.add_argument("--slots", type=int, default=256, metavar="N", help="of each replica (default 256)")
    args = parser.parse_args()
    gc.disable()  # nothing here is a cycle but the fleets themselves, and there are millions of requests
    print(HEAD)
    rows = []
    with ProcessPoolExecutor(args.jobs) as pool:
        cells = [(balancer, replicas, args.slots) for replicas in args.replicas for balancer in BALANCERS]
        for one in pool.map(row, *zip(*cells, strict=True)):
            rows.append(one)
            print(one, flush=True)
    if args.plot:
        args.plot.write_text(plot(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
