"""Text similarity: BLEU-4 by sacrebleu and ROUGE-L by rouge-score, which measure shared words, not correctness."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from pedcxr_client.evaluation.statistics import import_extra


@dataclass(frozen=True, slots=True)
class Overlap:
    """Text overlap of ``count`` reports with their references.

    Attributes:
        bleu4: corpus BLEU-4, 0 to 100.
        bleu_signature: the signature of sacrebleu, which states the parameters.
        rouge_l: mean F1 of the longest common subsequence, 0 to 1, without stemming.
    """

    count: int
    bleu4: float
    bleu_signature: str
    rouge_l: float


def overlap(reports: Sequence[str], references: Sequence[str]) -> Overlap | None:
    """Compare each report with its reference. Return None if there are no reports."""
    if not reports:
        return None
    bleu = import_extra("sacrebleu.metrics").BLEU()
    score = bleu.corpus_score(list(reports), [list(references)])
    scorer = import_extra("rouge_score.rouge_scorer").RougeScorer(["rougeL"], use_stemmer=False)
    pairs = zip(reports, references, strict=True)
    rouge = fmean(scorer.score(target=target, prediction=text)["rougeL"].fmeasure for text, target in pairs)
    return Overlap(len(reports), float(score.score), str(bleu.get_signature()), float(rouge))
