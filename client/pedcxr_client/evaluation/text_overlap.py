"""Text similarity: BLEU-4 by sacrebleu, ROUGE-L by rouge-score, and optionally the scores of radgraph and RadEval.

BLEU and ROUGE measure shared words, not clinical correctness. radgraph and RadEval download weights on their first run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from statistics import fmean
from typing import Any

from pedcxr_client.errors import ConfigurationError
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
    """Compare each report with its reference. Return None if there are no reports.

    Raises:
        ConfigurationError: sacrebleu or rouge-score is not installed.
    """
    if not reports:
        return None
    bleu = import_extra("sacrebleu.metrics").BLEU()
    score = bleu.corpus_score(list(reports), [list(references)])
    scorer = import_extra("rouge_score.rouge_scorer").RougeScorer(["rougeL"], use_stemmer=False)
    pairs = zip(reports, references, strict=True)
    rouge = fmean(scorer.score(target=target, prediction=text)["rougeL"].fmeasure for text, target in pairs)
    return Overlap(len(reports), float(score.score), str(bleu.get_signature()), float(rouge))


def package_scores(name: str, reports: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Score reports with another package. The keys of the result are the score names of that package.

    Args:
        name: a key of :data:`PACKAGES`.
        reports: the reports.
        references: one reference for each report.

    Raises:
        ConfigurationError: the package is not installed, or its interface is not that of the supported version.
    """
    try:
        return _SCORERS[name](reports, references)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise ConfigurationError(
            f"--with {name}: the installed version is not compatible with {PACKAGES[name]}; omit the option"
        ) from error


def _import_package(name: str, module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise ConfigurationError(
            f"--with {name}: the package is not installed: pip install {name}. It downloads weights when it first runs"
        ) from error


def _radgraph(reports: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    scorer = _import_package("radgraph", "radgraph").F1RadGraph(reward_level="all", model_type="radgraph-xl")
    simple, partial, complete = scorer(hyps=list(reports), refs=list(references))[0]
    return {"simple": float(simple), "partial": float(partial), "complete": float(complete)}


def _radeval(reports: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    evaluator = _import_package("radeval", "RadEval").RadEval(do_radgraph=True, do_chexbert=True)
    scores: Mapping[str, Any] = evaluator(refs=list(references), hyps=list(reports))
    return {key: float(value) for key, value in scores.items() if isinstance(value, int | float)}


PACKAGES = {"radgraph": "F1RadGraph of radgraph 0.1", "radeval": "the evaluator of RadEval 0.1"}
"""The supported interface of each package."""
_SCORERS: dict[str, Callable[[Sequence[str], Sequence[str]], dict[str, float]]] = {
    "radgraph": _radgraph,
    "radeval": _radeval,
}
