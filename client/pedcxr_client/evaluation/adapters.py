"""Scores of other projects, used where they are installed. They download weights, so that nothing here needs them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

from pedcxr_client.errors import ConfigurationError

Score = Callable[[Sequence[str], Sequence[str]], dict[str, float]]


def score(name: str, written: Sequence[str], right: Sequence[str]) -> dict[str, float]:
    """Scores of reports against their references, by the names that the project gives them.

    Args:
        name: a key of :data:`NAMES`.
        written: the reports.
        right: their references, one each.

    Raises:
        ConfigurationError: if the project is not installed, or does not answer in the form known here.
    """
    try:
        return _SCORES[name](written, right)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise ConfigurationError(
            f"--with {name}: the {name} installed answers in another form than {NAMES[name]}; leave it out"
        ) from error


def _import(name: str, module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise ConfigurationError(
            f"--with {name}: is not installed: pip install {name}. It downloads its weights when it first runs"
        ) from error


def _radgraph(written: Sequence[str], right: Sequence[str]) -> dict[str, float]:
    scorer = _import("radgraph", "radgraph").F1RadGraph(reward_level="all", model_type="radgraph-xl")
    simple, partial, complete = scorer(hyps=list(written), refs=list(right))[0]
    return {"simple": float(simple), "partial": float(partial), "complete": float(complete)}


def _radeval(written: Sequence[str], right: Sequence[str]) -> dict[str, float]:
    evaluator = _import("radeval", "RadEval").RadEval(do_radgraph=True, do_chexbert=True)
    answer: Mapping[str, Any] = evaluator(refs=list(right), hyps=list(written))
    return {key: float(value) for key, value in answer.items() if isinstance(value, int | float)}


NAMES = {"radgraph": "radgraph 0.1's F1RadGraph", "radeval": "RadEval 0.1's evaluator"}
_SCORES: dict[str, Score] = {"radgraph": _radgraph, "radeval": _radeval}
