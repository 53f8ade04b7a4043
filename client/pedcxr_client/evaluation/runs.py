"""Read RUN.jsonl, the reports to evaluate."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pedcxr_client.errors import InputError

_MAX_LINE = 10_000_000  # characters


@dataclass(frozen=True, slots=True, repr=False)
class RunReport:
    """One report of a run, with the values of its line, or None.

    ``study`` is the same for the films of one study. ``mentions_prior``: the report compares the film with another one.
    """

    text: str
    age: str | None
    sex: str | None
    view: str | None
    study: str | None
    mentions_prior: bool | None


@dataclass(frozen=True, slots=True, repr=False)
class Run:
    """A run: its reports by id in file order, and the ids without a report.

    ``lines`` counts the lines that are not blank. ``models`` holds each distinct model as ``NAME@REVISION``.
    """

    reports: Mapping[str, RunReport]
    failed: frozenset[str]
    lines: int
    models: tuple[str, ...]


def read(path: Path) -> Run:
    """Read a run, the output of ``pedcxr batch``. Errors name the line, never its content.

    Each line is a JSON object with ``id`` and either ``text`` or ``error``. A ``finish_reason`` other than ``"stop"``
    marks a failure. Other keys are ignored. An error may precede a report with the same id from a later attempt. A
    report of another model or revision (``--redo``) replaces an earlier one. A film that was skipped does not count.
    """
    reports: dict[str, RunReport] = {}
    failed: set[str] = set()
    line_of: dict[str, int] = {}
    model_of: dict[str, str] = {}
    lines = 0
    for number, entry in _entries(path):
        lines += 1
        name = _name(path, number, entry)
        if _is_skipped(entry):
            continue
        model = "@".join(part for key in ("model", "model_revision") if (part := _string(entry, key)))
        if name in reports and model_of[name] == model:
            raise InputError(f"{path}: line {number}: duplicate id, first report on line {line_of[name]}; keep one")
        if _is_failure(path, number, entry):
            failed.add(name)
            continue
        line_of[name] = number
        prior = entry.get("mentions_prior")
        age, sex, view, study = (_string(entry, key) for key in ("age", "sex", "view", "study"))
        reports[name] = RunReport(entry["text"], age, sex, view, study, None if prior is None else bool(prior))
        model_of[name] = model
    if not lines:
        raise InputError(f"{path}: contains no line; pass the output file of pedcxr batch")
    return Run(
        reports, frozenset(failed - reports.keys()), lines, tuple(dict.fromkeys(filter(None, model_of.values())))
    )


def _entries(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            for number, line in enumerate(file, 1):
                if len(line) > _MAX_LINE:
                    raise InputError(f"{path}: line {number}: longer than {_MAX_LINE // 10**6} million characters")
                if line.strip():
                    yield number, _entry(path, number, line)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8; pass the output file of pedcxr batch") from error
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or 'cannot be opened'}; check the path") from error


def _entry(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        entry = None
    if not isinstance(entry, dict):
        raise InputError(f"{path}: line {number}: not a JSON object; resume an interrupted run with pedcxr batch")
    return entry


def _name(path: Path, number: int, entry: dict[str, Any]) -> str:
    name = entry.get("id")
    if not isinstance(name, str) or not name.strip():
        raise InputError(f'{path}: line {number}: "id" must be a non-empty string; every film needs one')
    return name.strip()


def _is_skipped(entry: dict[str, Any]) -> bool:
    error = entry.get("error")
    return isinstance(error, dict) and error.get("kind") == "skipped"


def _is_failure(path: Path, number: int, entry: dict[str, Any]) -> bool:
    if entry.get("error") is not None:
        return True
    if not isinstance(entry.get("text"), str):
        raise InputError(f'{path}: line {number}: has neither "text" nor "error"; pass the output file of pedcxr batch')
    return entry.get("finish_reason", "stop") != "stop" or not entry["text"].strip()


def _string(entry: dict[str, Any], key: str) -> str | None:
    value = entry.get(key)
    return value if isinstance(value, str) and value else None
