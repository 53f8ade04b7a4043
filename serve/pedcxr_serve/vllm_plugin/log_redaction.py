"""vLLM's log lines that repeat what a request holds, without it.

At its levels DEBUG and ERROR vLLM 0.32 logs prompts, names of models that do not exist, unknown fields, and, when a
step fails, pixels. A filter on the logger of each takes the values out and leaves the line: that it happened is worth
knowing.
"""

from __future__ import annotations

import logging

TALKATIVE: tuple[tuple[str, str], ...] = (
    ("vllm.renderers.chat_utils", "Input prompt: %s"),
    ("vllm.renderers.hf", "Chat template rejected the request: %s"),
    ("vllm.entrypoints.openai.chat_completion.serving", "Error with model %s"),
    ("vllm.entrypoints.serve.engine.protocol", "The following fields were present in the request but ignored: %s"),
    ("vllm.entrypoints.serve.exception_handling.error_response", "create_error_response called with %s: %s"),
    ("vllm.logging_utils.dump_input", "Dumping scheduler output for model execution: %s"),
)
"""Logger, and the line as it stands in vLLM's source."""


class _Withhold(logging.Filter):
    def __init__(self, line: str) -> None:
        super().__init__()
        self._line = line

    def filter(self, record: logging.LogRecord) -> bool:
        if record.msg == self._line:
            record.args = ("(withheld)",) * self._line.count("%s")
        return True


def install() -> None:
    """Filter the lines in this process; harmless twice."""
    for name, line in TALKATIVE:
        logger = logging.getLogger(name)
        if not any(isinstance(one, _Withhold) for one in logger.filters):
            logger.addFilter(_Withhold(line))
