"""The lines of OUT.jsonl: a report or an error, each with the film's id and the key that tells it from others. Pure."""

from __future__ import annotations

from datetime import UTC, datetime

from pedcxr_client.errors import PedcxrError, ReportError, RequestError
from pedcxr_client.reports.json_lines import SCHEMA, one_line
from pedcxr_client.reports.report import Report

ERROR_SCHEMA = "pedcxr-error/1"


def of_report(report: Report, *, film_id: str, key: bytes) -> str:
    """All that is known of a report, without a line break."""
    return one_line({"schema": SCHEMA, "id": film_id, "key": key.hex(), **report.as_dict()})


def of_error(error: PedcxrError, *, film_id: str, key: bytes, refused: bool) -> str:
    """Why a film has no report, without a line break; a text that came and is no report is kept.

    Args:
        refused: the film itself cannot be sent, and another try would end alike.
    """
    told = {
        "kind": "refused" if refused else "failed",
        "type": type(error).__name__,
        "code": error.outcome,
        "message": str(error),
        "text": error.text if isinstance(error, ReportError) else None,
        "request_id": error.request_id if isinstance(error, RequestError) else None,
    }
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return one_line({"schema": ERROR_SCHEMA, "id": film_id, "key": key.hex(), "created": created, "error": told})
