"""Read REFERENCE.csv, the reference standard of each film. Errors name the line and the column, never a cell value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pedcxr_client.batch import csv_rows
from pedcxr_client.errors import InputError
from pedcxr_client.films.age import Age

TEXT = "reference"
_DETAILS = ("age", "sex", "view", "patient", "study")
_OTHER_COLUMNS = ("id", TEXT, *_DETAILS)
_CELLS = {"1": True, "0": False, "": None}


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
    """Read a reference file, in the form that `csv_rows.read` describes. The names of findings are valid columns.

    Raises:
        InputError: the file or a line of it cannot be used.
    """
    films: dict[str, ReferenceRow] = {}
    findings: tuple[str, ...] = ()
    for line, cells in csv_rows.read(str(path), str(path), (*names, *_OTHER_COLUMNS), required="id"):
        if isinstance(cells, str):
            raise InputError(f"{path}: line {line}: {cells}; correct it")
        findings = tuple(name for name in cells if name not in _OTHER_COLUMNS)
        if not findings and TEXT not in cells:
            raise InputError(f'{path}: nothing to compare with; add a column "{TEXT}" or columns of findings')
        name = cells["id"]
        if not name:
            raise InputError(f"{path}: line {line}: the id is empty; every film needs one")
        if name in films:
            raise InputError(f"{path}: line {line}: duplicate id, first on line {films[name].line}; keep one")
        for number, (column, cell) in enumerate(cells.items(), 1):
            if (problem := _cell_problem(column, cell, findings)) is not None:
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
