"""The tenants that the server uses: those of the last valid tenants file."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge

from pedcxr_serve.errors import ConfigError
from pedcxr_serve.gateway.auth import tenants
from pedcxr_serve.gateway.auth.tenants import Tenants
from pedcxr_serve.gateway.watched_file import WatchedFiles

_log = logging.getLogger("pedcxr.gateway")


class TenantStore:
    """Holds the current tenants and replaces them as a whole; in-flight requests keep their tenant.

    Args:
        path: of tenants.toml, or None for a server without one.
        check: raises ConfigError if the server cannot be started with these tenants; called at each read.

    Raises:
        ConfigError: the file is invalid. After that, an invalid edit changes nothing.
    """

    def __init__(self, path: Path | None, check: Callable[[Tenants], None] = lambda _: None) -> None:
        self._path, self._check = path, check
        self._files = WatchedFiles(*([path] if path else []))
        self.current = Tenants.anonymous() if path is None else self._load(path)
        self.broken: str | None = None
        """The error of the file as it is now; None if `current` comes from it."""
        self.reloads = 0
        self.read_at = time.time()
        """Time of the last successful read, Unix time."""
        self._info: Gauge | None = None

    def register(self, registry: CollectorRegistry) -> None:
        """Add a gauge that shows which version of the file is in use, so that replicas can be compared."""
        text = "1; the label is the start of the SHA-256 of the tenants file in use."
        self._info = Gauge("pedcxr_tenants_info", text, ("sha256",), registry=registry)
        self._info.labels(self.current.digest).set(1)

    def reload(self) -> None:
        """Read the file again, changed or not. An invalid file is logged and recorded in `broken`."""
        if self._path is None:
            return
        self._files.mark_read()
        try:
            loaded = self._load(self._path)
            if self.current.all and not loaded.all:
                # A shell or an editor that fails leaves an empty file. Revoked keys leave their tenant in it.
                raise ConfigError(f"{self._path}: has no tenant. Restore it; `pedcxr-serve keys revoke` ends keys.")
            self.current = loaded
        except ConfigError as error:
            self.broken = str(error)
            _log.error("tenants file rejected, tenants unchanged: %s", error)
            return
        self.broken = None
        self.read_at = time.time()
        self.reloads += 1
        if self._info is not None:
            self._info.clear()
            self._info.labels(self.current.digest).set(1)
        _log.warning("tenants reloaded from %s: %s", self._path, ", ".join(self.current.all) or "none")

    def _load(self, path: Path) -> Tenants:
        loaded = tenants.load(path)
        self._check(loaded)
        return loaded

    def reload_if_changed(self) -> None:
        """Reload the file if it has changed since it was last read; report one that was replaced out of sight."""
        if self._files.changed():
            self.reload()
        if self.broken is None and self._files.orphaned:
            self.broken = f"{self._path} was replaced outside of this mount: mount its folder instead of the file"
            _log.error("tenants unchanged: %s", self.broken)
