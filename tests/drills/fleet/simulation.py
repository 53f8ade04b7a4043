"""A discrete-event simulation of a fleet: ``python -m tests.drills.fleet.simulation`` prints a table.

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
import heapq
import itertools
import math
import random
import sys
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

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
        self._progress, self._at, self._plan, self._up = 0.0, 0.0, 0, True
        self.open = 0

    def take(self, request: _Request) -> None:
        self.open += 1
        queue = self._waiting.setdefault(request.tenant, deque())
        if not queue:
            others = [self._counters[name] for name, waiting in self._waiting.items() if waiting]
            floor = min(others, default=0)
            self._counters[request.tenant] = max(self._counters[request.tenant], floor)
        queue.append(request)
        self._advance()
        self._start()

    def lose(self) -> list[_Request]:
        """End the replica; return what it had open."""
        lost = [request for _, _, request in self._running] + list(itertools.chain(*self._waiting.values()))
        self._running, self._waiting, self._up, self.open = [], {}, False, 0
        return lost

    @property
    def up(self) -> bool:
        return self._up

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
        if plan != self._plan or not self._up:
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
        self._all = [_Replica(self, self.model) for _ in range(self.replicas)]
        self._turn = itertools.cycle(self._all)
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
        lost = self._all[0].lose()
        for request in lost if any(one.up for one in self._all) else []:
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
        up = [one for one in self._all if one.up] if any(not one.up for one in self._all) else self._all
        if self.balancer == "connections":
            pins = self._pins.setdefault(tenant, self._random.choices(self._all, k=CONNECTIONS))
            at = self._random.randrange(CONNECTIONS)
            if not pins[at].up:
                pins[at] = self._random.choice(up)
            return pins[at]
        if self.balancer == "in-turn":
            return next(one for one in self._turn if one.up)
        count = 2 if self.balancer == "better-of-two" else 24 if len(up) > 64 else len(up)
        sample = up if count >= len(up) else self._random.sample(up, count)
        fewest = min(one.open for one in sample)
        return self._random.choice([one for one in sample if one.open == fewest])


def saturated(balancer: str, replicas: int, *, seconds: float = 30) -> Fleet:
    """Return a fleet measured with two tenants of weights 1 and 3, which both ask for more than their share."""
    fleet = Fleet(balancer, replicas, {"one": 1, "three": 3})
    slots = fleet.model.slots * replicas
    fleet.clients("one", int(1.5 * slots))
    fleet.clients("three", int(1.25 * slots))
    fleet.run(30)
    fleet.measuring = True
    fleet.run(30 + seconds)
    return fleet


def row(balancer: str, replicas: int) -> str:
    """Return a row of the table under `HEAD`."""
    fleet = saturated(balancer, replicas)
    rate = fleet.completed / 30 / (fleet.model.rate * replicas)
    share = fleet.service["three"] / sum(fleet.service.values())
    loss = Fleet(balancer, replicas, {"one": 1})
    loss.clients("one", int(1.5 * loss.model.slots * replicas))
    loss.run(20)
    lost = loss.lose_replica() / (1.5 * loss.model.slots * replicas)
    return f"| {balancer} | {replicas} | {rate:.0%} | {share:.1%} | {lost:.1%} |"


HEAD = """| balancer | replicas | of the full rate | share of the tenant with 3/4 | lost with one replica |
|---|---|---|---|---|"""


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser("python -m tests.drills.fleet.simulation")
    parser.add_argument("replicas", type=int, nargs="*", default=[2, 8, 32])
    print(HEAD)
    for replicas in parser.parse_args().replicas:
        for balancer in BALANCERS:
            print(row(balancer, replicas), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
