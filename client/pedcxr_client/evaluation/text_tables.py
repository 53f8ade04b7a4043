"""Format an evaluation as plain-text tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pedcxr_client.evaluation.scoring import ANY, Evaluation
from pedcxr_client.evaluation.statistics import Agreement, Difference, Rate

AGREEMENT_COLUMNS = ("n", "TP", "FP", "FN", "TN", "sensitivity (95 %)", "specificity (95 %)")
"""Column names of `agreement_row`, after the name."""
_DIFFERENCE_COLUMNS = ("only this right", "only other right", "McNemar p", "p (Holm)")
_DIGEST_LENGTH = 12  # characters of the digest of the lexicon


def text(result: Evaluation) -> str:
    """Return the tables of ``pedcxr eval``."""
    findings_head = ["finding", *AGREEMENT_COLUMNS]
    findings_rows = [agreement_row(name, agreement) for name, agreement in result.findings.items()]
    parts = ["\n".join(f"{name:<22}{value}" for name, value in summary(result)), grid([findings_head, *findings_rows])]
    parts += [_group(result, key) for key in result.groups]
    if result.against is not None:
        parts.append(grid([("against the other run", "n", *_DIFFERENCE_COLUMNS), *difference_rows(result.against)]))
    return "\n\n".join(parts)


def summary(result: Evaluation) -> list[tuple[str, str]]:
    """Return the labels and values above the tables."""
    lines = [
        ("model", ", ".join(result.models) or "unknown"),
        ("lexicon", f"version {result.lexicon_version}, sha256 {result.lexicon_sha256[:_DIGEST_LENGTH]}"),
        ("uncertain counts as", result.uncertain),
        ("lines of the run", str(result.lines)),
        ("films in both", str(result.films)),
        ("in one file only", f"run {result.only_run}, reference {result.only_reference}"),
        ("finished", rate(result.finished)),
        ("same text as another", f"{rate(result.duplicates)}; the most frequent text occurs {result.largest} times"),
        ("all normal", f"{rate(result.all_normal)}; of the references {rate(result.right_all_normal)}"),
    ]
    if result.overlap is not None:
        overlap = result.overlap
        lines.append(("BLEU-4", f"{overlap.bleu4:.1f} of 100, {overlap.count} texts ({overlap.bleu_signature})"))
        lines.append(("ROUGE-L", f"{overlap.rouge_l:.3f} of 1, mean F1"))
    if result.unused:
        lines.append(("in neither file", ", ".join(result.unused)))
    return lines


def rate(value: Rate) -> str:
    """Return a rate as ``97.0 % (94.1-98.7) of 233``, or a dash if its count is 0."""
    return "-" if value.value is None else f"{interval(value)} of {value.count}"


def interval(value: Rate) -> str:
    """Return a rate as ``97.0 % (94.1-98.7)``, or a dash if its count is 0."""
    if value.value is None or value.low is None or value.high is None:
        return "-"
    return f"{100 * value.value:.1f} % ({100 * value.low:.1f}-{100 * value.high:.1f})"


def agreement_row(name: str, agreement: Agreement) -> list[str]:
    """Return a row of cells for `AGREEMENT_COLUMNS`, preceded by the name."""
    counts = agreement.counts
    numbers = (counts.total, counts.true_positive, counts.false_positive, counts.false_negative, counts.true_negative)
    return [name, *map(str, numbers), interval(agreement.sensitivity), interval(agreement.specificity)]


def difference_rows(differences: Mapping[str, Difference]) -> list[list[str]]:
    """Return a row of cells for each finding: name, films, films only one run gets right, p-values."""
    return [
        [
            name,
            *map(str, (difference.count, difference.only_this, difference.only_other)),
            f"{difference.p:.3g}",
            f"{difference.p_holm:.3g}",
        ]
        for name, difference in differences.items()
    ]


def _group(result: Evaluation, key: str) -> str:
    head = [f"by {key}: {ANY}", "n", "sensitivity (95 %)", "specificity (95 %)"]
    groups = {group: agreements[ANY] for group, agreements in result.groups[key].items()}
    rows = [
        [group, str(agreement.counts.total), interval(agreement.sensitivity), interval(agreement.specificity)]
        for group, agreement in groups.items()
    ]
    return grid([head, *rows])


def grid(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as text with aligned columns. The first column is left-aligned, the others right-aligned."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    return "\n".join("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows)
