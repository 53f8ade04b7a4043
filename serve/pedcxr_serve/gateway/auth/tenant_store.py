"""The tenants in force: the file's, as it was last readable."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from pedcxr_serve.errors import ConfigError
from pedcxr_serve.gateway.auth import tenants
from pedcxr_serve.gateway.auth.tenants import Tenants

_log = logging.getLogger("pedcxr.gateway")


class Book:
    """Holds the current set and replaces it as a whole; requests that run keep the tenant they came with.

    Args:
        path: of tenants.toml, or None for a server without one.

    Raises:
        ConfigError: the file is broken. Later, a broken edit keeps the old set.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._seen = _stamp(path)
        self.current = Tenants.nobody_in_particular() if path is None else tenants.load(path)
        self.broken: str | None = None
        """What is wrong with the file as it is now, in words; None if it is in force."""
        self.reloads = 0

    def reload(self) -> None:
        """Read the file again, changed or not; a broken one is told in the log and in `broken`."""
        if self._path is None:
            return
        self._seen = _stamp(self._path)
        try:
            self.current = tenants.load(self._path)
        except ConfigError as error:
            self.broken = str(error)
            _log.error("tenants kept as they were: %s", error)
            return
        self.broken = None
        self.reloads += 1
        _log.warning("tenants reloaded from %s: %s", self._path, ", ".join(self.current.all) or "none")

    def look(self) -> None:
        """Reload if the file is another than the one last read."""
        if self._path is not None and _stamp(self._path) != self._seen:
            self.reload()


def _stamp(path: Path | None) -> tuple[int, ...] | None:
    try:
        status = os.stat(path) if path is not None else None
    except OSError:
        return None
    return (status.st_mtime_ns, status.st_size, status.st_ino) if status is not None else None
