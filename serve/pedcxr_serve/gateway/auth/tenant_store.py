"""The tenants that the server uses: those of the last valid tenants file."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from pedcxr_serve.errors import ConfigError
from pedcxr_serve.gateway.auth import tenants
from pedcxr_serve.gateway.auth.tenants import Tenants

_log = logging.getLogger("pedcxr.gateway")


class TenantStore:
    """Holds the current tenants and replaces them as a whole; in-flight requests keep their tenant.

    Args:
        path: of tenants.toml, or None for a server without one.

    Raises:
        ConfigError: the file is invalid. After that, an invalid edit changes nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._stamp = _file_stamp(path)
        self.current = Tenants.anonymous() if path is None else tenants.load(path)
        self.broken: str | None = None
        """The error of the file as it is now; None if `current` comes from it."""
        self.reloads = 0

    def reload(self) -> None:
        """Read the file again, changed or not. An invalid file is logged and recorded in `broken`."""
        if self._path is None:
            return
        self._stamp = _file_stamp(self._path)
        try:
            self.current = tenants.load(self._path)
        except ConfigError as error:
            self.broken = str(error)
            _log.error("tenants file rejected, tenants unchanged: %s", error)
            return
        self.broken = None
        self.reloads += 1
        _log.warning("tenants reloaded from %s: %s", self._path, ", ".join(self.current.all) or "none")

    def look(self) -> None:
        """Reload the file if it has changed since it was last read."""
        if self._path is not None and _file_stamp(self._path) != self._stamp:
            self.reload()


def _file_stamp(path: Path | None) -> tuple[int, ...] | None:
    try:
        status = os.stat(path) if path is not None else None
    except OSError:
        return None
    return (status.st_mtime_ns, status.st_size, status.st_ino) if status is not None else None
