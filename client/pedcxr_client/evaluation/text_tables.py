"""An evaluation as plain text. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pedcxr_client.evaluation.scoring import ANY, Evaluation
from pedcxr_client.evaluation.statistics import Agreement, Difference, Rate

_ABBREVIATED = 12  # figures of the lexicon's digest


def text(result: Evaluation) -> str:
    """The tables of ``pedcxr eval``, lines of at most 100 columns or as long as the longest finding's name asks."""
    parts = ["\n".join(f"{name:<22}{value}" for name, value in summary(result)), _findings(result)]
    parts += [_group(result, key) for key in result.groups]
    if result.against is not None:
        parts.append(_against(result.against))
    return "\n\n".join(parts)


def summary(result: Evaluation) -> list[tuple[str, str]]:
    """What stands above the tables: names and values."""
    lines = [
        ("model", ", ".join(result.models) or "not named"),
        ("lexicon", f"version {result.lexicon_version}, sha256 {result.lexicon_sha256[:_ABBREVIATED]}"),
        ("uncertain counts as", result.uncertain),
        ("lines of the run", str(result.lines)),
        ("films in both", str(result.films)),
        ("in one file only", f"run {result.only_run}, reference {result.only_reference}"),
        ("finished", rate(result.finished)),
        ("same text as another", f"{rate(result.duplicates)}; the commonest text is of {result.largest}"),
        ("all normal", f"{rate(result.all_normal)}; of the references {rate(result.right_all_normal)}"),
    ]
    if result.overlap is not None:
        found = result.overlap
        lines.append(("BLEU-4", f"{found.bleu4:.1f} of 100, {found.count} texts ({found.bleu_signature})"))
        lines.append(("ROUGE-L", f"{found.rouge_l:.3f} of 1, mean F1"))
    if result.unused:
        lines.append(("named by neither", ", ".join(result.unused)))
    return lines


def rate(value: Rate) -> str:
    """``97.0 % (94.1-98.7) of 233``, a dash where there is nothing to count."""
    return "-" if value.value is None else f"{interval(value)} of {value.count}"


def interval(value: Rate) -> str:
    """``97.0 % (94.1-98.7)``."""
    if value.value is None or value.low is None or value.high is None:
        return "-"
    return f"{100 * value.value:.1f} % ({100 * value.low:.1f}-{100 * value.high:.1f})"


def _findings(result: Evaluation) -> str:
    head = ["finding", "n", "TP", "FP", "FN", "TN", "sensitivity (95 %)", "specificity (95 %)"]
    rows = [_row(name, one) for name, one in result.findings.items()]
    return grid([head, *rows])


def _row(name: str, found: Agreement) -> list[str]:
    counts = found.counts
    numbers = (
        counts.total,
        counts.true_positive,
        counts.false_positive,
        counts.false_negative,
        counts.true_negative,
    )
    return [name, *map(str, numbers), interval(found.sensitivity), interval(found.specificity)]


def _group(result: Evaluation, key: str) -> str:
    head = [f"by {key}: {ANY}", "n", "sensitivity (95 %)", "specificity (95 %)"]
    rows = [
        [group, str(found[ANY].counts.total), interval(found[ANY].sensitivity), interval(found[ANY].specificity)]
        for group, found in result.groups[key].items()
    ]
    return grid([head, *rows])


def _against(differences: Mapping[str, Difference]) -> str:
    head = ["against the other run", "n", "only this right", "only other right", "McNemar p", "p (Holm)"]
    rows = [
        [name, str(one.count), str(one.only_this), str(one.only_other), f"{one.p:.3g}", f"{one.p_holm:.3g}"]
        for name, one in differences.items()
    ]
    return grid([head, *rows])


def grid(rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell; the first to the left, the others to the right."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    return "\n".join("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows)
