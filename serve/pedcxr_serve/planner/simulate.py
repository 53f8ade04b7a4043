"""A discrete-event model of one replica: the gateway's own queue, film preparation, engine steps, events. No I/O.

::

    arrival ─▶ `FairQueue` ─▶ API process prepares the film ─▶ engine step with the prompt ─▶ decode steps ─▶ end
                  ▲                                                                                          │
                  └────────────────────────────────── slot ◀─────────────────────────────────────────────────┘

An API process prepares one film at a time. The engine runs one step after the other. A step lasts ``step``, and longer
by ``decode`` for each report that decodes and by ``prompt`` for each prompt that it takes in. Prompts enter a step in
the order in which their films were prepared, as many as `Replica.prompts_per_step` allows. The gateway forwards one
event after the other; while it cannot keep up, tokens arrive late.

What the model does not contain: network, clients that read slowly, processes that compete for a core. On a machine with
few cores, `fit` puts the last into the times of steps and films, for loads up to the number of slots.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
import statistics
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pedcxr_serve.gateway.auth.tenants import Tenant
from pedcxr_serve.gateway.scheduler import FairQueue, Ticket

_WARM_UP = 0.2  # share of the reports that are not counted: the system starts empty
_TENANT = Tenant("simulated", max_concurrent=1_000_000)
_FIT_REPORTS = 200


@dataclass(frozen=True, slots=True)
class Replica:
    """What a replica consists of and how long its parts take, in seconds.

    Attributes:
        prepare: of an API process for one film.
        step: of an engine step in any case.
        decode: more of a step for each report that decodes.
        arithmetic: of the arithmetic for each report that decodes; a step lasts at least as long for all of them.
        prompt: more of a step for each prompt.
        event: of the gateway for each event of a stream.
        request: of the gateway for each request.
        lengths: numbers of tokens of reports, each as probable as the others.
        slots: maximum number of requests in the engine.
        prompts_per_step: maximum number of prompts that a step takes in.
        api_processes: number of processes that prepare films.
        stream_interval: tokens per event.
    """

    prepare: float
    step: float
    decode: float
    prompt: float
    lengths: Sequence[int]
    slots: int
    arithmetic: float = 0.0
    event: float = 0.0
    request: float = 0.0
    prompts_per_step: int = 8
    api_processes: int = 1
    stream_interval: int = 1

    def step_s(self, decoding: int, prompts: int) -> float:
        """Return the seconds of a step."""
        return max(self.step + self.decode * decoding, self.arithmetic * decoding) + self.prompt * prompts


@dataclass(frozen=True, slots=True)
class Distribution:
    """Mean and percentiles of a time in seconds."""

    mean: float
    p50: float
    p95: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Distribution:
        """Return the distribution of at least one value; a percentile is the smallest value that covers its share."""
        ordered = sorted(values)
        p50, p95 = (ordered[math.ceil(share * len(ordered)) - 1] for share in (0.5, 0.95))
        return cls(statistics.fmean(ordered), p50, p95)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Figures of a simulated load.

    Attributes:
        rate: reports per second.
        ttft, tpot, e2e: time to first token, time per output token, and the whole time of a request.
        decoding: mean number of reports that decode.
        waiting: number of requests in the gateway's queue at the end.
        busy: share of the time that each part works: ``films``, ``decode``, ``prompts`` and ``gateway``.
    """

    rate: float
    ttft: Distribution
    tpot: Distribution
    e2e: Distribution
    decoding: float
    waiting: int
    busy: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Measured:
    """A measured closed loop: requests in flight, reports per second, mean seconds of TTFT and of TPOT."""

    in_flight: int
    rate: float
    ttft: float
    tpot: float


def simulate(replica: Replica, *, in_flight: int = 0, rate: float = 0.0, reports: int = 1000, seed: int = 1) -> Outcome:
    """Simulate a load until this many reports are complete.

    Args:
        in_flight: of a closed loop, or 0.
        rate: requests per second of an open loop with Poisson arrivals; used if ``in_flight`` is 0.
        reports: at least 10.
    """
    return _Simulation(replica, in_flight, rate, random.Random(seed)).run(reports)


def highest_rate(replica: Replica, *, ttft: float, e2e: float, reports: int = 2000) -> float:
    """Return the highest arrival rate at which the 95th percentiles of TTFT and E2E meet the limits, to about 1 %.

    It is 0 if a request alone exceeds them.
    """

    def meets(rate: float) -> bool:
        outcome = simulate(replica, rate=rate, reports=reports)
        return outcome.ttft.p95 <= ttft and outcome.e2e.p95 <= e2e

    alone = simulate(replica, in_flight=1, reports=10)
    if alone.ttft.p95 > ttft or alone.e2e.p95 > e2e:
        return 0.0
    low, high = 0.0, 1.05 * simulate(replica, in_flight=replica.slots, reports=max(reports, 4 * replica.slots)).rate
    while high - low > 0.01 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if meets(middle) else (low, middle)
    return low


def fit(points: Sequence[Measured], replica: Replica) -> Replica:
    """Return the replica with the times of films, steps and prompts that reproduce measured closed loops best.

    Coordinate descent on the squared relative errors of rate (twice), TTFT and TPOT. The times of the gateway are set
    to 0, because the measured times contain them.

    Args:
        points: at least two different loads.
        replica: slots, lengths and the other counts; its times are ignored.
    """
    low = min(points, key=lambda point: point.in_flight)
    best = replace(
        replica,
        prepare=low.ttft / 2,
        step=0.9 * low.tpot,
        decode=0.05 * low.tpot,
        prompt=low.ttft / 4,
        arithmetic=0.0,
        event=0.0,
        request=0.0,
    )
    error, width = _error(points, best), 1.6
    while width > 1.02:
        before = error
        for name, factor in itertools.product(("prepare", "step", "decode", "prompt"), (width, 1 / width)):
            candidate = replace(best, **{name: getattr(best, name) * factor})
            if (error_now := _error(points, candidate)) < error:
                best, error = candidate, error_now
        width = width if error < before else width**0.6
    return best


def _error(points: Sequence[Measured], replica: Replica) -> float:
    total = 0.0
    for point in points:
        outcome = simulate(replica, in_flight=point.in_flight, reports=_FIT_REPORTS + 2 * point.in_flight)
        total += 2 * (outcome.rate / point.rate - 1) ** 2
        total += (outcome.ttft.mean / point.ttft - 1) ** 2 + (outcome.tpot.mean / point.tpot - 1) ** 2
    return total


@dataclass(eq=False, slots=True)
class _Request:
    arrived: float
    tokens: int
    first: float = 0.0
    last: float = 0.0

    @property
    def tpot(self) -> float:
        return (self.last - self.first) / max(1, self.tokens - 1)


@dataclass
class _Simulation:
    replica: Replica
    in_flight: int
    rate: float
    random: random.Random
    now: float = 0.0
    running: int = 0
    steps: int = 0
    decode_s: float = 0.0  # summed over the reports that decode
    preparing: int = 0
    admitted: list[_Request] | None = None  # prompts of the step that runs
    current: tuple[int, float] = (0, 0.0)  # steps until the next change, and the seconds of each
    gateway_free: float = 0.0
    events: list[tuple[float, int, str, _Request | None]] = field(default_factory=list)
    order: itertools.count[int] = field(default_factory=itertools.count)
    tickets: dict[Ticket, _Request] = field(default_factory=dict)
    ticket_of: dict[_Request, Ticket] = field(default_factory=dict)
    films: deque[_Request] = field(default_factory=deque)
    prompts: deque[_Request] = field(default_factory=deque)
    ending: defaultdict[int, list[_Request]] = field(default_factory=lambda: defaultdict(list))  # by step
    ends: list[int] = field(default_factory=list)  # a heap of the keys of `ending`
    ended: list[_Request] = field(default_factory=list)
    busy: dict[str, float] = field(
        default_factory=lambda: {"films": 0.0, "decode": 0.0, "prompts": 0.0, "gateway": 0.0}
    )

    def __post_init__(self) -> None:
        self.queue = FairQueue(self.replica.slots, max_waiting=10**9, max_wait_s=math.inf)

    def run(self, reports: int) -> Outcome:
        for _ in range(self.in_flight):
            self._schedule(0.0, "arrive", self._request(0.0))
        if not self.in_flight:
            self._schedule(0.0, "arrive", self._request(0.0))
        warm, begin = int(_WARM_UP * reports), 0.0
        while len(self.ended) < reports:
            self.now, _, what, request = heapq.heappop(self.events)
            if what == "step":
                self._end_step()
            elif what == "arrive":
                self._arrive(request)
            else:
                self._prepared(request)
            self._send()
            self._prepare()
            self._start_step()
            if not begin and len(self.ended) >= warm:
                begin, warm = self.now, len(self.ended)
        counted, seconds = self.ended[warm:reports], self.now - begin
        return Outcome(
            rate=len(self.ended[warm:]) / seconds,
            ttft=Distribution.of(one.first - one.arrived for one in counted),
            tpot=Distribution.of(one.tpot for one in counted),
            e2e=Distribution.of(one.last - one.arrived for one in counted),
            decoding=self.decode_s / self.now,
            waiting=self.queue.waiting,
            busy={
                name: value / self.now / (self.replica.api_processes if name == "films" else 1)
                for name, value in self.busy.items()
            },
        )

    def _schedule(self, at: float, what: str, request: _Request | None = None) -> None:
        heapq.heappush(self.events, (at, next(self.order), what, request))

    def _request(self, arrived: float) -> _Request:
        return _Request(arrived, self.random.choice(self.replica.lengths))

    def _arrive(self, request: _Request | None) -> None:
        assert request is not None
        ticket = self.queue.open(_TENANT, self.now)
        self.tickets[ticket], self.ticket_of[request] = request, ticket
        self._forward(1, self.replica.request)
        self.queue.enqueue(ticket, 1)
        if not self.in_flight:
            at = self.now + self.random.expovariate(self.rate)
            self._schedule(at, "arrive", self._request(at))

    def _send(self) -> None:
        while (ticket := self.queue.next(self.now)) is not None:
            self.films.append(self.tickets.pop(ticket))

    def _prepare(self) -> None:
        while self.films and self.preparing < self.replica.api_processes:
            self.preparing += 1
            self.busy["films"] += self.replica.prepare
            self._schedule(self.now + self.replica.prepare, "prepared", self.films.popleft())

    def _prepared(self, request: _Request | None) -> None:
        assert request is not None
        self.preparing -= 1
        self.queue.mark_prepared(self.ticket_of[request])
        self.prompts.append(request)

    def _start_step(self) -> None:
        if self.admitted is not None or not (self.running or self.prompts):
            return
        replica = self.replica
        self.admitted = [self.prompts.popleft() for _ in range(min(len(self.prompts), replica.prompts_per_step))]
        steps, seconds = 1, replica.step_s(self.running, len(self.admitted))
        if not self.admitted and seconds > 0:  # equal steps follow until a report ends or something else happens
            until = self.events[0][0] - self.now if self.events else math.inf
            steps = int(min(self.ends[0] - self.steps, until / seconds + 1))
        self.current = (steps, seconds)
        self.busy["prompts"] += replica.prompt * len(self.admitted)
        self.busy["decode"] += steps * replica.step_s(self.running, 0)
        self.decode_s += steps * seconds * self.running
        self._schedule(self.now + steps * seconds, "step")

    def _end_step(self) -> None:
        admitted, self.admitted = self.admitted or [], None
        steps, seconds = self.current
        self.steps += steps
        ended = self.ending.pop(self.steps, [])
        if ended:
            heapq.heappop(self.ends)
        events = len(admitted) + self.running / self.replica.stream_interval
        if steps > 1:  # the first of them at their times; a backlog is longest after the first or after the last
            self.gateway_free = max(self.gateway_free, self.now - (steps - 1) * seconds)
            self.gateway_free += (steps - 1) * events * self.replica.event
            self.busy["gateway"] += (steps - 1) * events * self.replica.event
        at = self._forward(events, self.replica.event)
        self.running += len(admitted) - len(ended)
        for request in admitted:
            request.first = at
            self.queue.mark_started(self.ticket_of[request])
            end = self.steps + max(1, request.tokens - 1)
            if end not in self.ending:
                heapq.heappush(self.ends, end)
            self.ending[end].append(request)
        for request in ended:
            request.last = at
            self.ended.append(request)
            self.queue.close(self.ticket_of.pop(request), self.now)
            if self.in_flight:
                self._schedule(at, "arrive", self._request(at))

    def _forward(self, number: float, seconds: float) -> float:
        """Let the gateway work, and return when it has done so."""
        self.busy["gateway"] += number * seconds
        self.gateway_free = max(self.gateway_free, self.now) + number * seconds
        return self.gateway_free
