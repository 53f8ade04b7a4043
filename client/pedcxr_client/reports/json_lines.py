"""JSON: the whole report as one object per line, written and read."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pedcxr_client.errors import InputError
from pedcxr_client.reports.report import Report

SCHEMA = "pedcxr-report/1"
"""Value of the key ``schema``. The number increases when a key is removed or changes its meaning."""

# JSON allows these characters in a string, but str.splitlines and similar readers split lines at them.
_LINE_BREAKS = {ord(letter): f"\\u{ord(letter):04x}" for letter in "\x7f\x85\u2028\u2029"}


def to_json(report: Report, *, film_id: str | None = None) -> str:
    """Return the report as one JSON object on one line, without a trailing line break.

    Args:
        film_id: the caller's name for the film, written to ``"id"``.
    """
    return one_line({"schema": SCHEMA, "id": film_id, **report.as_dict()})


def one_line(record: Mapping[str, object]) -> str:
    """Return a record as JSON on one line. No line reader splits it, and it has no trailing line break."""
    text = json.dumps(record, ensure_ascii=False).translate(_LINE_BREAKS)
    # A model may write a lone surrogate. UTF-8 cannot encode it, but its JSON escape is valid.
    return text.encode(errors="backslashreplace").decode()


def to_jsonl(report: Report, *, film_id: str | None = None) -> str:
    """Return `to_json` followed by a line break, ready to append to a file."""
    return to_json(report, film_id=film_id) + "\n"


@dataclass(frozen=True, slots=True, repr=False)
class Line:
    """One line of a file of reports.

    Attributes:
        number: from 1.
        film_id: the ``"id"`` of the line, or None.
        report: the report, or None if the line holds none.
        error: why the line cannot be used. None for a report, and for a film that has no report.
    """

    number: int
    film_id: str | None = None
    report: Report | None = None
    error: str | None = None


def read_jsonl(path: str | os.PathLike[str]) -> Iterator[Line]:
    """Yield the lines of a file that ``pedcxr batch`` or `to_jsonl` wrote, of this or an earlier version.

    Errors do not quote the line. A killed run may leave its last line incomplete, which is an error of that line.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip(b"\0 \t\r\n"):
                    yield _line(number, line)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "cannot be opened"
        raise InputError(f"the run: {reason}; check the path") from error


def _line(number: int, data: bytes) -> Line:
    try:
        record = json.loads(data.decode("utf-8-sig" if number == 1 else "utf-8"))
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        why = "is not a JSON object" if data.endswith(b"\n") else "is incomplete; run pedcxr batch again to finish it"
        return Line(number, error=why)
    name = record.get("id")
    film_id = name if isinstance(name, str) else None
    schema = record.get("schema", SCHEMA)
    if record.get("error") is not None:
        return Line(number, film_id)
    if schema != SCHEMA:
        return Line(number, film_id, error="has a schema of another version; use that version of pedcxr")
    try:
        return Line(number, film_id, Report.from_dict(record))
    except InputError as error:
        return Line(number, film_id, error=str(error))
