"""How alike the words are: BLEU-4 by sacrebleu, ROUGE-L by rouge-score. Neither knows whether a report is right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from pedcxr_client.evaluation.extras import need


@dataclass(frozen=True, slots=True)
class Overlap:
    """Overlap of ``count`` reports with their references.

    Attributes:
        bleu4: of the corpus, 0 to 100; ``bleu_signature`` says how sacrebleu computed it.
        rouge_l: mean F1 of the longest common subsequence, 0 to 1, without stemming.
    """

    count: int
    bleu4: float
    bleu_signature: str
    rouge_l: float


def overlap(written: Sequence[str], right: Sequence[str]) -> Overlap | None:
    """Compare reports with their references, one by one; None where there is none.

    Raises:
        ConfigurationError: if sacrebleu or rouge-score is not installed.
    """
    if not written:
        return None
    bleu = need("sacrebleu.metrics").BLEU()
    score = bleu.corpus_score(list(written), [list(right)])
    scorer = need("rouge_score.rouge_scorer").RougeScorer(["rougeL"], use_stemmer=False)
    pairs = zip(written, right, strict=True)
    rouge = fmean(scorer.score(target=target, prediction=text)["rougeL"].fmeasure for text, target in pairs)
    return Overlap(len(written), float(score.score), str(bleu.get_signature()), float(rouge))
