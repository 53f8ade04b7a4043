"""Redact request content from log lines of vLLM, uvicorn and asyncio.

At levels DEBUG and ERROR, vLLM 0.32 logs prompts, names of unknown models and fields and, when a step fails, pixels. A
factory of log records replaces the values of these lines and keeps the line, so that the event remains visible. It
looks at the format string only: vLLM moves modules, and thus renames loggers, between releases.

The message of an exception, or of one of its causes, may hold a prompt too: vLLM's processor of images raises one that
does, and uvicorn logs it. Exceptions are therefore logged by type and place, except in `KEPT_LINES`.
"""

from __future__ import annotations

import logging
from pathlib import Path
from traceback import walk_tb
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

KEPT_LINES = frozenset(
    {
        "EngineCore failed to start.",
        "EngineCore encountered a fatal error.",
        "WorkerProc failed to start.",
        "WorkerProc failed.",
        "WorkerProc hit an exception.",
    }
)
"""Lines whose exceptions are logged whole: of processes that get tokens and pixels but no text. They tell an operator
why the engine ended, for example for lack of memory."""


def install() -> None:
    """Redact the records of this process; a second call is harmless."""
    factory = logging.getLogRecordFactory()
    if getattr(factory, "redacts", False):
        return

    def create(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = factory(*args, **kwargs)
        redact(record)
        return record

    create.redacts = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(create)


def redact(record: logging.LogRecord) -> None:
    """Remove request content from a record."""
    if isinstance(record.msg, str) and record.msg in REDACTED_LINES:
        record.args = ("(withheld)",) * record.msg.count("%s")
    if record.name == "asyncio" and not record.args:
        # "Exception in callback NAME(ARGUMENTS)", and lines with the exception.
        record.msg = str(record.msg).partition("\n")[0].partition("(")[0]
    error = record.exc_info[1] if record.exc_info else None
    if error is not None and record.msg not in KEPT_LINES:
        record.exc_info, record.exc_text = None, describe(error)


def describe(error: BaseException) -> str:
    """Return the types and places of an exception and its causes, innermost frame first, without their messages."""
    texts: list[str] = []
    chain: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and following not in chain:
        chain.append(following)
        frames = [f"{Path(frame.f_code.co_filename).name}:{line}" for frame, line in walk_tb(following.__traceback__)]
        texts.append(" at ".join([type(following).__name__, *([", in ".join(reversed(frames))] if frames else [])]))
        following = following.__cause__ or (None if following.__suppress_context__ else following.__context__)
    return "; caused by ".join(texts)
