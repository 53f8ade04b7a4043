"""JSON: everything that is known of a report, one object a line. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping

from pedcxr_client.reports.report import Report

SCHEMA = "pedcxr-report/1"
"""The first key of each object. A key that goes or changes its meaning makes it ``/2``; new ones may come."""

# str.splitlines, and readers built like it, take these for ends of lines; JSON allows them within a text.
_BREAKS = {ord(letter): f"\\u{ord(letter):04x}" for letter in "\x7f\x85\u2028\u2029"}


def to_json(report: Report, *, film_id: str | None = None) -> str:
    """One object on one line, without a line break at its end.

    Args:
        film_id: your name of the film, under ``"id"``.
    """
    return one_line({"schema": SCHEMA, "id": film_id, **report.as_dict()})


def one_line(record: Mapping[str, object]) -> str:
    """An object as JSON that no reader takes for several lines, without a line break at its end."""
    text = json.dumps(record, ensure_ascii=False).translate(_BREAKS)
    # A lone surrogate, which a model may write, has no UTF-8; escaped it is JSON like any other.
    return text.encode(errors="backslashreplace").decode()


def to_jsonl(report: Report, *, film_id: str | None = None) -> str:
    """:func:`to_json` with its line break: a line to append to a file."""
    return to_json(report, film_id=film_id) + "\n"
