"""Format an evaluation as one self-contained HTML page, without scripts, external resources or report texts.

The page names films by the ids of the run, so that a reviewer can open the reports that disagree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from pedcxr_client.evaluation.scoring import Evaluation
from pedcxr_client.evaluation.statistics import Agreement, Rate
from pedcxr_client.evaluation.text_tables import interval, summary, tables
from pedcxr_client.reports import html_head
from pedcxr_client.reports.report import DISCLAIMER

TITLE = "pedcxr eval"
_STYLE = """\
h1 { font-size: 1.4rem } h2 { font-size: 1.1rem; margin-top: 2rem }
th, td { white-space: nowrap } .wide td { white-space: normal; text-align: left }
.plot { overflow-x: auto } footer { margin-top: 2rem; color: #555 }"""
_RULES = """\
A finding counts as present if the lexicon reads it as present, or as uncertain with --uncertain positive. A finding
that a text does not mention counts as absent. Intervals are 95 % Wilson score intervals, or percentile bootstrap
intervals if films are grouped by patient or study. McNemar's test is then the exact
sign-flip test of patients. BLEU and ROUGE measure shared words, not clinical correctness."""
_EXAMPLES = 10  # ids in a cell
# Forest plot geometry in pixels: row height, top margin, and widths.
_ROW, _TOP, _NAMES, _PLOT, _GAP, _FIGURES = 26, 58, 250, 250, 28, 150
_SERIES = (("sensitivity", "#0b5394"), ("specificity", "#b45309"))
_PANEL = _PLOT + _FIGURES + _GAP


def html(result: Evaluation) -> str:
    """Return the page."""
    parts = [
        html_head.head(TITLE, _STYLE) + "<h1>Agreement of draft reports with their references</h1>",
        _table(None, summary(result), kind="wide"),
        f'<h2>Sensitivity and specificity</h2><div class="plot">{_forest_plot(result.findings)}</div>',
    ]
    for table in tables(result):
        parts.append(f"<h2>{escape(table.title)}</h2>{_table(table.head, table.rows)}")
    head = ["finding", "only in the reference", "only in the report", "other side"]
    rows = [
        [name, *map(_examples, (films.missed, films.added, films.other_side))]
        for name, films in result.disagreements.items()
        if films.missed or films.added or films.other_side
    ]
    parts.append(f"<h2>Ids of films that disagree</h2>{_table(head, rows, kind='wide')}")
    parts.append(f"<footer><p>{escape(_RULES)}</p><p>{escape(DISCLAIMER)}</p></footer></body></html>")
    return "\n".join(parts) + "\n"


def _examples(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - _EXAMPLES} more" if len(ids) > _EXAMPLES else ""
    return ", ".join(ids[:_EXAMPLES]) + more


def _table(head: Sequence[str] | None, rows: Sequence[Sequence[str]], *, kind: str = "") -> str:
    top = "" if head is None else f"<tr>{''.join(f'<th>{escape(cell)}</th>' for cell in head)}</tr>"
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<table class="{kind}">{top}{body}</table>'


def _forest_plot(findings: Mapping[str, Agreement]) -> str:
    """Return an SVG with sensitivity and specificity side by side, each from 0 to 100 %, and their intervals."""
    height = _TOP + _ROW * len(findings) + 20
    width = _NAMES + 2 * _PANEL
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'role="img" aria-label="Sensitivity and specificity of each finding with 95 % intervals" '
        'font-family="system-ui, sans-serif" font-size="13">'
    )
    parts = [head, *(_plot_axis(series, title, height) for series, (title, _) in enumerate(_SERIES))]
    for row, (name, agreement) in enumerate(findings.items()):
        middle = _TOP + _ROW * row + _ROW / 2
        parts.append(f'<text x="{_NAMES - 14}" y="{middle + 4:g}" text-anchor="end">{escape(name)}</text>')
        for series, (title, colour) in enumerate(_SERIES):
            parts.append(_plot_point(series, middle, getattr(agreement, title), colour))
    return "".join([*parts, "</svg>"])


def _plot_origin(series: int) -> float:
    return _NAMES + series * _PANEL


def _plot_axis(series: int, title: str, height: int) -> str:
    origin = _plot_origin(series)
    parts = [f'<text x="{origin}" y="20" font-weight="600">{title}, %</text>']
    for share in (0, 25, 50, 75, 100):
        x = origin + _PLOT * share / 100
        parts.append(f'<line x1="{x:g}" y1="{_TOP - 8}" x2="{x:g}" y2="{height - 14}" stroke="#ddd"/>')
        parts.append(f'<text x="{x:g}" y="{_TOP - 14}" text-anchor="middle" fill="#555">{share}</text>')
    return "".join(parts)


def _plot_point(series: int, y: float, rate: Rate, colour: str) -> str:
    origin = _plot_origin(series)
    figures = (
        f'<text x="{origin + _PLOT + 14}" y="{y + 4:g}" fill="#333">{interval(rate).replace("%", "").strip()}</text>'
    )
    if rate.value is None or rate.low is None or rate.high is None:
        return figures
    x, low, high = (origin + _PLOT * share for share in (rate.value, rate.low, rate.high))
    return (
        f'<line x1="{low:.1f}" y1="{y:g}" x2="{high:.1f}" y2="{y:g}" stroke="{colour}" stroke-width="2"/>'
        f'<rect x="{x - 4:.1f}" y="{y - 4:g}" width="8" height="8" fill="{colour}"/>{figures}'
    )
