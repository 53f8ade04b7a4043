"""Latency against load of one replica, by `replica_model`, and the model's times from measured loads. No I/O."""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from pedcxr_serve.gateway.auth.tenants import Tenant
from pedcxr_serve.planner.replica_model import Agenda, Replica, Request, RunningReplica

_WARM_UP = 0.2  # share of the reports that are not counted: the system starts empty
_TENANT = Tenant("simulated", max_concurrent=1_000_000)
_FIT_REPORTS, _CHECK_REPORTS = 200, 2000
_LIGHTEST = 1e-3  # of the rate with all slots in use: nearly every request is alone


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
    agenda, draw, ended = Agenda(), random.Random(seed), list[Request]()

    def end(request: Request) -> None:
        ended.append(request)
        if in_flight:
            arrive_at(request.last)

    def arrive_at(time: float) -> None:
        agenda.at(time, arrive, Request(_TENANT, draw.choice(replica.lengths), time))

    def arrive(request: Request) -> None:
        running.take(request)
        if not in_flight:
            arrive_at(agenda.now + draw.expovariate(rate))

    running = RunningReplica(replica, agenda, end)
    for _ in range(in_flight or 1):
        arrive_at(0.0)
    warm, begin = int(_WARM_UP * reports), 0.0
    while len(ended) < reports:
        agenda.step()
        if not begin and len(ended) >= warm:
            begin, warm = agenda.now, len(ended)
    counted = ended[warm:reports]
    return Outcome(
        rate=len(ended[warm:]) / (agenda.now - begin),
        ttft=Distribution.of(one.first - one.arrived for one in counted),
        tpot=Distribution.of(one.tpot for one in counted),
        e2e=Distribution.of(one.last - one.arrived for one in counted),
        decoding=running.decode_s / agenda.now,
        waiting=running.waiting,
        busy={
            name: value / agenda.now / (replica.api_processes if name == "films" else 1)
            for name, value in running.busy.items()
        },
    )


def highest_rate(replica: Replica, *, ttft: float, e2e: float, reports: int = 2000) -> float:
    """Return the highest arrival rate at which the 95th percentiles of TTFT and E2E meet the limits, to about 1 %.

    It is 0 if the lightest load exceeds them; see `lightest`.
    """

    def meets(rate: float) -> bool:
        outcome = simulate(replica, rate=rate, reports=reports)
        return outcome.ttft.p95 <= ttft and outcome.e2e.p95 <= e2e

    full = _full_rate(replica, reports)
    low, high = _LIGHTEST * full, 1.05 * full
    if not meets(low):
        return 0.0
    while high - low > 0.01 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if meets(middle) else (low, middle)
    return low


def lightest(replica: Replica, *, reports: int = 2000) -> Outcome:
    """Simulate a thousandth of the rate that a replica has with all slots in use."""
    return simulate(replica, rate=_LIGHTEST * _full_rate(replica, reports), reports=reports)


def _full_rate(replica: Replica, reports: int) -> float:
    return simulate(replica, in_flight=replica.slots, reports=max(reports, 4 * replica.slots)).rate


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


def rate_errors(points: Sequence[Measured], replica: Replica) -> dict[int, float]:
    """Return the simulated rate relative to the measured one, minus 1, by requests in flight: the largest error."""
    errors: dict[int, float] = {}
    for point in points:
        error = simulate(replica, in_flight=point.in_flight, reports=_CHECK_REPORTS).rate / point.rate - 1
        errors[point.in_flight] = max(error, errors.get(point.in_flight, error), key=abs)
    return errors


def _error(points: Sequence[Measured], replica: Replica) -> float:
    total = 0.0
    for point in points:
        outcome = simulate(replica, in_flight=point.in_flight, reports=_FIT_REPORTS + 2 * point.in_flight)
        total += 2 * (outcome.rate / point.rate - 1) ** 2
        total += (outcome.ttft.mean / point.ttft - 1) ** 2 + (outcome.tpot.mean / point.tpot - 1) ** 2
    return total
