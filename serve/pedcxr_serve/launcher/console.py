"""Terminal output of a running server: progress of the start, the engine's log, the gateway's log, the addresses.

The gateway's loggers put the fields of a request into ``record.fields``; see `pedcxr_serve.gateway.http.access_log`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import TextIO

from pedcxr_serve.engine.process import LogLine
from pedcxr_serve.launcher.line_writer import LineWriter
from pedcxr_serve.vllm_plugin import log_redaction

_REDRAW_S = 0.5
_REPEAT_S = 15.0  # when the output is not a terminal but a journal or a CI log, which keeps every line


class Console:
    """Writes lines to ``out``, those of the engine if their `logging` level is at least ``level``.

    No method blocks or raises on account of ``out``. On a terminal the progress line is redrawn in place; elsewhere it
    is repeated every 15 s.

    Args:
        out: default is stderr.
        json_lines: write each line as a JSON object with ``time``, ``level``, ``source`` (``gateway``, ``engine`` or
            ``launcher``), ``message`` and, for a request, its fields.
    """

    def __init__(self, level: int, out: TextIO | None = None, *, json_lines: bool = False) -> None:
        out = out or sys.stderr or open(os.devnull, "w")  # noqa: SIM115  (stderr is None if it was closed before the start)
        self._level = level
        self._writer = LineWriter(out)
        self._json = json_lines
        self._tty = out.isatty() and not json_lines
        self._progress_visible = False

    def print_line(self, text: str, level: int = logging.INFO) -> None:
        """Print a line of the launcher."""
        self._print(text, "launcher", level, "")

    def print_engine_line(self, line: LogLine) -> None:
        """Print a line of the engine's log if its level is high enough."""
        if line.level >= self._level:
            self.print_engine_text(line.text, line.level)

    def print_engine_text(self, text: str, level: int = logging.ERROR) -> None:
        """Print a line of the engine's log at any level."""
        self._print(text, "engine", level, "engine | ")

    @contextlib.contextmanager
    def attached(self, name: str, level: int) -> Iterator[None]:
        """Print the records of a logger of this package from ``level`` on; at the end, write what still waits.

        Warnings of other packages, such as uvicorn, are printed too: logging would write them to stderr itself.
        """
        root, handler = logging.getLogger(), _ConsoleHandler(self)
        logging.getLogger(name).setLevel(level)
        root.addHandler(handler)
        try:
            yield
        finally:
            root.removeHandler(handler)
            self.close()

    def print_record(self, record: logging.LogRecord) -> None:
        """Print a record of a logger, without request content."""
        log_redaction.redact(record)
        text = ": ".join(filter(None, [record.getMessage().strip(), record.exc_text]))
        if self._json:
            fields = getattr(record, "fields", {})
            self._write_json(text, "gateway", record.levelno, _utc(record.created), fields)
        else:
            self._print(f"{record.levelname} {_utc(record.created)} {text}", "gateway", record.levelno, "gateway | ")

    def close(self) -> None:
        """Write the lines that still wait, for at most 1 s."""
        self._writer.close()

    async def progress(self, stage: Callable[[], str]) -> None:
        """Show ``stage()`` and the seconds elapsed since this call, until cancelled."""
        start = time.monotonic()
        last_stage, printed_at = "", -_REPEAT_S
        try:
            while True:
                elapsed = time.monotonic() - start
                if self._tty:
                    self._draw(f"  {stage()} ... {elapsed:.0f} s")
                elif stage() != last_stage or elapsed - printed_at >= _REPEAT_S:
                    last_stage, printed_at = stage(), elapsed
                    self.print_line(f"  {elapsed:5.1f} s  {last_stage}")
                await asyncio.sleep(_REDRAW_S)
        finally:
            self._writer.write(self._erase())

    def _print(self, text: str, source: str, level: int, prefix: str) -> None:
        if self._json:
            self._write_json(text.strip(), source, level, _utc(time.time()), {})
        else:
            self._writer.write(f"{self._erase()}{prefix}{text}\n")

    def _write_json(self, text: str, source: str, level: int, moment: str, fields: Mapping[str, object]) -> None:
        name = logging.getLevelName(level).lower()
        line = {"time": moment, "level": name, "source": source, "message": text, **fields}
        self._writer.write(json.dumps(line, separators=(",", ":"), default=str) + "\n")

    def _draw(self, text: str) -> None:
        self._writer.write(self._erase() + text)
        self._progress_visible = True

    def _erase(self) -> str:
        visible, self._progress_visible = self._progress_visible, False
        return "\r\x1b[2K" if visible else ""


class _ConsoleHandler(logging.Handler):
    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._console.print_record(record)
        except Exception:
            self.handleError(record)  # a wrong format string must not fail a request


def level(name: str) -> int:
    """Return the `logging` level with this name, in any case."""
    return logging.getLevelNamesMapping()[name.upper()]


def _utc(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
