"""Line and bar charts as SVG, without a library. Nothing is loaded from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_COLOURS = ("#0b5394", "#b45309", "#38761d", "#741b47", "#555555", "#0097a7")
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 720, 260, 60, 110, 14, 44
_ROW, _BAR_LEFT = 26, 150
_TICKS = 5


@dataclass(frozen=True, slots=True)
class Series:
    """A named line of (x, y) points."""

    name: str
    points: Sequence[tuple[float, float]]


def lines(
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    limit: float | None = None,
    *,
    log_x: bool = False,
    gap: float = math.inf,
) -> str:
    """Return a chart whose y axis starts at 0, with a dashed line at ``limit``; "" without points.

    Args:
        log_x: logarithmic x axis; every x must be positive.
        gap: a line breaks between points that are further apart in x.
    """
    series = [one for one in series if one.points]
    if not series:
        return ""
    xs = [x for one in series for x, _ in one.points]
    ys = [y for one in series for _, y in one.points] + ([limit] if limit else [])
    scale = math.log if log_x else float
    low, high, top = scale(min(xs)), scale(max(xs)), _ceiling(max(ys))
    high = high if high > low else low + 1

    def at(x: float, y: float) -> tuple[float, float]:
        across = _LEFT + (scale(x) - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)
        return across, _HEIGHT - _BOTTOM - y / top * (_HEIGHT - _TOP - _BOTTOM)

    parts = [_open(_HEIGHT, f"{y_label} against {x_label}")]
    for step in range(_TICKS + 1):
        value = top * step / _TICKS
        _, y = at(xs[0], value)
        parts.append(f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH - _RIGHT}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(_text(_LEFT - 6, y + 4, _number(value), anchor="end"))
    for x in _some(sorted(set(xs))):
        across, _ = at(x, 0)
        parts.append(_text(across, _HEIGHT - _BOTTOM + 18, _number(x), anchor="middle"))
    parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 6, f"{x_label}; y: {y_label}", anchor="middle"))
    if limit:
        _, y = at(xs[0], limit)
        parts.append(
            f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH - _RIGHT}" y2="{y:.1f}" stroke="#a40000" '
            f'stroke-dasharray="6 4"/>{_text(_WIDTH - _RIGHT + 6, y + 4, f"objective {limit:g}", colour="#a40000")}'
        )
    for number, one in enumerate(series):
        colour = _COLOURS[number % len(_COLOURS)]
        for part in _unbroken(sorted(one.points), gap):
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in part))
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        if len(one.points) <= 40:
            places = [at(*point) for point in one.points]
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
        parts.append(_text(_WIDTH - _RIGHT + 6, _TOP + 14 + 16 * number, one.name, colour=colour))
    return "".join([*parts, "</svg>"])


def bars(rows: Sequence[tuple[str, Sequence[float]]], names: Sequence[str], label: str) -> str:
    """Return horizontal stacked bars, one row each; "" without rows. ``names`` are those of the parts."""
    if not rows:
        return ""
    top = _ceiling(max(sum(values) for _, values in rows))
    height = _ROW * (len(rows) + 1) + 24
    parts = [_open(height, label)]
    for number, name in enumerate(names):
        colour = _COLOURS[number % len(_COLOURS)]
        parts.append(_text(_BAR_LEFT + 140 * number, 16, f"■ {name}", colour=colour))
    for number, (name, values) in enumerate(rows):
        y, x = _ROW * (number + 1), float(_BAR_LEFT)
        parts.append(_text(_BAR_LEFT - 8, y + 16, name, anchor="end"))
        for part, value in enumerate(values):
            width = value / top * (_WIDTH - _BAR_LEFT - 60)
            colour = _COLOURS[part % len(_COLOURS)]
            parts.append(f'<rect x="{x:.1f}" y="{y + 4}" width="{width:.1f}" height="{_ROW - 8}" fill="{colour}"/>')
            x += width
        parts.append(_text(x + 6, y + 16, _number(sum(values))))
    parts.append(_text(_BAR_LEFT, height - 6, label))
    return "".join([*parts, "</svg>"])


def _open(height: float, label: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        f'role="img" aria-label="{escape(label)}" font-family="system-ui, sans-serif" font-size="12">'
    )


def _text(x: float, y: float, text: str, *, anchor: str = "start", colour: str = "#333") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'


def _unbroken(points: Sequence[tuple[float, float]], gap: float) -> list[list[tuple[float, float]]]:
    """Split sorted points where two are further apart in x than ``gap``."""
    parts: list[list[tuple[float, float]]] = []
    for point in points:
        if parts and point[0] - parts[-1][-1][0] <= gap:
            parts[-1].append(point)
        else:
            parts.append([point])
    return parts


def _number(value: float) -> str:
    """Return three digits of a number: 0.125, 1,000."""
    return f"{float(f'{value:.3g}'):,g}"


def _some(values: list[float]) -> list[float]:
    """Return at most nine of the values, the first and the last among them."""
    step = max(1, math.ceil(len(values) / 8))
    ticks = values[::step]
    return ticks if ticks[-1] == values[-1] else [*ticks[:8], values[-1]]


def _ceiling(value: float) -> float:
    """Return the next 1, 2, 2.5 or 5 times a power of ten."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= value)
