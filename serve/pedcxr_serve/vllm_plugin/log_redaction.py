"""Redact request content from vLLM's log lines.

At levels DEBUG and ERROR, vLLM 0.32 logs prompts, names of unknown models and fields and, when a step fails, pixels. A
filter on each of these loggers replaces the values and keeps the line, so that the event remains visible.
"""

from __future__ import annotations

import logging

REDACTED_LINES: tuple[tuple[str, str], ...] = (
    ("vllm.renderers.chat_utils", "Input prompt: %s"),
    ("vllm.renderers.hf", "Chat template rejected the request: %s"),
    ("vllm.entrypoints.openai.chat_completion.serving", "Error with model %s"),
    ("vllm.entrypoints.serve.engine.protocol", "The following fields were present in the request but ignored: %s"),
    ("vllm.entrypoints.serve.exception_handling.error_response", "create_error_response called with %s: %s"),
    ("vllm.logging_utils.dump_input", "Dumping scheduler output for model execution: %s"),
)
"""Logger name, and the format string exactly as in vLLM's source."""


class _RedactionFilter(logging.Filter):
    def __init__(self, line: str) -> None:
        super().__init__()
        self._line = line

    def filter(self, record: logging.LogRecord) -> bool:
        if record.msg == self._line:
            record.args = ("(withheld)",) * self._line.count("%s")
        return True


def install() -> None:
    """Add the filters in this process; a second call is harmless."""
    for name, line in REDACTED_LINES:
        logger = logging.getLogger(name)
        if not any(isinstance(existing, _RedactionFilter) for existing in logger.filters):
            logger.addFilter(_RedactionFilter(line))
