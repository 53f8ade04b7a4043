"""An evaluation as one HTML page that needs nothing else: no script, no address, no text of a report. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from pedcxr_client.evaluation import forest
from pedcxr_client.evaluation.agreement import Agreement
from pedcxr_client.evaluation.scoring import ANY, Evaluation
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
        f'<h2>Each finding</h2><div class="plot">{forest.svg(result.findings)}</div>',
        _table(["finding", *_COLUMNS], [_row(name, found) for name, found in result.findings.items()]),
    ]
    for key, groups in result.groups.items():
        rows = [_row(group, found[ANY]) for group, found in groups.items()]
        parts.append(f"<h2>By {escape(key)}: {escape(ANY)}</h2>{_table([key, *_COLUMNS], rows)}")
    if result.against is not None:
        head = ["finding", "n", "only this run right", "only the other right", "McNemar p", "p (Holm)"]
        rows = [
            [
                forest.label(name),
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
    return [forest.label(name), *map(str, numbers), interval(found.sensitivity), interval(found.specificity)]


def _table(head: Sequence[str] | None, rows: Sequence[Sequence[str]], *, kind: str = "") -> str:
    top = "" if head is None else f"<tr>{''.join(f'<th>{escape(cell)}</th>' for cell in head)}</tr>"
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<table class="{kind}">{top}{body}</table>'
