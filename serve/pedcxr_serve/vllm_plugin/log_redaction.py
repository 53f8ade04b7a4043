"""Redact request content from vLLM's log lines.

At levels DEBUG and ERROR, vLLM 0.32 logs prompts, names of unknown models and fields and, when a step fails, pixels. A
factory of log records replaces the values of these lines and keeps the line, so that the event remains visible. It
looks at the format string only: vLLM moves modules, and thus renames loggers, between releases.
"""

from __future__ import annotations

import logging
from typing import Any

REDACTED_LINES = frozenset(
    {
        "Input prompt: %s",
        "Chat template rejected the request: %s",
        "Error with model %s",
        "The following fields were present in the request but ignored: %s",
        "create_error_response called with %s: %s",
        "Dumping scheduler output for model execution: %s",
    }
)
"""The format strings exactly as in vLLM's source."""


def install() -> None:
    """Redact the records of this process; a second call is harmless."""
    factory = logging.getLogRecordFactory()
    if getattr(factory, "redacts", False):
        return

    def create(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = factory(*args, **kwargs)
        if isinstance(record.msg, str) and record.msg in REDACTED_LINES:
            record.args = ("(withheld)",) * record.msg.count("%s")
        return record

    create.redacts = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(create)
