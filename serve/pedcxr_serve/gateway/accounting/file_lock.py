"""The lock of a file that one server writes."""

from __future__ import annotations

import contextlib
import fcntl


def try_lock(file: int) -> bool:
    """Lock an open file until it is closed, or this process ends. Return False if another server has the lock."""
    with contextlib.suppress(OSError):  # a file system without locks
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True
