"""MANIFEST.csv: one film per row. Errors give line and column numbers, never cell contents."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b

from pedcxr_client.batch import csv_rows
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


def entry(cells: dict[str, str], manifest: str, *, allow_outside: bool = False) -> Entry | str:
    """Return the film that the cells of a row in the file ``manifest`` describe, or a description of its problem."""
    return _entry(cells, _Folder(manifest, allow_outside))


def _entries(path: str, allow_outside: bool) -> Iterator[tuple[int, Entry | str]]:
    """Yield the line number of each row with its entry, or with a description of its problem."""
    folder = _Folder(path, allow_outside)
    for line, cells in csv_rows.read(path, "the manifest", COLUMNS, required="path"):
        yield line, cells if isinstance(cells, str) else _entry(cells, folder)


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
