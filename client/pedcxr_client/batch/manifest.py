"""MANIFEST.csv: one film per row. Errors give line and column numbers, never cell contents."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain
from typing import TextIO

from pedcxr_client.checks import rules
from pedcxr_client.errors import InputError
from pedcxr_client.films.age import Age
from pedcxr_client.types import Sex

COLUMNS = ("path", "id", "age", "sex", "assume_chest", "allow")
"""The column names; only ``path`` is required. Letter case and surrounding blanks are ignored."""
_TRUTH_VALUES = {
    **dict.fromkeys(("", "0", "no", "false", "falsch", "faux", "fals"), False),
    **dict.fromkeys(("1", "yes", "true", "wahr", "vrai", "adevărat"), True),  # as Excel writes them, by its language
}
_SEXES: dict[str, Sex | None] = {"": None, "M": "M", "F": "F"}
_SEPARATORS = (",", ";", "\t")
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # byte order marks
_MAX_PROBLEMS = 10  # in one message


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Entry:
    """One film of a batch. The ``id`` names it in the output and is unique within the batch."""

    id: str
    path: str
    age: Age | None = None
    sex: Sex | None = None
    assume_chest: bool = False
    allow: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class SkippedFile:
    """A file in a folder that is not a film. The ``id`` is its path relative to the folder."""

    id: str
    reason: str


def check(path: str, *, allow_outside: bool = False) -> int:
    """Validate a whole manifest before any film is sent, and return the number of films.

    The message of an InputError lists the first ten problems with their line numbers.
    """
    lines_by_id: dict[bytes, int] = {}
    problems: list[str] = []
    problem_count = 0
    for line, entry in _entries(path, allow_outside):
        if isinstance(entry, Entry):
            digest = blake2b(entry.id.encode(), digest_size=16).digest()
            first = lines_by_id.setdefault(digest, line)
            problem = None if first == line else f"line {line}: id is already used on line {first}; make it unique"
        else:
            problem = f"line {line}: {entry}"
        if problem is not None:
            problem_count += 1
            problems += [problem] if len(problems) < _MAX_PROBLEMS else []
    if problem_count:
        more = f"; and {problem_count - _MAX_PROBLEMS} more" if problem_count > _MAX_PROBLEMS else ""
        raise InputError(f"the manifest: {'; '.join(problems)}{more}")
    if not lines_by_id:
        raise InputError("the manifest: lists no film; add one row per film below the header")
    return len(lines_by_id)


def read(path: str, *, allow_outside: bool = False) -> Iterator[Entry]:
    """Yield the films of a manifest without loading the whole file. Ids are not compared."""
    for line, entry in _entries(path, allow_outside):
        if not isinstance(entry, Entry):
            raise InputError(f"the manifest: line {line}: {entry}")
        yield entry


def read_table(
    path: str, more: tuple[str, ...], *, allow_outside: bool = False
) -> Iterator[tuple[int, Entry | str, dict[str, str]]]:
    """Yield the line number of each row, its film or a description of its problem, and its cells of ``more`` columns.

    The table is CSV, or JSONL if the name of the file ends in ``.jsonl``: one object of texts per line.
    """
    if path.endswith(".jsonl"):
        yield from _objects(path, _Folder(path, allow_outside), (*COLUMNS, *more))
    else:
        yield from _table(path, allow_outside, (*COLUMNS, *more))


def _entries(path: str, allow_outside: bool) -> Iterator[tuple[int, Entry | str]]:
    """Yield the line number of each row with its entry, or with a description of its problem."""
    return ((line, entry) for line, entry, _ in _table(path, allow_outside, COLUMNS))


def _table(
    path: str, allow_outside: bool, columns: tuple[str, ...]
) -> Iterator[tuple[int, Entry | str, dict[str, str]]]:
    try:
        with open(path, "rb") as binary:
            encoding = "utf-16" if binary.read(2) in _UTF_16 else "utf-8-sig"
        with open(path, encoding=encoding, newline="") as file:
            yield from _rows(file, _Folder(path, allow_outside), columns)
    except UnicodeError as error:
        raise InputError(
            "the manifest: is not UTF-8; save it as CSV UTF-8, or as Unicode text (UTF-16 with a byte order mark)"
        ) from error
    except OSError as error:
        raise InputError(f"the manifest: {error.strerror or 'cannot be opened'}; check the path") from error


def _objects(path: str, folder: _Folder, columns: tuple[str, ...]) -> Iterator[tuple[int, Entry | str, dict[str, str]]]:
    try:
        with open(path, encoding="utf-8-sig") as file:
            for line, text in enumerate(file, 1):
                if text.strip():
                    yield line, *_object(text, folder, columns)
    except UnicodeError as error:
        raise InputError("the manifest: is not UTF-8; save it as JSON lines in UTF-8") from error
    except OSError as error:
        raise InputError(f"the manifest: {error.strerror or 'cannot be opened'}; check the path") from error


def _object(text: str, folder: _Folder, columns: tuple[str, ...]) -> tuple[Entry | str, dict[str, str]]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return "is not valid JSON; write one object per line", {}
    if not isinstance(value, dict):
        return "is not a JSON object; write one object per line", {}
    cells = {str(name).strip().lower(): "" if cell is None else cell for name, cell in value.items()}
    if unknown := [number for number, name in enumerate(cells, 1) if name not in columns]:
        return f"unknown key {unknown[0]}; rename or remove it. Allowed keys: {', '.join(columns)}", {}
    if wrong := [name for name, cell in cells.items() if not isinstance(cell, str)]:
        return f"{wrong[0]} must be a text in quotation marks", {}
    if "path" not in cells:
        return "path is missing", {}
    cells = {name: cell.strip() for name, cell in cells.items()}
    return _entry(cells, folder), {name: cell for name, cell in cells.items() if name not in COLUMNS}


def _rows(file: TextIO, folder: _Folder, columns: tuple[str, ...]) -> Iterator[tuple[int, Entry | str, dict[str, str]]]:
    first, offset = file.readline(), 0
    separator = _stated_separator(first)
    if separator is not None:
        first, offset = file.readline(), 1
    reader = csv.reader(chain([first], file), strict=True, delimiter=separator or _separator_of(first))
    try:
        header = _header(next(reader, []), columns)
        for row in reader:
            line = reader.line_num + offset
            if not any(cell.strip() for cell in row):
                continue
            if len(row) != len(header):
                yield line, f"has {len(row)} cells but the header has {len(header)}", {}
            else:
                cells = dict(zip(header, (cell.strip() for cell in row), strict=True))
                yield line, _entry(cells, folder), {name: cells[name] for name in header if name not in COLUMNS}
    except csv.Error as error:
        line = reader.line_num + offset
        if "field limit" in str(error):
            raise InputError(
                f"the manifest: line {line}: a cell is longer than {csv.field_size_limit()} characters; "
                "check for a missing quotation mark"
            ) from error
        raise InputError(
            f"the manifest: line {line}: is not valid CSV; put cells that contain the separator in quotation marks"
        ) from error


def _stated_separator(line: str) -> str | None:
    """Return the separator of a line such as ``sep=;``, which Excel reads and writes, or None for another line."""
    text = line.rstrip("\r\n").strip('"')
    if text[:4].lower() != "sep=":
        return None
    separator = text[4:]
    if separator not in _SEPARATORS:
        raise InputError("the manifest: line 1: sep= must name a comma, a semicolon or a tab")
    return separator


def _separator_of(header: str) -> str:
    """Return the first of comma, semicolon and tab that the header contains. Column names contain none of them."""
    return next((separator for separator in _SEPARATORS if separator in header), ",")


def _header(row: list[str], columns: tuple[str, ...]) -> list[str]:
    header = [cell.strip().lower() for cell in row]
    for number, name in enumerate(header, 1):
        if name not in columns:
            raise InputError(
                f"the manifest: unknown column {number}; rename or remove it. Allowed columns: {', '.join(columns)}"
            )
        if header.index(name) != number - 1:
            raise InputError(f'the manifest: the column "{name}" appears twice; keep one')
    if "path" not in header:
        raise InputError('the manifest: the column "path" is missing; the first line must name the columns')
    return header


class _Folder:
    def __init__(self, manifest: str, allow_outside: bool) -> None:
        self._path = os.path.dirname(os.path.abspath(manifest))
        self._real = os.path.join(os.path.realpath(self._path), "")
        self._allow_outside = allow_outside

    def resolve(self, path: str) -> str | None:
        """Return the absolute path of a film, or None if ``..`` or a link leads outside the folder."""
        absolute = os.path.join(self._path, path)
        return absolute if self._allow_outside or os.path.realpath(absolute).startswith(self._real) else None


def _entry(cells: dict[str, str], folder: _Folder) -> Entry | str:
    if not cells["path"]:
        return "path is empty"
    if "\0" in cells["path"]:
        return "path contains a NUL character"
    if (path := folder.resolve(cells["path"])) is None:
        return "path leads outside the manifest's folder; move the film, or use --allow-outside"
    if not (name := cells.get("id", cells["path"])):
        return "id is empty"
    if (assume := _TRUTH_VALUES.get(cells.get("assume_chest", "").lower())) is None:
        return "assume_chest must be yes or no (or true, false, 1, 0)"
    if (sex := cells.get("sex", "").upper()) not in _SEXES:
        return "sex must be M or F; leave it empty if it is unknown"
    allow = tuple(cells.get("allow", "").split())
    if not set(allow) <= set(rules.NAMES):
        return f"allow must name checks, separated by spaces: {', '.join(rules.NAMES)}"
    try:
        age = Age.parse(text) if (text := cells.get("age", "")) else None
    except InputError:  # its message quotes the cell, which may hold a name or a number in place of the age
        return "age must be a number and one of d, w, m, y, such as 5y or 18m, and years start at 1"
    return Entry(id=name, path=path, age=age, sex=_SEXES[sex], assume_chest=assume, allow=allow)
