"""RUN.jsonl, as ``pedcxr batch`` writes it: one JSON object a line. Errors tell the line, never what stands on it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pedcxr_client.errors import InputError

_LONGEST = 10_000_000  # characters a line


@dataclass(frozen=True, slots=True, repr=False)
class Written:
    """One report of a run; ``age``, ``sex`` and ``view`` as far as the line tells."""

    text: str
    age: str | None
    sex: str | None
    view: str | None


@dataclass(frozen=True, slots=True, repr=False)
class Run:
    """A run.

    Attributes:
        reports: by id, in the order of the file.
        failed: ids that have no report: an error, or a text that the model did not end by itself.
        lines: of the file, blank ones left out.
        models: names and revisions in the file, each once.
    """

    reports: Mapping[str, Written]
    failed: frozenset[str]
    lines: int
    models: tuple[str, ...]


def read(path: Path) -> Run:
    """Read a run.

    A line is an object with ``id``, and either ``text`` (and, where given, ``finish_reason`` ``"stop"``) or ``error``.
    What else it holds is of no concern. An error may come before the report that a later try gave, not after it.

    Raises:
        InputError: if the file cannot be read, or a line is none of that; the message names the line.
    """
    reports: dict[str, Written] = {}
    failed: set[str] = set()
    at: dict[str, int] = {}
    models: dict[str, None] = {}
    lines = 0
    for number, entry in _entries(path):
        lines += 1
        name = _name(path, number, entry)
        if name in reports:
            raise InputError(f"{path}: line {number}: its id has a report on line {at[name]} already; keep one")
        if _is_failure(path, number, entry):
            failed.add(name)
            continue
        at[name] = number
        reports[name] = Written(entry["text"], *(_word(entry, key) for key in ("age", "sex", "view")))
        models.setdefault("@".join(word for key in ("model", "model_revision") if (word := _word(entry, key))))
    if not lines:
        raise InputError(f"{path}: holds no line; give what pedcxr batch wrote")
    return Run(reports, frozenset(failed - reports.keys()), lines, tuple(name for name in models if name))


def _entries(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            for number, line in enumerate(file, 1):
                if len(line) > _LONGEST:
                    raise InputError(f"{path}: line {number}: is longer than {_LONGEST // 10**6} million characters")
                if line.strip():
                    yield number, _entry(path, number, line)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8; give what pedcxr batch wrote") from error
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or 'cannot be opened'}; check the path") from error


def _entry(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        entry = None
    if not isinstance(entry, dict):
        raise InputError(f"{path}: line {number}: is no JSON object; a run that broke off is finished by pedcxr batch")
    return entry


def _name(path: Path, number: int, entry: dict[str, Any]) -> str:
    name = entry.get("id")
    if not isinstance(name, str) or not name.strip():
        raise InputError(f'{path}: line {number}: "id" is absent or no text; each film needs one')
    return name.strip()


def _is_failure(path: Path, number: int, entry: dict[str, Any]) -> bool:
    if entry.get("error") is not None:
        return True
    if not isinstance(entry.get("text"), str):
        raise InputError(f'{path}: line {number}: has neither "text" nor "error"; give what pedcxr batch wrote')
    return entry.get("finish_reason", "stop") != "stop" or not entry["text"].strip()


def _word(entry: dict[str, Any], key: str) -> str | None:
    value = entry.get(key)
    return value if isinstance(value, str) and value else None
