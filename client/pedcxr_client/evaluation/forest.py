"""A forest plot as SVG: for each finding a point and its interval. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from pedcxr_client.evaluation.agreement import Agreement, Rate
from pedcxr_client.evaluation.text_tables import interval

_ROW, _TOP, _NAMES, _PLOT, _GAP, _FIGURES = 26, 58, 250, 250, 28, 150
_SERIES = (("sensitivity", "#0b5394"), ("specificity", "#b45309"))
_PANEL = _PLOT + _FIGURES + _GAP


def svg(findings: Mapping[str, Agreement]) -> str:
    """Sensitivity and specificity side by side, each from 0 to 100 %."""
    height = _TOP + _ROW * len(findings) + 20
    width = _NAMES + 2 * _PANEL
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'role="img" aria-label="Sensitivity and specificity of each finding with 95 % intervals" '
        'font-family="system-ui, sans-serif" font-size="13">'
    )
    parts = [head, *(_axis(at, title, height) for at, (title, _) in enumerate(_SERIES))]
    for row, (name, found) in enumerate(findings.items()):
        middle = _TOP + _ROW * row + _ROW / 2
        parts.append(f'<text x="{_NAMES - 14}" y="{middle + 4:g}" text-anchor="end">{escape(label(name))}</text>')
        for at, (title, colour) in enumerate(_SERIES):
            parts.append(_point(at, middle, getattr(found, title), colour))
    return "".join([*parts, "</svg>"])


def label(name: str) -> str:
    """A finding's name for people."""
    return name.replace("_", " ")


def _left(at: int) -> float:
    return _NAMES + at * _PANEL


def _axis(at: int, title: str, height: int) -> str:
    left = _left(at)
    parts = [f'<text x="{left}" y="20" font-weight="600">{title}, %</text>']
    for share in (0, 25, 50, 75, 100):
        x = left + _PLOT * share / 100
        parts.append(f'<line x1="{x:g}" y1="{_TOP - 8}" x2="{x:g}" y2="{height - 14}" stroke="#ddd"/>')
        parts.append(f'<text x="{x:g}" y="{_TOP - 14}" text-anchor="middle" fill="#555">{share}</text>')
    return "".join(parts)


def _point(at: int, y: float, rate: Rate, colour: str) -> str:
    left = _left(at)
    figures = (
        f'<text x="{left + _PLOT + 14}" y="{y + 4:g}" fill="#333">{interval(rate).replace("%", "").strip()}</text>'
    )
    if rate.value is None or rate.low is None or rate.high is None:
        return figures
    x, low, high = (left + _PLOT * share for share in (rate.value, rate.low, rate.high))
    return (
        f'<line x1="{low:.1f}" y1="{y:g}" x2="{high:.1f}" y2="{y:g}" stroke="{colour}" stroke-width="2"/>'
        f'<rect x="{x - 4:.1f}" y="{y - 4:g}" width="8" height="8" fill="{colour}"/>{figures}'
    )
