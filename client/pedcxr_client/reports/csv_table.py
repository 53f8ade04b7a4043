"""CSV for research (RFC 4180), one row per report.

Spreadsheets evaluate a cell that starts like a formula. The writer puts an apostrophe in front of such a cell, and in
front of a cell that starts with an apostrophe. Removing one leading apostrophe from every cell restores the text.
"""

from __future__ import annotations

import io
from collections.abc import Iterable

from pedcxr_client.reports.provenance import created_utc
from pedcxr_client.reports.report import Report

COLUMNS = (
    "id", "age", "sex", "view", "findings", "impression", "text", "warnings",
    "prompt_profile", "prompt_version", "prompt_sha256", "indication_sha256",
    "image_profile", "image_how", "image_sha256", "model", "model_revision", "demo",
    "temperature", "max_tokens", "prompt_tokens", "completion_tokens", "finish_reason",
    "ttft_s", "tpot_s", "e2e_s", "attempts", "request_id", "created", "notices",
    "language", "mentions_prior",
)  # fmt: skip
"""The columns in order. New columns are appended."""

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "'", "\uff1d", "\uff0b", "\uff0d", "\uff20")


BOM = "\ufeff"
"""Starts a file for Excel, which reads a file without it in a local character set."""


def to_csv(report: Report, *, film_id: str = "", header: bool = True, excel: bool = False) -> str:
    """Return the report as one CSV row with CRLF line endings. Unknown values are empty.

    Args:
        film_id: the caller's name for the film, written to the column ``id``.
        header: start with a row of column names.
        excel: start with a byte order mark before the header.
    """
    cells = _cells(report) | {"id": film_id}
    row = _row(_escape_formula(cells[column]) for column in COLUMNS)
    return header_row(excel=excel) + row if header else row


def header_row(*, excel: bool = False) -> str:
    """Return the row of column names, after a byte order mark if ``excel`` is true."""
    return (BOM if excel else "") + _row(COLUMNS)


def _row(cells: Iterable[str]) -> str:
    import csv

    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\r\n").writerow(cells)
    return buffer.getvalue()


def _cells(report: Report) -> dict[str, object]:
    timing, usage = report.timing, report.usage
    failed_checks = [check for check in report.checks if check.status != "ok"]
    return {
        "age": report.age,
        "sex": report.sex,
        "view": report.view,
        "findings": report.findings,
        "impression": report.impression,
        "text": report.text,
        "warnings": " | ".join(
            f"{check.name} {'allowed' if check.allowed else check.status}: {check.why}" for check in failed_checks
        ),
        "prompt_profile": report.prompt_profile,
        "prompt_version": report.prompt_version,
        "prompt_sha256": report.prompt_sha256,
        "indication_sha256": report.indication_sha256,
        "image_profile": report.image_profile,
        "image_how": " | ".join(report.image_how),
        "image_sha256": report.image_sha256,
        "model": report.model,
        "model_revision": report.model_revision,
        "demo": "true" if report.demo else "false",
        "temperature": 0,
        "max_tokens": report.max_tokens,
        "prompt_tokens": None if usage is None else usage.prompt_tokens,
        "completion_tokens": None if usage is None else usage.completion_tokens,
        "finish_reason": report.finish_reason,
        "ttft_s": _seconds(timing.ttft),
        "tpot_s": _seconds(timing.tpot),
        "e2e_s": _seconds(timing.e2e),
        "attempts": report.attempts,
        "request_id": report.request_id,
        "created": created_utc(report),
        "notices": " | ".join(report.notices),
        "language": report.language,
        "mentions_prior": "true" if report.mentions_prior else "false",
    }


def _seconds(value: float | None) -> str | None:
    return None if value is None else f"{value:.6f}"


def _escape_formula(value: object) -> str:
    cell = "" if value is None else str(value)
    # Some spreadsheets skip leading white space before they look for a formula.
    return f"'{cell}" if cell.startswith(_FORMULA) or cell.lstrip().startswith(_FORMULA) else cell
