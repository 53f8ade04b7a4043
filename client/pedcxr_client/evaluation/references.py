"""Read REFERENCE.csv, the reference standard of each film. Errors name the line and the column, never a cell value."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pedcxr_client.errors import InputError
from pedcxr_client.films.age import Age

TEXT = "reference"
_DETAILS = ("age", "sex", "view", "patient", "study")
_OTHER_COLUMNS = ("id", TEXT, *_DETAILS)
_CELLS = {"1": True, "0": False, "": None}
_MAX_CELL = 10_000_000  # characters


@dataclass(frozen=True, slots=True, repr=False)
class ReferenceRow:
    """The reference standard of one film, from one line of the file. None stands for an unknown value.

    ``patient`` and ``study`` are the same for the films of one patient or study.
    """

    line: int
    text: str | None
    findings: Mapping[str, bool | None]
    age: str | None
    sex: str | None
    view: str | None
    patient: str | None
    study: str | None


@dataclass(frozen=True, slots=True, repr=False)
class Reference:
    """The rows of a reference file by id, in file order, and the findings that have a column.

    Without such columns, the reference reports are the standard.
    """

    rows: Mapping[str, ReferenceRow]
    columns: tuple[str, ...]


def read(path: Path, names: Sequence[str]) -> Reference:
    """Read a reference file: CSV with commas in UTF-8, with or without a byte order mark, with any line endings.

    The names of findings are valid column names. Case is ignored; spaces and ``-`` match ``_``.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return _read(path, names, _numbered_rows(path, file))
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8; save it as CSV UTF-8") from error
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or 'cannot be opened'}; check the path") from error


def _numbered_rows(path: Path, file: Iterator[str]) -> Iterator[tuple[int, list[str]]]:
    limit = csv.field_size_limit(_MAX_CELL)
    reader = csv.reader(file, strict=True)
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                yield reader.line_num, row
    except csv.Error as error:
        raise InputError(f"{path}: line {reader.line_num}: invalid CSV ({error}); quote cells with commas") from error
    finally:
        csv.field_size_limit(limit)


def _read(path: Path, names: Sequence[str], rows: Iterator[tuple[int, list[str]]]) -> Reference:
    header = _header(path, names, next(rows, (1, []))[1])
    findings = tuple(name for name in header if name not in _OTHER_COLUMNS)
    films: dict[str, ReferenceRow] = {}
    for line, row in rows:
        if len(row) != len(header):
            raise InputError(f"{path}: line {line}: has {len(row)} cells, but the header has {len(header)}; correct it")
        cells = {name: cell.strip() for name, cell in zip(header, row, strict=True)}
        name = cells["id"]
        if not name:
            raise InputError(f"{path}: line {line}: the id is empty; every film needs one")
        if name in films:
            raise InputError(f"{path}: line {line}: duplicate id, first on line {films[name].line}; keep one")
        for number, column in enumerate(header, 1):
            if (problem := _cell_problem(column, cells[column], findings)) is not None:
                raise InputError(f"{path}: line {line}, column {number}: {problem}")
        values = {finding: _CELLS[cells[finding]] for finding in findings}
        details = (cells.get(key) or None for key in _DETAILS)
        films[name] = ReferenceRow(line, cells.get(TEXT) or None, values, *details)
    if not films:
        raise InputError(f"{path}: contains no film; add one per line below the header")
    return Reference(films, findings)


def _cell_problem(column: str, cell: str, findings: tuple[str, ...]) -> str | None:
    if column in findings and cell not in _CELLS:
        return "a finding must be 1, 0 or empty"
    if column == "sex" and cell.upper() not in ("M", "F", "O", ""):
        return "the sex must be M, F, O or empty"
    if column == "age" and cell:
        try:
            Age.parse(cell)
        except InputError:
            return "the age must be empty, or a number followed by d, w, m or y, such as 5y or 18m"
    return None


def _header(path: Path, names: Sequence[str], row: list[str]) -> list[str]:
    columns = {_normalised(name): name for name in (*names, *_OTHER_COLUMNS)}
    header = [columns.get(_normalised(cell), "") for cell in row]
    if len(row) == 1 and (";" in row[0] or "\t" in row[0]):
        raise InputError(f"{path}: the columns are not separated by commas; export the file as CSV with commas")
    if "id" not in header:
        raise InputError(f'{path}: the column "id" is absent; the first line must name the columns')
    if "" in header:
        number = header.index("") + 1
        raise InputError(
            f"{path}: unknown column {number}; rename or remove it. Valid columns: {', '.join(columns.values())}"
        )
    for name in header:
        if header.count(name) > 1:
            raise InputError(f'{path}: duplicate column "{name}"; keep one')
    if not set(header) - {"id", *_DETAILS}:
        raise InputError(f'{path}: nothing to compare with; add a column "{TEXT}" or columns of findings')
    return header


def _normalised(name: str) -> str:
    return name.strip().lower().replace(" ", "_").replace("-", "_")
