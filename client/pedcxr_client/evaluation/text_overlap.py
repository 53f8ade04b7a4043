"""How alike the words are: BLEU-4 by sacrebleu, ROUGE-L by rouge-score. Neither knows whether a report is right."""

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
    bleu = import_extra("sacrebleu.metrics").BLEU()
    score = bleu.corpus_score(list(written), [list(right)])
    scorer = import_extra("rouge_score.rouge_scorer").RougeScorer(["rougeL"], use_stemmer=False)
    pairs = zip(written, right, strict=True)
    rouge = fmean(scorer.score(target=target, prediction=text)["rougeL"].fmeasure for text, target in pairs)
    return Overlap(len(written), float(score.score), str(bleu.get_signature()), float(rouge))


def package_scores(name: str, written: Sequence[str], right: Sequence[str]) -> dict[str, float]:
    """Scores of reports against their references, by the names that the project gives them.

    Args:
        name: a key of :data:`PACKAGES`.
        written: the reports.
        right: their references, one each.

    Raises:
        ConfigurationError: if the project is not installed, or does not answer in the form known here.
    """
    try:
        return _SCORERS[name](written, right)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise ConfigurationError(
            f"--with {name}: the {name} installed answers in another form than {PACKAGES[name]}; leave it out"
        ) from error


def _import_package(name: str, module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise ConfigurationError(
            f"--with {name}: is not installed: pip install {name}. It downloads its weights when it first runs"
        ) from error


def _radgraph(written: Sequence[str], right: Sequence[str]) -> dict[str, float]:
    scorer = _import_package("radgraph", "radgraph").F1RadGraph(reward_level="all", model_type="radgraph-xl")
    simple, partial, complete = scorer(hyps=list(written), refs=list(right))[0]
    return {"simple": float(simple), "partial": float(partial), "complete": float(complete)}


def _radeval(written: Sequence[str], right: Sequence[str]) -> dict[str, float]:
    evaluator = _import_package("radeval", "RadEval").RadEval(do_radgraph=True, do_chexbert=True)
    answer: Mapping[str, Any] = evaluator(refs=list(right), hyps=list(written))
    return {key: float(value) for key, value in answer.items() if isinstance(value, int | float)}


PACKAGES = {"radgraph": "radgraph 0.1's F1RadGraph", "radeval": "RadEval 0.1's evaluator"}
_SCORERS: dict[str, Callable[[Sequence[str], Sequence[str]], dict[str, float]]] = {
    "radgraph": _radgraph,
    "radeval": _radeval,
}
