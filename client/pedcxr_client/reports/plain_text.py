"""Plain text: the notices, the remarks, the text of the model byte for byte, and the provenance."""

from __future__ import annotations

from pedcxr_client.reports import provenance
from pedcxr_client.reports.report import Report

RULE = "-" * 72


def to_text(report: Report) -> str:
    """Return the report as text for reading and filing. The text ends with a line break."""
    provenance_lines = [f"{label}: {value}" for label, value in provenance.lines(report)]
    return "\n".join([*report.notices, *provenance.remarks(report), RULE, report.text, RULE, *provenance_lines, ""])
