"""Problems of a model folder, and reading its JSON files."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

_MAX_BYTES = 32 << 20


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem, printed as "{where} {what}: {remedy}". With `block`, serving would fail or give wrong reports."""

    severity: Literal["block", "warn"]
    where: str
    what: str
    remedy: str


def blocking(problems: Iterable[Problem]) -> list[Problem]:
    """Return the problems that prevent serving."""
    return [problem for problem in problems if problem.severity == "block"]


def by_severity(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """Return the problems, those with severity ``block`` first."""
    return tuple(sorted(problems, key=lambda problem: problem.severity != "block"))


def refusal(title: str, problems: Iterable[Problem]) -> str:
    """Return a message with every blocking problem and its remedy below the title; empty if none blocks."""
    lines = [f"  {problem.where} {problem.what}: {problem.remedy}." for problem in blocking(problems)]
    return "\n".join([title, *lines]) if lines else ""


def read_json(path: Path, problems: list[Problem]) -> dict[str, Any] | None:
    """Return the JSON object in a file, or None if the file is missing or invalid.

    An invalid file or a link that leads nowhere is added to `problems`; a missing file is not.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_BYTES + 1)
        if len(raw) > _MAX_BYTES:
            raise ValueError("is larger than 32 MiB")
        value = json.loads(raw)
    except FileNotFoundError:
        report_dangling(path, problems)
        return None
    except OSError as error:
        what, remedy = f"cannot be read ({error.strerror})", "fix its permissions"
    except (ValueError, RecursionError) as error:
        what, remedy = f"is not valid JSON ({error})", "download the file again"
    else:
        if isinstance(value, dict):
            return value
        what, remedy = "is not a JSON object", "download the file again"
    problems.append(Problem("block", path.name, what, remedy))
    return None


def report_dangling(path: Path, problems: list[Problem]) -> bool:
    """Report a link whose target is missing, as in a snapshot of the hub's cache that was copied without its blobs."""
    if not path.is_symlink():
        return False
    what = f"is a link to {path.readlink()}, which is missing"
    problems.append(Problem("block", path.name, what, "mount or copy the whole hub cache, or copy with `cp -aL`"))
    return True
