"""Text similarity: BLEU-4 by sacrebleu and ROUGE-L by rouge-score, which measure shared words, not correctness."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from pedcxr_client.evaluation.statistics import import_extra, middle, resampled_sums

_ORDERS = 4  # BLEU counts sequences of one to four words


@dataclass(frozen=True, slots=True)
class Overlap:
    """Text overlap of ``count`` reports with their references. The intervals are 95 % percentile bootstraps.
    One patient has no interval.

    Attributes:
        bleu4: corpus BLEU-4, 0 to 100.
        bleu_signature: the signature of sacrebleu, which states the parameters.
        rouge_l: mean F1 of the longest common subsequence, 0 to 1, without stemming.
    """

    count: int
    bleu4: float
    bleu4_interval: tuple[float, float] | None
    bleu_signature: str
    rouge_l: float
    rouge_l_interval: tuple[float, float] | None


def overlap(reports: Sequence[str], references: Sequence[str], patients: Sequence[Hashable]) -> Overlap | None:
    """Compare each report with its reference. Return None if there are no reports.

    Args:
        patients: the patient of each report. The bootstrap draws patients.
    """
    if not reports:
        return None
    bleu = import_extra("sacrebleu.metrics").BLEU()
    scorer = import_extra("rouge_score.rouge_scorer").RougeScorer(["rougeL"], use_stemmer=False)

    rows = []
    for report, target in zip(reports, references, strict=True):
        score = bleu.corpus_score([report], [[target]])
        rouge = scorer.score(target=target, prediction=report)["rougeL"].fmeasure
        rows.append([rouge, 1, *score.counts, *score.totals, score.sys_len, score.ref_len])

    def corpus_bleu(sums: Any) -> float:
        numbers = [int(number) for number in sums[2:]]
        smoothing = {"smooth_method": bleu.smooth_method, "smooth_value": bleu.smooth_value}
        return float(
            bleu.compute_bleu(numbers[:_ORDERS], numbers[_ORDERS : 2 * _ORDERS], *numbers[-2:], **smoothing).score
        )

    totals = [sum(column) for column in zip(*rows, strict=True)]
    sums = resampled_sums(rows, patients)
    several = len(set(patients)) > 1
    return Overlap(
        len(reports),
        corpus_bleu(totals),
        middle([corpus_bleu(row) for row in sums]) if several else None,
        str(bleu.get_signature()),
        float(totals[0] / totals[1]),
        middle(sums[:, 0] / sums[:, 1]) if several else None,
    )
