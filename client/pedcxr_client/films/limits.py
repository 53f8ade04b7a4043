"""What is refused for its size alone, and what happens where memory does not suffice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pedcxr_client.errors import InputError

MAX_PIXELS = 50_000_000
"""Most pixels an image may have: the largest detectors make about 20 million."""

MAX_BYTES = 100 * 1024 * 1024
"""Largest file that is read, in bytes."""


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
