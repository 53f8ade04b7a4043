"""Keeps pydicom from saying what stands in a header: its warnings and log lines quote values, names among them."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from pedcxr_client.errors import InputError

_TALKERS = ("pydicom", "pylibjpeg", "openjpeg")
_T = TypeVar("_T")


class _Ours(threading.local):
    depth = 0


class _Silence(logging.Filter):
    """Drops what is logged on our behalf, and lets through what is logged for others."""

    def filter(self, record: logging.LogRecord) -> bool:
        return _ours.depth == 0


_ours, _silence = _Ours(), _Silence()
_lock = threading.Lock()
_inside = 0
_filters: warnings.catch_warnings[None] | None = None


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings of anybody and no decoder's logs of this thread inside; threads may overlap."""
    # A logger's filter does not see what its children log, so that each gets it; adding twice is adding once.
    for name in [*logging.root.manager.loggerDict]:
        if name.startswith(_TALKERS):
            logging.getLogger(name).addFilter(_silence)
    _enter()
    _ours.depth += 1
    try:
        yield
    finally:
        _ours.depth -= 1
        _leave()


def _enter() -> None:
    # Python's filters are the process's: the first thread in saves them and the last one out puts them back, or two
    # overlapping threads would restore each other's.
    global _inside, _filters
    with _lock:
        _inside += 1
        if _inside == 1:
            _filters = warnings.catch_warnings()
            _filters.__enter__()
            warnings.simplefilter("ignore")


def _leave() -> None:
    global _inside, _filters
    with _lock:
        _inside -= 1
        if _inside == 0 and _filters is not None:
            _filters.__exit__(None, None, None)
            _filters = None


def attempt(step: Callable[[], _T], message: str) -> _T:
    """Run a step of pydicom's. Its errors quote the header, so that none of them is chained or kept."""
    try:
        return step()
    except MemoryError:
        raise
    except Exception:
        failed = True
    assert failed
    raise InputError(message)
