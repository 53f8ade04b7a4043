"""When requests are sent: stages of a run, drawn before its start from a seed. No clock and no I/O."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pedcxr_client.bench.workload import Load, Workload
from pedcxr_client.errors import ConfigurationError

_SPARE_REQUESTS = 25  # the verdict needs 20 completions between the ramp and the end of a closed loop
_MOST_REQUESTS = 5_000_000  # 14 hours at 100 per second; their bodies and samples would fill the memory

_RAMP, _TRACE = "ramp ", "trace "  # how the names of such stages begin, in result files too


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of a run at one load.

    Attributes:
        in_flight: requests that are kept open (closed loop), or 0 for an open loop.
        times: scheduled times in seconds since the start of the stage (open loop).
        rate: mean rate of an open loop in requests per second, or 0.
        seconds: length. A closed loop continues until it has ``min_requests`` completions, at most ``max_seconds``.
    """

    name: str
    seconds: float
    in_flight: int = 0
    times: tuple[float, ...] = ()
    rate: float = 0.0
    min_requests: int = 0
    max_seconds: float = 600.0

    @property
    def is_open(self) -> bool:
        """Whether arrivals do not wait for responses."""
        return self.in_flight == 0

    @property
    def is_steady(self) -> bool:
        """Whether the load is the same at all times: not that of a ramp or a trace."""
        return not self.name.startswith((_RAMP, _TRACE))


def numbered(names: Iterable[str], mark: str = "") -> list[str]:
    """Return the names; the second of a name gets the mark and a number, as in ``closed 2 #2``."""
    counts: Counter[str] = Counter()
    unique = []
    for name in names:
        counts[name] += 1
        unique.append(f"{name} {mark}{counts[name]}" if counts[name] > 1 else name)
    return unique


def closed(in_flight: int, seconds: float, *, max_seconds: float = 600.0) -> Stage:
    """Keep a number of requests open, for this time and until the steady part has enough completions."""
    name, least = f"closed {in_flight}", _SPARE_REQUESTS + in_flight
    return Stage(name, seconds, in_flight=in_flight, min_requests=least, max_seconds=max(seconds, max_seconds))


def poisson(rate: float, seconds: float, seed: int, name: str | None = None) -> Stage:
    """Send at a constant mean rate; the gaps are exponential."""
    times = _arrivals(lambda mean: mean / rate, seconds, seed)
    return Stage(name or f"poisson {rate:g}/s", seconds, times=times, rate=rate)


def ramp(first: float, last: float, seconds: float, seed: int) -> Stage:
    """Change the rate of Poisson arrivals linearly from ``first`` to ``last``."""
    slope = (last - first) / seconds

    def time_at(mean: float) -> float:
        # The expected number of arrivals until t is first * t + slope * t^2 / 2; this is its inverse.
        if abs(slope) < 1e-12:
            return mean / first
        root = first * first + 2 * slope * mean
        return math.inf if root < 0 else (math.sqrt(root) - first) / slope

    times = _arrivals(time_at, seconds, seed)
    return Stage(f"{_RAMP}{first:g} to {last:g}/s", seconds, times=times, rate=(first + last) / 2)


def steps(rates: Sequence[float], seconds: float, seed: int) -> list[Stage]:
    """Use each rate for an equal part of the time, one stage each."""
    length = seconds / len(rates)
    return [poisson(rate, length, seed + at) for at, rate in enumerate(rates)]


SHARES, SOAK_SHARE = (0.5, 0.7, 0.85, 1.0), 0.8
"""Shares of the knee's rate at which `pedcxr bench certify` and ``soak`` send."""


def certify(rate: float, seconds: float, seed: int) -> list[Stage]:
    """Send at shares of the knee's rate; each stage expects at least 130 requests."""
    return [
        poisson(share * rate, max(seconds, 130 / (share * rate) / 0.9), seed + at, name=f"{share:.0%} of the knee")
        for at, share in enumerate(SHARES)
    ]


def soak(rate: float, seconds: float, seed: int) -> list[Stage]:
    """Send at a share of the knee's rate."""
    return [poisson(SOAK_SHARE * rate, seconds, seed, name="soak")]


def trace(path: Path) -> Stage:
    """Send at the times of a file, in seconds, one number per line. Raise ConfigurationError."""
    try:
        times = sorted(float(line) for line in path.read_text(encoding="utf-8-sig").split())
    except (OSError, ValueError) as error:
        raise ConfigurationError("load.file: must hold one number of seconds per line; check the file") from error
    if not times or not all(0 <= time < math.inf for time in times):
        raise ConfigurationError("load.file: must hold finite times, 0 or more")
    length = max(times[-1], 1e-3)
    return Stage(f"{_TRACE}{path.name}", length, times=tuple(times), rate=len(times) / length)


def of_load(workload: Workload) -> list[Stage]:
    """Return the stages of ``pedcxr bench run``, each with a name of its own."""
    stages = _of_load(workload)
    names = numbered((stage.name for stage in stages), "#")
    return [replace(stage, name=name) for stage, name in zip(stages, names, strict=True)]


def _of_load(workload: Workload) -> list[Stage]:
    load: Load = workload.load
    seed = workload.films.seed
    match load.kind:
        case "closed":
            return [closed(load.in_flight, load.seconds)]
        case "sweep":
            return [closed(in_flight, load.seconds / len(load.loads)) for in_flight in load.loads]
        case "poisson":
            return [poisson(load.rate, load.seconds, seed)]
        case "ramp":
            return [ramp(load.rate, load.to_rate, load.seconds, seed)]
        case "steps":
            return steps(load.rates, load.seconds, seed)
        case "trace":
            return [trace(workload.path(load.file))]


def _arrivals(time_at: Callable[[float], float], seconds: float, seed: int) -> tuple[float, ...]:
    """Map the arrivals of a Poisson process of rate 1 through the inverse of the expected count."""
    draw, mean = random.Random(seed), 0.0
    times: list[float] = []
    while True:
        mean += draw.expovariate(1.0)
        if not (time := time_at(mean)) < seconds:
            return tuple(times)
        if len(times) == _MOST_REQUESTS:
            raise ConfigurationError(f"load: means more than {_MOST_REQUESTS:,} requests; check rate and seconds")
        times.append(time)
