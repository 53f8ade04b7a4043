"""Plain text: the notices, the model's words byte for byte, and their origin. Pure."""

from __future__ import annotations

from pedcxr_client.reports import provenance
from pedcxr_client.reports.report import Report

RULE = "-" * 72


def to_text(report: Report) -> str:
    """A text to read and to file; it ends with a line break."""
    about = [f"{label}: {value}" for label, value in provenance.lines(report)]
    return "\n".join([*report.notices, RULE, report.text, RULE, *about, ""])
