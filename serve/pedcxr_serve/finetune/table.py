"""The films and reports of a training: a manifest (CSV or JSONL), or a folder with a text file beside each film.

Messages give line numbers, and never the contents of a cell: it may name a person.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from pedcxr_client.batch import csv_rows, folder, manifest
from pedcxr_client.batch.manifest import Entry
from pedcxr_client.errors import InputError
from pedcxr_client.request.prompts import MARKERS
from pedcxr_serve.errors import ConfigError, DataError

Split = Literal["train", "validation", "test"]
COLUMNS = ("report", "split", "patient")
"""The columns beside those of `pedcxr batch`; only ``path`` and ``report`` are required."""

_IN_PARTS = ("findings", "impression")
_SPLITS: dict[str, Split] = {name: name for name in get_args(Split)} | {"val": "validation", "valid": "validation"}
_LONGEST_REPORT = 20_000  # characters
_MAX_PROBLEMS = 10  # in one message


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Row:
    """One film with its report.

    Attributes:
        where: How messages name the row: a line number, or the path of the film within its folder.
        split: None if the data state no split.
        patient: What is the same for all films of a patient, or "" if the data do not state it.
    """

    where: str
    entry: Entry
    report: str
    split: Split | None = None
    patient: str = ""


def read(path: Path, *, allow_outside: bool = False) -> list[Row]:
    """Read and check all rows.

    Raises:
        ConfigError: The path does not exist.
        DataError: Lists the first ten problems.
    """
    if not path.exists():
        raise ConfigError(f"DATA {path}: no such file or folder. Give a manifest (CSV or JSONL) or a folder of films.")
    rows: list[Row] = []
    problems: list[str] = []
    try:
        for row in _folder_rows(path, allow_outside) if path.is_dir() else _manifest_rows(path, allow_outside):
            if isinstance(row, Row):
                rows.append(row)
            else:
                problems.append(row)
    except InputError as error:
        raise DataError(f"{path}: {error}") from error
    if len({row.split is None for row in rows}) == 2:
        empty = next(row for row in rows if row.split is None)
        problems.append(f"{empty.where}: split is empty; fill it in on every line, or remove the column")
    if path.is_dir() and not rows and problems:
        raise DataError(f"{path}: no film has a report that can be read ({problems[0]}). {_hint(path)}")
    raise_problems(path, problems)
    if not rows:
        raise DataError(f"{path}: holds no film. {_hint(path)}")
    return rows


def _hint(path: Path) -> str:
    """Return what to give instead of data without films or reports."""
    if not path.is_dir():
        return "Write one line per film below the header."
    if manifests := sorted(file.name for file in path.iterdir() if file.suffix in (".csv", ".jsonl")):
        return f"If {manifests[0]} in it lists films and reports, give that file."
    return "Give a manifest (CSV or JSONL), or a folder with NAME.txt, the report, beside each film."


def raise_problems(path: Path, problems: list[str]) -> None:
    """Raise a DataError with the first ten problems, if there are any."""
    if problems:
        more = [f"and {len(problems) - _MAX_PROBLEMS} more"] if len(problems) > _MAX_PROBLEMS else []
        raise DataError("\n  ".join([f"{path} cannot be used for training:", *problems[:_MAX_PROBLEMS], *more]))


def _manifest_rows(path: Path, allow_outside: bool) -> Iterator[Row | str]:
    columns = (*manifest.COLUMNS, *COLUMNS, *_IN_PARTS)
    if path.suffix == ".jsonl":
        rows = _json_rows(path, columns)
    else:
        rows = csv_rows.read(str(path), "the manifest", columns, required="path")
    for line, cells in rows:
        if isinstance(cells, str):
            yield f"line {line}: {cells}"
            continue
        if problem := _column_problem(cells):
            yield f"line {line if path.suffix == '.jsonl' else 1}: {problem}"
            if path.suffix != ".jsonl":  # the same on every line
                return
            continue
        entry = manifest.entry(cells, str(path), allow_outside=allow_outside)
        yield f"line {line}: {entry}" if isinstance(entry, str) else _row(f"line {line}", entry, cells)


def _json_rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str] | str]]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            for line, text in enumerate(file, 1):
                if text.strip():
                    yield line, _json_cells(text, columns)
    except UnicodeError as error:
        raise InputError("the manifest: is not UTF-8; save it as JSON lines in UTF-8") from error
    except OSError as error:
        raise InputError(f"the manifest: {error.strerror or 'cannot be opened'}; check the path") from error


def _json_cells(text: str, columns: tuple[str, ...]) -> dict[str, str] | str:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return "is not valid JSON; write one object per line"
    if not isinstance(value, dict):
        return "is not a JSON object; write one object per line"
    cells = {str(name).strip().lower(): "" if cell is None else cell for name, cell in value.items()}
    if unknown := [number for number, name in enumerate(cells, 1) if name not in columns]:
        return f"unknown key {unknown[0]}; rename or remove it. Allowed keys: {', '.join(columns)}"
    if wrong := [name for name, cell in cells.items() if not isinstance(cell, str)]:
        return f"{wrong[0]} must be a text in quotation marks"
    if "path" not in cells:
        return "path is missing"
    return {name: cell.strip() for name, cell in cells.items()}


def _column_problem(cells: dict[str, str]) -> str:
    if parts := [name for name in _IN_PARTS if name in cells]:
        columns = " and ".join(parts + ["report"] * ("report" in cells))
        return f"the report is in other columns ({columns}); join them into one column, report"
    return "" if "report" in cells else "the column report is missing; add it, with the text that the model is to write"


def _row(where: str, entry: Entry, cells: dict[str, str]) -> Row | str:
    split = cells.get("split", "").lower()
    if split and split not in _SPLITS:
        return f"{where}: split must be train, validation or test"
    report = cells["report"].replace("\r\n", "\n")
    if problem := _report_problem(report):
        return f"{where}: {problem}"
    stated = _SPLITS[split] if split else None
    return Row(where=where, entry=entry, report=report, split=stated, patient=cells.get("patient", ""))


def _report_problem(report: str) -> str:
    if not report:
        return "report is empty; write it, or remove the line"
    if len(report) > _LONGEST_REPORT:
        return f"report is longer than {_LONGEST_REPORT} characters; check for a missing quotation mark"
    if marker := MARKERS.search(report):
        return f"report contains {marker[0]}, a special token of the model; remove it"
    if any(not letter.isprintable() and letter not in "\n\t" for letter in report):
        return "report contains characters that are not printable; save it as plain text in UTF-8"
    return ""


def _folder_rows(path: Path, allow_outside: bool) -> Iterator[Row | str]:
    """Yield the films of a folder that have a text file beside them. A subfolder holds the films of one patient."""
    for entry in folder.walk(str(path), allow_outside=allow_outside):
        if not isinstance(entry, Entry):
            continue
        report = Path(entry.path).with_suffix(".txt")
        try:
            text = report.read_text(encoding="utf-8-sig").strip()
        except FileNotFoundError:
            yield f"{entry.id}: its report is missing; write it into a file of the same name that ends in .txt"
        except (OSError, UnicodeError):
            yield f"{entry.id}: its report cannot be read as UTF-8"
        else:
            problem = _report_problem(text)
            patient = os.path.dirname(entry.id)
            yield (
                f"{entry.id}: {problem}" if problem else Row(where=entry.id, entry=entry, report=text, patient=patient)
            )
