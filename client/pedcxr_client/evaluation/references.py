"""REFERENCE.csv: what is right for each film. Errors tell line and column number, never what stands there."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pedcxr_client.errors import InputError
from pedcxr_client.films.age import Age

TEXT = "reference"
_OTHERS = ("id", TEXT, "age", "sex", "view")
_CELLS = {"1": True, "0": False, "": None}
_LONGEST = 10_000_000  # characters a cell


@dataclass(frozen=True, slots=True, repr=False)
class Right:
    """What is right for one film: a report, or findings that are there (True), not there (False) or not known (None).

    ``line`` is that of the file.
    """

    line: int
    text: str | None
    findings: Mapping[str, bool | None]
    age: str | None
    sex: str | None
    view: str | None


@dataclass(frozen=True, slots=True, repr=False)
class Reference:
    """A file of references.

    Attributes:
        rows: by id, in the order of the file.
        columns: findings that have a column; () where the reports are the reference.
        has_text: whether there is a column of reports.
    """

    rows: Mapping[str, Right]
    columns: tuple[str, ...]
    has_text: bool


def read(path: Path, names: Sequence[str]) -> Reference:
    """Read a reference: UTF-8 with or without a byte order mark, commas, any line ends.

    Args:
        path: the file.
        names: of the lexicon's findings, which a column may have; letter case, spaces and ``-`` do not matter.

    Raises:
        InputError: if the file cannot be read, a column is missing, unknown or there twice, an id is empty or there
            twice, or a cell holds what it may not.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return _read(path, names, _rows(path, file))
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8; save it as CSV UTF-8") from error
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or 'cannot be opened'}; check the path") from error


def _rows(path: Path, file: Iterator[str]) -> Iterator[tuple[int, list[str]]]:
    """The rows that are not blank, each with the number of its last line."""
    limit = csv.field_size_limit(_LONGEST)
    reader = csv.reader(file, strict=True)
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                yield reader.line_num, row
    except csv.Error as error:
        raise InputError(f"{path}: line {reader.line_num}: is no CSV ({error}); quote cells with commas") from error
    finally:
        csv.field_size_limit(limit)


def _read(path: Path, names: Sequence[str], rows: Iterator[tuple[int, list[str]]]) -> Reference:
    header = _header(path, names, next(rows, (1, []))[1])
    findings = tuple(name for name in header if name not in _OTHERS)
    found: dict[str, Right] = {}
    for line, row in rows:
        if len(row) != len(header):
            raise InputError(f"{path}: line {line}: has {len(row)} cells, the header {len(header)}; correct it")
        cells = {name: cell.strip() for name, cell in zip(header, row, strict=True)}
        name = cells["id"]
        if not name:
            raise InputError(f"{path}: line {line}: its id is empty; each film needs one")
        if name in found:
            raise InputError(f"{path}: line {line}: its id is on line {found[name].line} already; keep one")
        for place, column in enumerate(header, 1):
            if (wrong := _wrong(column, cells[column], findings)) is not None:
                raise InputError(f"{path}: line {line}, column {place}: {wrong}")
        text, age, sex, view = (cells.get(key) or None for key in _OTHERS[1:])
        found[name] = Right(line, text, {one: _CELLS[cells[one]] for one in findings}, age, sex, view)
    if not found:
        raise InputError(f"{path}: holds no film; one line each below the header")
    return Reference(found, findings, TEXT in header)


def _wrong(column: str, cell: str, findings: tuple[str, ...]) -> str | None:
    """Why a cell is not one of its column's; None where it is."""
    if column in findings and cell not in _CELLS:
        return "a finding is 1, 0 or empty"
    if column == "sex" and cell.upper() not in ("M", "F", "O", ""):
        return "the sex is M, F, O or empty"
    if column == "age" and cell:
        try:
            Age.parse(cell)
        except InputError:
            return "the age is a number and one of d, w, m, y, such as 5y or 18m, or empty"
    return None


def _header(path: Path, names: Sequence[str], row: list[str]) -> list[str]:
    known = {_plain(name): name for name in (*names, *_OTHERS)}
    header = [known.get(_plain(cell), "") for cell in row]
    if len(row) == 1 and (";" in row[0] or "\t" in row[0]):
        raise InputError(f"{path}: its columns are not separated by commas; export it as CSV with commas")
    if "id" not in header:
        raise InputError(f'{path}: the column "id" is missing; the first line names the columns')
    if "" in header:
        place = header.index("") + 1
        raise InputError(
            f"{path}: column {place} is none that is known; remove or rename it. Known: {', '.join(known.values())}"
        )
    for name in header:
        if header.count(name) > 1:
            raise InputError(f'{path}: the column "{name}" is there twice; keep one')
    if not set(header) - {"id", "age", "sex", "view"}:
        raise InputError(f'{path}: nothing to compare with: a column "{TEXT}", or columns of findings, are missing')
    return header


def _plain(name: str) -> str:
    return name.strip().lower().replace(" ", "_").replace("-", "_")
