"""What a server tells the person at the terminal: a progress line while it loads, the engine's log, the addresses."""

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
_REPEAT_S = 15.0  # without a terminal, where each line is kept: in a journal, in CI


class Console:
    """Writes to ``out``; the progress line is redrawn in place on a terminal, and repeated rarely elsewhere.

    Args:
        level: the least important engine line to show, of `logging`.
    """

    def __init__(self, level: int, out: TextIO = sys.stderr) -> None:
        self._level = level
        self._out = out
        self._tty = out.isatty()
        self._drawn = False

    def say(self, text: str) -> None:
        """Write a line of the launcher's own."""
        self._wipe()
        print(text, file=self._out, flush=True)

    def engine(self, line: LogLine) -> None:
        """Pass a line of the engine's log through, if it is important enough."""
        if line.level >= self._level:
            self.say(f"engine | {line.text}")

    def follow(self, name: str) -> None:
        """Pass the lines of a logger of ours through too: its warnings always, less if the level says so."""
        level = min(self._level, logging.WARNING)
        logger = logging.getLogger(name)
        logger.setLevel(level)
        logger.addHandler(_Lines(self, level))

    async def progress(self, stage: Callable[[], str]) -> None:
        """Show ``stage()`` and the seconds since now until cancelled."""
        start = time.monotonic()
        shown, said_at = "", -_REPEAT_S
        try:
            while True:
                elapsed = time.monotonic() - start
                if self._tty:
                    self._draw(f"  {stage()} ... {elapsed:.0f} s")
                elif stage() != shown or elapsed - said_at >= _REPEAT_S:
                    shown, said_at = stage(), elapsed
                    self.say(f"  {elapsed:5.1f} s  {shown}")
                await asyncio.sleep(_REDRAW_S)
        finally:
            self._wipe()

    def _draw(self, text: str) -> None:
        self._wipe()
        self._out.write(text)
        self._out.flush()
        self._drawn = True

    def _wipe(self) -> None:
        if self._drawn:
            self._out.write("\r\x1b[2K")
            self._drawn = False


class _Lines(logging.Handler):
    def __init__(self, console: Console, level: int) -> None:
        super().__init__(level)
        self._console = console
        self.setFormatter(logging.Formatter("%(levelname)s %(asctime)s %(message)s", "%m-%d %H:%M:%S"))

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError, ValueError):  # a terminal that is gone costs nobody a report
            self._console.say(f"gateway | {self.format(record)}")


def level(name: str) -> int:
    """The number of a level's name in the configuration."""
    return logging.getLevelNamesMapping()[name.upper()]
