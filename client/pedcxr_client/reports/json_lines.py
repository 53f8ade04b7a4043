"""JSON: the whole report as one object per line."""

from __future__ import annotations

import json
from collections.abc import Mapping

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
