"""CSV for research (RFC 4180): a row a report. Pure.

A spreadsheet runs a cell that begins like a formula. Such a cell, and one that begins with an apostrophe, gets an
apostrophe before it: whoever takes one leading apostrophe off every cell has the very text again.
"""

from __future__ import annotations

import io

from pedcxr_client.reports.provenance import moment
from pedcxr_client.reports.report import Report

COLUMNS = (
    "id", "age", "sex", "view", "findings", "impression", "text", "warnings",
    "prompt_profile", "prompt_version", "prompt_sha256", "indication_sha256",
    "image_profile", "image_how", "image_sha256", "model", "model_revision", "demo",
    "temperature", "max_tokens", "prompt_tokens", "completion_tokens", "finish_reason",
    "ttft_s", "tpot_s", "e2e_s", "attempts", "request_id", "created", "notices",
)  # fmt: skip
"""The columns, in this order; new ones come at the end."""

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "'", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def to_csv(report: Report, *, film_id: str = "", header: bool = True) -> str:
    """The row of a report, ends of line CRLF; what is not known is empty.

    Args:
        film_id: your name of the film, in the column ``id``.
        header: begin with the row of column names.
    """
    import csv

    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\r\n")
    if header:
        writer.writerow(COLUMNS)
    cells = _cells(report) | {"id": film_id}
    writer.writerow([_safe(cells[column]) for column in COLUMNS])
    return lines.getvalue()


def _cells(report: Report) -> dict[str, object]:
    timing, usage = report.timing, report.usage
    doubtful = [check for check in report.checks if check.status != "ok"]
    return {
        "age": report.age,
        "sex": report.sex,
        "view": report.view,
        "findings": report.findings,
        "impression": report.impression,
        "text": report.text,
        "warnings": " | ".join(
            f"{check.name} {'allowed' if check.allowed else check.status}: {check.why}" for check in doubtful
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
        "created": moment(report),
        "notices": " | ".join(report.notices),
    }


def _seconds(value: float | None) -> str | None:
    return None if value is None else f"{value:.6f}"


def _safe(value: object) -> str:
    cell = "" if value is None else str(value)
    # Blanks before it do not hide a formula from every spreadsheet.
    return f"'{cell}" if cell.startswith(_FORMULA) or cell.lstrip().startswith(_FORMULA) else cell
