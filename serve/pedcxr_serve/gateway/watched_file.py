"""Detects that files were edited or replaced, by modification time, size and inode."""

from __future__ import annotations

import os
from pathlib import Path

_Stamp = tuple[int, int, int] | None


class WatchedFiles:
    """Files that are read again when they change.

    Args:
        paths: the files; a file that does not exist is watched too.
        settle: report a change only when two checks in a row see the same state. A renewal writes certificate and key
            one after the other, and in between they do not match.
    """

    def __init__(self, *paths: Path, settle: bool = False) -> None:
        self._paths, self._settle = paths, settle
        self.mark_read()

    def mark_read(self) -> None:
        """Remember the current state; call it before the files are read."""
        self._last_read = self._last_checked = self._stamps()

    def changed(self) -> bool:
        """Return whether the files differ from those last read."""
        stamps = self._stamps()
        changed = stamps != self._last_read and (not self._settle or stamps == self._last_checked)
        self._last_checked = stamps
        return changed

    @property
    def orphaned(self) -> bool:
        """Whether a file was replaced in a way that is not visible here.

        A single file that is mounted into a container stays the old one after the host has replaced it.
        """
        return any(_is_orphaned(path) for path in self._paths)

    def _stamps(self) -> tuple[_Stamp, ...]:
        return tuple(map(_stamp, self._paths))


def _stamp(path: Path) -> _Stamp:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _is_orphaned(path: Path) -> bool:
    try:
        return os.stat(path).st_nlink == 0
    except OSError:
        return False
