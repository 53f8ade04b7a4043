"""Read a CSV file that a person wrote, perhaps with Excel. Errors give line and column numbers, never cell contents."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TextIO

from pedcxr_client.errors import InputError

_SEPARATORS = (",", ";", "\t")
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # byte order marks


def read(path: str, label: str, columns: Sequence[str], *, required: str) -> Iterator[tuple[int, dict[str, str] | str]]:
    """Yield the line number of each row with its cells by column, or with a description of its problem.

    The file is UTF-8 or UTF-16 with a byte order mark, and separated by comma, semicolon or tab; a first line such as
    ``sep=;`` states the separator. Cells are stripped. Empty rows are left out.

    Args:
        path: the file.
        label: names the file in messages.
        columns: the allowed column names. Letter case and surrounding blanks are ignored; a space and ``-`` are ``_``.
        required: the column that must be present.

    Raises:
        InputError: the file cannot be read, is not CSV, or has an unknown, missing or repeated column.
    """
    try:
        with open(path, "rb") as binary:
            encoding = "utf-16" if binary.read(2) in _UTF_16 else "utf-8-sig"
        with open(path, encoding=encoding, newline="") as file:
            yield from _rows(file, label, columns, required)
    except UnicodeError as error:
        raise InputError(
            f"{label}: is not UTF-8; save it as CSV UTF-8, or as Unicode text (UTF-16 with a byte order mark)"
        ) from error
    except OSError as error:
        raise InputError(f"{label}: {error.strerror or 'cannot be opened'}; check the path") from error


def _rows(
    file: TextIO, label: str, columns: Sequence[str], required: str
) -> Iterator[tuple[int, dict[str, str] | str]]:
    first, offset = file.readline(), 0
    separator = _stated_separator(first, label)
    if separator is not None:
        first, offset = file.readline(), 1
    reader = csv.reader(chain([first], file), strict=True, delimiter=separator or _separator_of(first))
    try:
        header = _header(next(reader, []), label, columns, required)
        for row in reader:
            line = reader.line_num + offset
            if not any(cell.strip() for cell in row):
                continue
            if len(row) != len(header):
                yield line, f"has {len(row)} cells but the header has {len(header)}"
            else:
                yield line, dict(zip(header, (cell.strip() for cell in row), strict=True))
    except csv.Error as error:
        line = reader.line_num + offset
        if "field limit" in str(error):
            raise InputError(
                f"{label}: line {line}: a cell is longer than {csv.field_size_limit()} characters; "
                "check for a missing quotation mark"
            ) from error
        raise InputError(
            f"{label}: line {line}: is not valid CSV; put cells that contain the separator in quotation marks"
        ) from error


def _stated_separator(line: str, label: str) -> str | None:
    """Return the separator of a line such as ``sep=;``, which Excel reads and writes, or None for another line."""
    text = line.rstrip("\r\n").strip('"')
    if text[:4].lower() != "sep=":
        return None
    separator = text[4:]
    if separator not in _SEPARATORS:
        raise InputError(f"{label}: line 1: sep= must name a comma, a semicolon or a tab")
    return separator


def _separator_of(header: str) -> str:
    """Return the first of comma, semicolon and tab that the header contains. Column names contain none of them."""
    return next((separator for separator in _SEPARATORS if separator in header), ",")


def _header(row: list[str], label: str, columns: Sequence[str], required: str) -> list[str]:
    names = {_normalised(name): name for name in columns}
    header = [names.get(_normalised(cell), "") for cell in row]
    for number, name in enumerate(header, 1):
        if not name:
            raise InputError(
                f"{label}: unknown column {number}; rename or remove it. Allowed columns: {', '.join(columns)}"
            )
        if header.index(name) != number - 1:
            raise InputError(f'{label}: the column "{name}" appears twice; keep one')
    if required not in header:
        raise InputError(f'{label}: the column "{required}" is missing; the first line must name the columns')
    return header


def _normalised(name: str) -> str:
    return name.strip().lower().replace(" ", "_").replace("-", "_")
