"""Format an evaluation as tables, for the terminal and for the HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pedcxr_client.evaluation.scoring import ANY, Differences, Evaluation
from pedcxr_client.evaluation.statistics import Agreement, Estimate, Rate

_COUNTS = ("n", "TP", "FP", "FN", "TN", "sensitivity (95 %)", "specificity (95 %)")
_PREDICTIVE = ("PPV (95 %)", "NPV (95 %)", "F1 (95 %)", "same side")
_DIFFERENCE = ("n", "only this right", "only other right", "difference (95 %)", "McNemar p", "p (Holm)")
_DIGEST_LENGTH = 12  # characters of the digest of the lexicon


@dataclass(frozen=True, slots=True)
class Table:
    """A table. The first cell of the header says what the rows are."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def text(result: Evaluation) -> str:
    """Return the tables of ``pedcxr eval``."""
    parts = ["\n".join(f"{name:<22}{value}" for name, value in summary(result))]
    parts += [f"{table.title}\n{grid([table.head, *table.rows])}" for table in tables(result)]
    return "\n\n".join(parts)


def tables(result: Evaluation) -> list[Table]:
    """Return the tables below the summary."""
    findings = result.findings
    predictive = [
        [name, *map(interval, (agreement.ppv, agreement.npv, agreement.f1)), side(result, name)]
        for name, agreement in findings.items()
    ]
    tables = [
        Table("Films with a report", ("finding", *_COUNTS), [_agreement_row(*item) for item in findings.items()]),
        Table("Predictive values, F1 and side", ("finding", *_PREDICTIVE), predictive),
    ]
    if result.finished.hits < result.finished.count:
        rows = [_agreement_row(*item) for item in result.findings_with_failures.items()]
        tables.append(Table("All films, those without a report as disagreements", ("finding", *_COUNTS), rows))
    for key, groups in result.groups.items():
        rows = [_agreement_row(group, agreements[ANY]) for group, agreements in groups.items()]
        tables.append(Table(f"By {key}: {ANY}", (key, *_COUNTS), rows))
    for title, differences in (
        ("Against the other run, films with both reports", result.against),
        ("Against the other run, films without a report as disagreements", result.against_with_failures),
    ):
        if differences is not None:
            tables.append(Table(title, ("finding", *_DIFFERENCE), _difference_rows(differences)))
    return tables


def summary(result: Evaluation) -> list[tuple[str, str]]:
    """Return the labels and values above the tables."""
    clusters = "film" if result.clustered_by is None else f"{result.clustered_by}, {result.clusters} in all"
    lines = [
        ("model", ", ".join(result.models) or "unknown"),
        ("lexicon", f"version {result.lexicon_version}, sha256 {result.lexicon_sha256[:_DIGEST_LENGTH]}"),
        ("uncertain counts as", result.uncertain),
        ("lines of the run", str(result.lines)),
        ("films in both", str(result.films)),
        ("in one file only", f"run {result.only_run}, reference {result.only_reference}"),
        ("finished", rate(result.finished)),
        ("intervals by", clusters),
        ("same text as another", f"{rate(result.duplicates)}; the most frequent text occurs {result.largest} times"),
        ("all normal", f"{rate(result.all_normal)}; of the references {rate(result.right_all_normal)}"),
    ]
    if result.mentions_prior is not None:
        lines.append(("mentions another film", rate(result.mentions_prior)))
    if (overlap := result.overlap) is not None:
        bleu = f"{overlap.bleu4:.1f}{_limits(overlap.bleu4_interval, 1)} of 100, {overlap.count} texts"
        rouge = f"{overlap.rouge_l:.3f}{_limits(overlap.rouge_l_interval, 3)} of 1, mean F1"
        lines += [("BLEU-4", f"{bleu} ({overlap.bleu_signature})"), ("ROUGE-L", rouge)]
    if result.unused:
        lines.append(("in neither file", ", ".join(result.unused)))
    return lines


def rate(value: Rate) -> str:
    """Return a rate as ``97.0 % (94.1-98.7) of 233``, or a dash if its count is 0."""
    return "-" if value.value is None else f"{interval(value)} of {value.count}"


def interval(value: Estimate) -> str:
    """Return an estimate as ``97.0 % (94.1-98.7)``, or a dash without a value."""
    if value.value is None:
        return "-"
    limits = None if value.low is None or value.high is None else (100 * value.low, 100 * value.high)
    return f"{100 * value.value:.1f} %{_limits(limits, 1)}"


def _limits(limits: tuple[float, float] | None, digits: int) -> str:
    # A difference has negative limits, which "-" as the separator would make hard to read.
    if limits is None:
        return ""
    low, high = (f"{limit:.{digits}f}" for limit in limits)
    return f" ({low}{' to ' if limits[0] < 0 else '-'}{high})"


def side(result: Evaluation, finding: str) -> str:
    """Return how many films with a side in both texts have the same side, or a dash."""
    return f"{sides.hits} of {sides.count}" if (sides := result.sides.get(finding)) else "-"


def _agreement_row(name: str, agreement: Agreement) -> list[str]:
    counts = agreement.counts
    numbers = (counts.total, counts.true_positive, counts.false_positive, counts.false_negative, counts.true_negative)
    return [name, *map(str, numbers), interval(agreement.sensitivity), interval(agreement.specificity)]


def _difference_rows(differences: Differences) -> list[list[str]]:
    return [
        [
            f"{finding}: {measure}",
            *map(str, (difference.count, difference.only_this, difference.only_other)),
            interval(difference),
            f"{difference.p:.3g}",
            f"{difference.p_holm:.3g}",
        ]
        for finding, measures in differences.items()
        for measure, difference in measures.items()
    ]


def grid(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as text with aligned columns. The first column is left-aligned, the others right-aligned."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    return "\n".join("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows)
