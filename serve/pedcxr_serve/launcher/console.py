"""Terminal output of a running server: progress of the start, the engine's log, the gateway's log, the addresses."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import time
from collections.abc import Callable
from typing import TextIO

from pedcxr_serve.engine.process import LogLine

_REDRAW_S = 0.5
_REPEAT_S = 15.0  # when the output is not a terminal but a journal or a CI log, which keeps every line


class Console:
    """Writes lines to ``out``, those of the engine if their `logging` level is at least ``level``.

    On a terminal the progress line is redrawn in place; elsewhere it is repeated every 15 s.
    """

    def __init__(self, level: int, out: TextIO = sys.stderr) -> None:
        self._level = level
        self._out = out
        self._tty = out.isatty()
        self._progress_visible = False

    def print_line(self, text: str) -> None:
        """Print a line of the launcher."""
        self._clear()
        print(text, file=self._out, flush=True)

    def print_engine_line(self, line: LogLine) -> None:
        """Print a line of the engine's log if its level is high enough."""
        if line.level >= self._level:
            self.print_line(f"engine | {line.text}")

    def attach_logger(self, name: str) -> None:
        """Print the records of a logger of this package too: warnings always, lower levels if ``level`` allows."""
        level = min(self._level, logging.WARNING)
        logger = logging.getLogger(name)
        logger.setLevel(level)
        logger.addHandler(_ConsoleHandler(self, level))

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
            self._clear()

    def _draw(self, text: str) -> None:
        self._clear()
        self._out.write(text)
        self._out.flush()
        self._progress_visible = True

    def _clear(self) -> None:
        if self._progress_visible:
            self._out.write("\r\x1b[2K")
            self._progress_visible = False


class _ConsoleHandler(logging.Handler):
    def __init__(self, console: Console, level: int) -> None:
        super().__init__(level)
        self._console = console
        self.setFormatter(logging.Formatter("%(levelname)s %(asctime)s %(message)s", "%m-%d %H:%M:%S"))

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError, ValueError):  # a closed terminal must not fail a request
            self._console.print_line(f"gateway | {self.format(record)}")


def level(name: str) -> int:
    """Return the `logging` level with this name, in any case."""
    return logging.getLevelNamesMapping()[name.upper()]
