"""An evaluation as one HTML page that needs nothing else: no script, no address, no text of a report. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from pedcxr_client.evaluation.scoring import ANY, Evaluation
from pedcxr_client.evaluation.statistics import Agreement, Rate
from pedcxr_client.evaluation.text_tables import interval, summary
from pedcxr_client.reports.report import DISCLAIMER

_STYLE = """\
body { font: 15px/1.45 system-ui, sans-serif; color: #222; margin: 2rem auto; max-width: 72rem; padding: 0 1rem }
h1 { font-size: 1.4rem } h2 { font-size: 1.1rem; margin-top: 2rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap }
th:first-child, td:first-child { text-align: left } .wide td { white-space: normal; text-align: left }
.plot { overflow-x: auto } footer { margin-top: 2rem; color: #555 }"""
_RULES = """\
A finding counts as said where the lexicon reads it as present, or as uncertain if that counts as positive; one that a
text does not name counts as absent. Intervals are Wilson's, 95 %. Films without a finished report count in no rate but
"finished". BLEU and ROUGE measure words, not truth."""
_ROW, _TOP, _NAMES, _PLOT, _GAP, _FIGURES = 26, 58, 250, 250, 28, 150
_SERIES = (("sensitivity", "#0b5394"), ("specificity", "#b45309"))
_PANEL = _PLOT + _FIGURES + _GAP
_COLUMNS = ("n", "TP", "FP", "FN", "TN", "sensitivity (95 %)", "specificity (95 %)")


def html(result: Evaluation) -> str:
    """The page."""
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
        f"<title>pedcxr eval</title><style>{_STYLE}</style></head><body>",
        "<h1>Agreement of draft reports with their references</h1>",
        _table(None, summary(result), kind="wide"),
        f'<h2>Each finding</h2><div class="plot">{_forest_plot(result.findings)}</div>',
        _table(["finding", *_COLUMNS], [_row(name, found) for name, found in result.findings.items()]),
    ]
    for key, groups in result.groups.items():
        rows = [_row(group, found[ANY]) for group, found in groups.items()]
        parts.append(f"<h2>By {escape(key)}: {escape(ANY)}</h2>{_table([key, *_COLUMNS], rows)}")
    if result.against is not None:
        head = ["finding", "n", "only this run right", "only the other right", "McNemar p", "p (Holm)"]
        rows = [
            [
                _spaced(name),
                *map(str, (one.count, one.only_this, one.only_other)),
                f"{one.p:.3g}",
                f"{one.p_holm:.3g}",
            ]
            for name, one in result.against.items()
        ]
        parts.append(f"<h2>Against the other run</h2>{_table(head, rows)}")
    parts.append(f"<footer><p>{escape(_RULES)}</p><p>{escape(DISCLAIMER)}</p></footer></body></html>")
    return "\n".join(parts) + "\n"


def _row(name: str, found: Agreement) -> list[str]:
    counts = found.counts
    numbers = (counts.total, counts.true_positive, counts.false_positive, counts.false_negative, counts.true_negative)
    return [_spaced(name), *map(str, numbers), interval(found.sensitivity), interval(found.specificity)]


def _table(head: Sequence[str] | None, rows: Sequence[Sequence[str]], *, kind: str = "") -> str:
    top = "" if head is None else f"<tr>{''.join(f'<th>{escape(cell)}</th>' for cell in head)}</tr>"
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<table class="{kind}">{top}{body}</table>'


def _forest_plot(findings: Mapping[str, Agreement]) -> str:
    """Sensitivity and specificity side by side, each from 0 to 100 %."""
    height = _TOP + _ROW * len(findings) + 20
    width = _NAMES + 2 * _PANEL
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'role="img" aria-label="Sensitivity and specificity of each finding with 95 % intervals" '
        'font-family="system-ui, sans-serif" font-size="13">'
    )
    parts = [head, *(_plot_axis(at, title, height) for at, (title, _) in enumerate(_SERIES))]
    for row, (name, found) in enumerate(findings.items()):
        middle = _TOP + _ROW * row + _ROW / 2
        parts.append(f'<text x="{_NAMES - 14}" y="{middle + 4:g}" text-anchor="end">{escape(_spaced(name))}</text>')
        for at, (title, colour) in enumerate(_SERIES):
            parts.append(_plot_point(at, middle, getattr(found, title), colour))
    return "".join([*parts, "</svg>"])


def _spaced(name: str) -> str:
    """A finding's name for people."""
    return name.replace("_", " ")


def _plot_left(at: int) -> float:
    return _NAMES + at * _PANEL


def _plot_axis(at: int, title: str, height: int) -> str:
    left = _plot_left(at)
    parts = [f'<text x="{left}" y="20" font-weight="600">{title}, %</text>']
    for share in (0, 25, 50, 75, 100):
        x = left + _PLOT * share / 100
        parts.append(f'<line x1="{x:g}" y1="{_TOP - 8}" x2="{x:g}" y2="{height - 14}" stroke="#ddd"/>')
        parts.append(f'<text x="{x:g}" y="{_TOP - 14}" text-anchor="middle" fill="#555">{share}</text>')
    return "".join(parts)


def _plot_point(at: int, y: float, rate: Rate, colour: str) -> str:
    left = _plot_left(at)
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
