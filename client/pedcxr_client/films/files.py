"""The bytes of a film's file, by its path or as it is open."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pedcxr_client.errors import InputError

MAX_PIXELS = 50_000_000
"""Most pixels an image may have: the largest detectors make about 20 million."""

MAX_BYTES = 100 * 1024 * 1024
"""Largest file that is read, in bytes."""


def read(path: str | os.PathLike[str], name: str) -> bytes:
    """The bytes of a film's file, which ``name`` stands for in errors.

    Raises:
        InputError: if it is no regular file, cannot be read, or is larger than :data:`MAX_BYTES`.
    """
    try:
        found = os.stat(path)
        if stat.S_ISDIR(found.st_mode):
            raise InputError(f"{name}: is a folder; give one image file")
        if not stat.S_ISREG(found.st_mode):
            raise InputError(f"{name}: is not a regular file; give one image file")
        if found.st_size > MAX_BYTES:
            raise InputError(f"{name}: larger than {MAX_BYTES >> 20} MiB; save it as PNG or JPEG")
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "cannot be opened"
        raise InputError(f"{name}: {reason}; check the path and its permissions") from error


def take(file: Any) -> bytes:
    """All that an open file has left.

    Raises:
        InputError: if it cannot be read, is open for text, or holds more than :data:`MAX_BYTES`.
    """
    try:
        data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise InputError("the film: cannot be read from the file given; open it in binary mode") from error
    if not isinstance(data, bytes):
        raise InputError("the film: the file given is open for text; open it in binary mode")
    if len(data) > MAX_BYTES:
        raise InputError(f"the film: larger than {MAX_BYTES >> 20} MiB; save it as PNG or JPEG")
    return data


def shown(path: str | os.PathLike[str]) -> str:
    """A path fit for a message: bytes that are no UTF-8 are escaped."""
    return os.fspath(path).encode(errors="backslashreplace").decode()


@contextmanager
def enough_memory(name: str) -> Iterator[None]:
    """Inside, memory that runs out is this film's error and not the end of a run; the largest film needs 0.7 GiB.

    Raises:
        InputError: if it ran out.
    """
    try:
        yield
    except MemoryError:
        raise InputError(f"{name}: needs more memory than there is; export it smaller, or free some") from None
