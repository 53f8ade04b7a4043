"""Read the bytes of a film from a path, a buffer or an open file, within the limits on size and memory."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pedcxr_client.errors import InputError, MissingResource

MAX_PIXELS = 50_000_000
"""Maximum number of pixels of an image. The largest detectors produce about 20 million."""

MAX_BYTES = 100 * 1024 * 1024
"""Maximum size of a file that is read, in bytes."""


def read(path: str | os.PathLike[str], name: str) -> bytes:
    """Read a regular file of at most `MAX_BYTES`. ``name`` identifies the film in error messages."""
    check(path, name)
    with report_os_errors(name), report_memory_errors(name):
        return Path(path).read_bytes()


def check(path: str | os.PathLike[str], name: str) -> None:
    """Raise InputError unless the path is a regular file of at most `MAX_BYTES`."""
    with report_os_errors(name):
        status = os.stat(path)
    if stat.S_ISDIR(status.st_mode):
        raise InputError(f"{name}: is a folder; give one image file")
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{name}: is not a regular file; give one image file")
    if status.st_size > MAX_BYTES:
        raise InputError(f"{name}: is larger than {MAX_BYTES >> 20} MiB; save it as PNG or JPEG")


def read_open_file(file: Any) -> bytes:
    """Read at most `MAX_BYTES` of a file that is open in binary mode, from its current position to its end."""
    try:
        data = file.read(MAX_BYTES + 1)
    except Exception as error:  # a stream of a library for cloud storage or archives has errors of its own
        raise InputError("the film: the open file cannot be read; open it in binary mode") from error
    if not isinstance(data, bytes):
        raise InputError("the film: the file is open in text mode; open it in binary mode")
    if len(data) > MAX_BYTES:
        raise InputError(f"the film: is larger than {MAX_BYTES >> 20} MiB; save it as PNG or JPEG")
    return data


def copy_bytes(data: bytes | bytearray | memoryview) -> bytes:
    """Return the bytes of a buffer of at most `MAX_BYTES`."""
    try:
        size = data.nbytes if isinstance(data, memoryview) else len(data)
        if size <= MAX_BYTES:
            return bytes(data)
    except (ValueError, BufferError) as error:
        raise InputError("the film: the memoryview is released; give the bytes of the film") from error
    raise InputError(f"the film: is larger than {MAX_BYTES >> 20} MiB; save it as PNG or JPEG")


def printable(path: str | os.PathLike[str]) -> str:
    """Return a path for use in messages, with bytes that are not UTF-8 escaped."""
    return os.fspath(path).encode(errors="backslashreplace").decode()


@contextmanager
def report_os_errors(name: str) -> Iterator[None]:
    """Report an ``OSError`` or an invalid path in the block as an InputError of this film."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "cannot be opened"
        raise InputError(f"{name}: {reason}; check the path and its permissions") from error


@contextmanager
def report_memory_errors(name: str) -> Iterator[None]:
    """Report a ``MemoryError`` in the block as a MissingResource of this film, so that a batch continues.

    The largest film needs 0.7 GiB.
    """
    try:
        yield
    except MemoryError:
        raise MissingResource(f"{name}: not enough memory; export a smaller film or free some memory") from None
