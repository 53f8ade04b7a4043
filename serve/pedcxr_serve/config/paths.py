"""Paths that settings and options name. What the system says about them becomes a ConfigError."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from pedcxr_serve.errors import ConfigError


def expand(text: str) -> Path:
    """Return a path with ``~`` and ``~user`` replaced by the home folder.

    Raises:
        ConfigError: there is no such user, or the user has no home folder.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{text}: no home folder of this name is known. Give the whole path.") from error


def exists(path: Path) -> bool:
    """Return whether there is a file or folder.

    Raises:
        ConfigError: that cannot be known, because of permissions or the length of a name.
    """
    return _status(path) is not None


def is_dir(path: Path) -> bool:
    """Return whether there is a folder; see `exists` for the errors."""
    status = _status(path)
    return status is not None and stat.S_ISDIR(status.st_mode)


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}. Check the path and the permissions of its folders.") from error
