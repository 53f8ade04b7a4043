"""Read the elements of a DICOM header. Any element may be absent, damaged or malicious.

pydicom converts a value on access. What it then raises, warns of or logs may quote a patient's name.
"""

from __future__ import annotations

import logging
import re
import threading
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, NamedTuple, TypeVar

from pedcxr_client.errors import InputError
from pedcxr_client.films.header import vocabulary

_LONGEST_TEXT, _MOST_ITEMS = 1000, 8  # what is read of a text and of a sequence; both are short in valid headers
_CODE = re.compile(r"[A-Z0-9_ ]{1,16}")  # PS3.5 section 6.2, VR CS
_LOGGERS = ("pydicom", "pylibjpeg", "openjpeg")

_T = TypeVar("_T")


class Fact(NamedTuple):
    """A value and the element that it was read from, such as ``Fact("DX", "Modality (0008,0060)")``."""

    value: str
    tag: str

    def __str__(self) -> str:
        return f"{self.tag} is {self.value or 'empty'}"


def text(header: Any, keyword: str) -> str:
    """Return an element's text, its items joined by spaces, or ``""`` if the element cannot be read."""
    try:
        value = header.get(keyword)
        if value is None or isinstance(value, bytes):  # pydicom returns bytes for an unknown VR
            return ""
        items = [value] if isinstance(value, str) or not hasattr(value, "__iter__") else [*value]
        return " ".join(str(item) for item in items).strip("\0 ")
    except Exception:  # pydicom converts a value on access, which raises many exception types
        return ""


def first_item(header: Any, keyword: str) -> Any:
    """Return the first item of a sequence, or None if the sequence is empty or cannot be read."""
    try:
        items = header.get(keyword)
        return items[0] if items else None
    except Exception:  # pydicom converts a value on access, which raises many exception types
        return None


def first_items(header: Any, keyword: str) -> list[Any]:
    """Return the first items of a sequence, or none if the sequence is absent or cannot be read."""
    try:
        return list(islice(header.get(keyword) or (), _MOST_ITEMS))
    except Exception:  # pydicom converts a value on access, which raises many exception types
        return []


def text_or_meanings(header: Any, keyword: str) -> str:
    """Return the text of an element, or the meanings of the codes of a sequence."""
    if keyword == "RequestAttributesSequence":
        items = first_items(header, keyword)
        return ", ".join(text_or_meanings(item, inner) for item in items for inner in vocabulary.REQUEST_ELEMENTS)
    if keyword.endswith("Sequence"):
        return ", ".join(text(item, "CodeMeaning") for item in first_items(header, keyword))
    return text(header, keyword)


def tag_of(keyword: str) -> str:
    """Return the name of an element with its tag, such as ``Modality (0008,0060)``."""
    return f"{keyword} ({vocabulary.TAGS[keyword]})"


def code_or_hidden(value: str) -> str:
    """Return a value that has the form of a code or is empty, and ``"(not shown)"`` for any other."""
    return value if not value or _CODE.fullmatch(value) else "(not shown)"


def code_fact(header: Any, keyword: str) -> Fact:
    """Return an element that holds a code, in upper case."""
    return Fact(code_or_hidden(text(header, keyword).upper()), tag_of(keyword))


def fold(value: str) -> str:
    """Return a text in lower case without accents, its words, numbers and commas separated by single spaces."""
    folded = unicodedata.normalize("NFKD", value[:_LONGEST_TEXT]).casefold().translate(vocabulary.LETTERS)
    folded = "".join(character for character in folded if not unicodedata.combining(character))
    folded = re.sub(r"\d+|,", r" \g<0> ", re.sub(r"[^\w,]|_", " ", re.sub(r"[;/+&|]", ",", folded)))
    return " ".join(vocabulary.JOINED.sub(r" \1\3 \2\4 ", folded).split())


@contextmanager
def silence_pydicom() -> Iterator[None]:
    """Suppress all warnings, and the log records of pydicom and its decoders that this thread emits.

    Both quote values of the header, patient names among them. Threads may overlap.
    """
    # A filter on a logger does not apply to its child loggers, so each of them gets one. Adding one twice is a no-op.
    for name in [*logging.root.manager.loggerDict]:
        if name.startswith(_LOGGERS):
            logging.getLogger(name).addFilter(_log_filter)
    _ignore_warnings()
    _silence.depth += 1
    try:
        yield
    finally:
        _silence.depth -= 1
        _restore_warnings()


def attempt(step: Callable[[], _T], message: str) -> _T:
    """Call pydicom. Convert any exception except ``MemoryError`` to an ``InputError`` with this message.

    The original exception may quote the header, so it is not chained.
    """
    try:
        return step()
    except MemoryError:
        raise
    except Exception:
        failed = True
    assert failed
    raise InputError(message)


class _Silence(threading.local):
    depth = 0


class _LogFilter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return _silence.depth == 0


_silence, _log_filter = _Silence(), _LogFilter()
_lock = threading.Lock()
_active = 0
_warning_filters: warnings.catch_warnings[None] | None = None


def _ignore_warnings() -> None:
    # Warning filters are global to the process. The first thread saves them and the last thread restores them, since
    # two overlapping threads would otherwise restore each other's filters.
    global _active, _warning_filters
    with _lock:
        _active += 1
        if _active == 1:
            _warning_filters = warnings.catch_warnings()
            _warning_filters.__enter__()
            warnings.simplefilter("ignore")


def _restore_warnings() -> None:
    global _active, _warning_filters
    with _lock:
        _active -= 1
        if _active == 0 and _warning_filters is not None:
            _warning_filters.__exit__(None, None, None)
            _warning_filters = None
