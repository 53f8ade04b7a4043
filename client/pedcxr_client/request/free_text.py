"""What people give to be put into a prompt: the system text of a file, and an indication. Checked, never repeated."""

from __future__ import annotations

import os
import re
import unicodedata

from pedcxr_client.errors import ConfigurationError, InputError

LARGEST_SYSTEM = 64 * 1024
"""Largest file of a system text, in bytes."""
LONGEST_INDICATION = 200
"""Longest indication, in characters."""
NOT_RECORDED = "(not recorded)"
"""What stands for an indication wherever a prompt is written down."""

_NO_TEXT = ("Cc", "Cs", "Co")  # control, half a surrogate pair, private

MARKERS = re.compile(
    r"<(?:(?:start|end)_of_(?:turn|image)|image_soft_token|bos|eos|pad|unk|mask|unused\d+)>|\[multimodal\]"
)
"""Gemma 3's special tokens: a tokenizer takes them for what they say, wherever they stand."""


def read(path: str | os.PathLike[str]) -> str:
    """The text of a file, without a byte order mark.

    Raises:
        ConfigurationError: if there is none, or not in UTF-8, or more than :data:`LARGEST_SYSTEM`.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(LARGEST_SYSTEM + 1)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"cannot be read: {getattr(error, 'strerror', None) or 'is no path'}") from error
    if len(data) > LARGEST_SYSTEM:
        raise ConfigurationError(f"has more than {LARGEST_SYSTEM // 1024} KiB; is it the right file?")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"byte {error.start} is not UTF-8; save it as UTF-8") from None


def check_system(text: str) -> None:
    """Raise unless a text can be a system text.

    Raises:
        ConfigurationError
    """
    if not text.strip():
        raise ConfigurationError("the system text is empty")
    if marker := MARKERS.search(text):
        raise ConfigurationError(f"the system text holds {marker[0]}, a special token of the model; take it out")
    strange = next(
        (letter for letter in text if unicodedata.category(letter) in _NO_TEXT and letter not in "\n\t"), None
    )
    if strange is not None:
        raise ConfigurationError(f"the system text holds U+{ord(strange):04X}, which does not print; is it plain text?")


def indication(text: object) -> str:
    """An indication without white space at its ends.

    Raises:
        InputError: if it cannot be sent; the message does not show it, for it may hold what it should not.
    """
    text = text.strip() if isinstance(text, str) else ""
    if not text:
        raise InputError("indication: is empty; leave it out if there is none")
    if len(text) > LONGEST_INDICATION:
        raise InputError(f"indication: has {len(text)} characters; {LONGEST_INDICATION} are the most")
    if not text.isprintable():
        raise InputError("indication: holds a line break or something else that does not print; write it on one line")
    if MARKERS.search(text):
        raise InputError("indication: holds a special token of the model; take it out")
    return text
