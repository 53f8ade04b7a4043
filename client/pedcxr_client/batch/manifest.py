"""MANIFEST.csv: a film a row. Errors tell line and column numbers, never what stands there."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import TextIO

from pedcxr_client.errors import InputError

COLUMNS = ("path", "id", "age", "sex", "assume_chest", "allow")
"""What a column may be; only ``path`` has to be there. Letter case and blanks around do not matter."""
_TRUTH = {"": False, "0": False, "no": False, "false": False, "1": True, "yes": True, "true": True}
_SHOWN = 10  # problems in a message


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Entry:
    """A film and what the manifest says of it.

    Attributes:
        id: the user's name for it, which stands in the output; unique in the batch.
        path: where it is.
        age, sex: as the manifest has them, or None; looked at when the film is taken in.
        assume_chest: it shows a chest, should its header not say.
        allow: names of checks that must not block it.
    """

    id: str
    path: str
    age: str | None = None
    sex: str | None = None
    assume_chest: bool = False
    allow: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class LeftOut:
    """A file of a folder that is no film.

    Attributes:
        id: its path below the folder.
        reason: why, in words of a closed set.
    """

    id: str
    reason: str


def check(path: str, *, allow_outside: bool = False) -> int:
    """PixelStats at all of a manifest before anything is sent, and return how many films it names.

    Raises:
        InputError: if it cannot be read, is no CSV of these columns, names an id twice, or a film outside its folder
            that is not allowed to be there; the message says what is wrong on which lines, the first ten.
    """
    seen: dict[bytes, int] = {}
    problems: list[str] = []
    wrong = 0
    for line, entry in _entries(path, allow_outside):
        if isinstance(entry, Entry):
            name = blake2b(entry.id.encode(), digest_size=16).digest()
            first = seen.setdefault(name, line)
            problem = None if first == line else f"line {line}: its id is on line {first} already; each film needs one"
        else:
            problem = f"line {line}: {entry}"
        if problem is not None:
            wrong += 1
            problems += [problem] if len(problems) < _SHOWN else []
    if wrong:
        more = f"; and {wrong - _SHOWN} more" if wrong > _SHOWN else ""
        raise InputError(f"the manifest: {'; '.join(problems)}{more}")
    if not seen:
        raise InputError("the manifest: names no film; write one a row below the header")
    return len(seen)


def read(path: str, *, allow_outside: bool = False) -> Iterator[Entry]:
    """The films of a manifest, one by one; it is never held whole.

    Raises:
        InputError: as :func:`check` does, of the first thing that is wrong; ids are not compared.
    """
    for line, entry in _entries(path, allow_outside):
        if not isinstance(entry, Entry):
            raise InputError(f"the manifest: line {line}: {entry}")
        yield entry


def _entries(path: str, allow_outside: bool) -> Iterator[tuple[int, Entry | str]]:
    """Each row's line number with its film, or with what is wrong with it."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            yield from _rows(file, _Folder(path, allow_outside))
    except UnicodeDecodeError as error:
        raise InputError("the manifest: is not UTF-8; save it as CSV UTF-8") from error
    except OSError as error:
        raise InputError(f"the manifest: {error.strerror or 'cannot be opened'}; check the path") from error


def _rows(file: TextIO, folder: _Folder) -> Iterator[tuple[int, Entry | str]]:
    reader = csv.reader(file, strict=True)
    try:
        header = _header(next(reader, []))
        for row in reader:
            if not any(cell.strip() for cell in row):
                continue
            if len(row) != len(header):
                yield reader.line_num, f"has {len(row)} cells, the header {len(header)}"
            else:
                yield reader.line_num, _entry(dict(zip(header, (cell.strip() for cell in row), strict=True)), folder)
    except csv.Error as error:
        if "field limit" in str(error):
            raise InputError(
                f"the manifest: line {reader.line_num}: a cell is longer than {csv.field_size_limit()} characters; "
                "is a quotation mark missing?"
            ) from error
        raise InputError(f"the manifest: line {reader.line_num}: is no CSV; quote cells that hold commas") from error


def _header(row: list[str]) -> list[str]:
    header = [cell.strip().lower() for cell in row]
    if len(row) == 1 and (";" in row[0] or "\t" in row[0]):
        raise InputError("the manifest: its columns are not separated by commas; export it as CSV with commas")
    for place, name in enumerate(header, 1):
        if name not in COLUMNS:
            raise InputError(
                f"the manifest: column {place} is none that is known; rename or remove it, lest it be a misspelt one. "
                f"Known: {', '.join(COLUMNS)}"
            )
        if header.index(name) != place - 1:
            raise InputError(f'the manifest: the column "{name}" is there twice; keep one')
    if "path" not in header:
        raise InputError('the manifest: the column "path" is missing; the first line names the columns')
    return header


class _Folder:
    """The folder of a manifest, which its films must not leave."""

    def __init__(self, manifest: str, allow_outside: bool) -> None:
        self._here = os.path.dirname(os.path.abspath(manifest))
        self._real = os.path.join(os.path.realpath(self._here), "")
        self._allow_outside = allow_outside

    def find(self, path: str) -> str | None:
        """The whole path of a film, None if it leads out of the folder, by ``..`` or by a link."""
        whole = os.path.join(self._here, path)
        return whole if self._allow_outside or os.path.realpath(whole).startswith(self._real) else None


def _entry(cells: dict[str, str], folder: _Folder) -> Entry | str:
    if not cells["path"]:
        return "its path is empty"
    if "\0" in cells["path"]:
        return "its path holds a NUL character"
    if (path := folder.find(cells["path"])) is None:
        return "its path leads out of the manifest's folder; move the film, or allow it with --allow-outside"
    if not (name := cells.get("id", cells["path"])):
        return "its id is empty"
    if (assume := _TRUTH.get(cells.get("assume_chest", "").lower())) is None:
        return "assume_chest is neither true nor false"
    return Entry(
        id=name,
        path=path,
        age=cells.get("age") or None,
        sex=cells.get("sex", "").upper() or None,
        assume_chest=assume,
        allow=tuple(cells.get("allow", "").split()),
    )
