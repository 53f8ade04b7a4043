"""Plain text: the notices, the model's words byte for byte, and their origin. Pure."""

from __future__ import annotations

from ..report import Report
from . import origin

RULE = "-" * 72


def to_text(report: Report) -> str:
    """A text to read and to file; it ends with a line break."""
    about = [f"{label}: {value}" for label, value in origin.lines(report)]
    return "\n".join([*report.notices, RULE, report.text, RULE, *about, ""])
