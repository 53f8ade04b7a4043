"""Write log lines from a thread, so that a stalled or closed stderr can neither block nor fail the event loop."""

from __future__ import annotations

import os
import queue
import threading
from typing import TextIO

_MAX_LINES = 10_000
"""Lines that may wait, at most about 40 MB; a program that reads stderr again gets them in order."""
_CLOSE_S = 1.0


class LineWriter:
    """Writes text to ``out`` from a daemon thread, which starts with the first text.

    While 10,000 texts wait, further ones are dropped and counted; their number is written once there is room. A text
    that cannot be written, because the reader of stderr is gone, is dropped too. Safe for threads.
    """

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._texts: queue.Queue[str | None] = queue.Queue(_MAX_LINES)
        self._thread: threading.Thread | None = None
        self._dropped = 0
        try:
            self._file: int | None = out.fileno()
        except (OSError, ValueError):  # such as io.StringIO
            self._file = None

    def write(self, text: str) -> None:
        """Add a text to the queue, and return at once."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="pedcxr-log", daemon=True)
            self._thread.start()
        try:
            if self._dropped:
                self._texts.put_nowait(f"{self._dropped} log lines were dropped: stderr was not read\n")
                self._dropped = 0
            self._texts.put_nowait(text)
        except queue.Full:
            self._dropped += 1

    def close(self) -> None:
        """Wait at most 1 s until all texts are written, and end the thread. A later `write` starts a new one."""
        if self._thread is None:
            return
        try:
            self._texts.put(None, timeout=_CLOSE_S)
        except queue.Full:  # the thread waits for stderr and ends with the process
            return
        self._thread.join(_CLOSE_S)
        self._thread = None

    def _run(self) -> None:
        while (text := self._texts.get()) is not None:
            try:
                self._write(text)
            except (OSError, ValueError):
                continue

    def _write(self, text: str) -> None:
        if self._file is None:
            self._out.write(text)
            self._out.flush()
            return
        # Not through sys.stderr: at its exit Python waits for the lock of a buffer that this thread may hold for ever.
        data = text.encode(errors="backslashreplace")
        while data:
            data = data[os.write(self._file, data) :]
