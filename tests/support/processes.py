"""Child processes that react to SIGINT, however the test run was started."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def sigint_not_ignored() -> Iterator[None]:
    """Let processes that start inside the block react to SIGINT.

    A shell without job control starts background jobs with SIGINT ignored (``nohup make test &``), and an ignored
    signal stays ignored across fork and exec. Any handler is reset to the default by exec. Only in the main thread.
    """
    handler = signal.getsignal(signal.SIGINT)
    if handler is not signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def spawn(command: Sequence[str | Path], **options: Any) -> subprocess.Popen[Any]:
    """Start a process as ``subprocess.Popen`` does, with SIGINT at its default action."""
    with sigint_not_ignored():
        return subprocess.Popen(command, **options)
