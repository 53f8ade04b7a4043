"""Where a report goes that is kept: a file of mode 0600 that replaces nothing unless it is told to."""

from __future__ import annotations

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from pedcxr_client.errors import ConfigurationError


def check(path: str, *, film: str, force: bool) -> None:
    """Raise unless a file can be written there, before anything is asked of a server.

    Raises:
        ConfigurationError: if something is there and ``force`` is not given, or no file can be there at all.
    """
    try:
        if not Path(path).parent.is_dir():
            raise ConfigurationError("-o: its folder does not exist; make it first")
        found = os.lstat(path) if os.path.lexists(path) else None
        if found is not None and os.path.exists(film) and os.path.exists(path) and os.path.samefile(path, film):
            raise ConfigurationError("-o: is the film itself; give another name")
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"-o: cannot be written: {_reason(error)}") from error
    if found is not None and not stat.S_ISREG(found.st_mode):
        raise ConfigurationError("-o: is there already, and no plain file; give another name")
    if found is not None and not force:
        raise ConfigurationError("-o: is there already; give another name, or --force to replace it")


def write(path: str, data: bytes, *, force: bool) -> None:
    """Write it whole or not at all, readable by its owner alone.

    Raises:
        ConfigurationError: if it cannot be written, or came into being meanwhile and ``force`` is not given.
    """
    try:
        file, new = tempfile.mkstemp(prefix=".pedcxr-", dir=Path(path).parent)  # of mode 0600
        try:
            with os.fdopen(file, "wb") as opened:
                opened.write(data)
            if force:
                os.replace(new, path)
            else:
                os.link(new, path)  # unlike a renaming, it fails where something is
        finally:
            with suppress(FileNotFoundError):
                os.unlink(new)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"-o: cannot be written: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or "is no path"
