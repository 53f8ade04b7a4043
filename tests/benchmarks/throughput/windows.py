"""Figures of alternating windows: steady rates, ratios with their spread, and how noisy the machine was. Pure."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pedcxr_client.bench.figures import steady_window

MOST_NOISE = 0.15
"""Spread of the calibration loop above which absolute figures mean nothing."""


@dataclass(frozen=True, slots=True)
class Span:
    """Start and end of a request, seconds."""

    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Window:
    """A path's rate in reports per second, measured once in a round. ``calibration_s`` is the loop's time before it."""

    path: str
    round: int
    rate: float
    calibration_s: float


def steady_rate(spans: Sequence[Span], in_flight: int) -> float:
    """Return the reports per second from the ``in_flight``-th end to the last start, so without ramp-up and drain.

    Raises:
        ValueError: there are not more than two requests for each one in flight.
    """
    if len(spans) <= 2 * in_flight:
        raise ValueError(f"{len(spans)} requests with {in_flight} in flight have no steady part")
    begin, last = steady_window([(span.start, span.end) for span in spans], in_flight)
    return sum(begin < span.end <= last for span in spans) / (last - begin)


def order(paths: Sequence[str], number: int) -> list[str]:
    """Return the order of a round: forwards, then backwards (ABBA), so that a steady drift cancels out."""
    return list(paths) if number % 2 == 0 else list(reversed(paths))


def ratios(windows: Sequence[Window], path: str, base: str) -> list[float]:
    """Return the ratio of two paths in each round that has both, in ascending order."""
    rounds: dict[int, dict[str, float]] = defaultdict(dict)
    for window in windows:
        rounds[window.round][window.path] = window.rate
    return sorted(rates[path] / rates[base] for rates in rounds.values() if path in rates and base in rates)


def noise(windows: Sequence[Window]) -> float:
    """Return by how much the slowest calibration loop exceeds the fastest."""
    times = [window.calibration_s for window in windows]
    return max(times) / min(times) - 1


def table(windows: Sequence[Window], bases: Mapping[str, str]) -> str:
    """Return the result as Markdown. ``bases`` maps the path that a column compares with to its heading."""
    paths = list(dict.fromkeys(window.path for window in sorted(windows, key=lambda window: window.round)))
    lines = ["| path | reports/s | " + " | ".join(bases.values()) + " |", "|---" * (2 + len(bases)) + "|"]
    for path in paths:
        rates = [window.rate for window in windows if window.path == path]
        cells = [_cell(ratios(windows, path, base.format(load=_load(path)))) for base in bases]
        lines.append(f"| {path} | {_cell(rates)} | {' | '.join(cells)} |")
    spread = noise(windows)
    lines += ["", f"Median (lowest to highest) of the rounds. The calibration loop varied by {spread:.0%}."]
    if spread > MOST_NOISE:
        lines.append("**Noisy machine: only the ratios mean anything.**")
    return "\n".join(lines)


def _load(path: str) -> str:
    return path.rpartition(" at ")[2]


def _cell(values: Sequence[float]) -> str:
    if not values:
        return ""
    median = f"{statistics.median(values):.3g}"
    return median if len(values) == 1 else f"{median} ({min(values):.3g} to {max(values):.3g})"
