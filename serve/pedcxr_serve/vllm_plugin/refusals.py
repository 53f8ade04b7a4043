"""Why a film is refused, in a form that survives vLLM: the plugin writes it, the gateway reads it. Pure.

An error of vLLM 0.32 carries a message and a status, and its ``code`` is the status again. So our own code, a stable
word for programs, leads the message, and the gateway puts it where OpenAI's clients look.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

__all__ = ["STATUS", "FilmRefusal", "FilmRefused", "mark", "read"]

STATUS = {
    "film_refused": 400,  # a plain image that cannot be used
    "film_blocked": 422,  # a DICOM film outside the intended use
    "film_unreadable": 422,  # DICOM that holds no film of one frame, or is damaged
    "dicom_not_installed": 501,  # the server lacks the extra `dicom`, or one of its decoders
}
"""Every code, and the HTTP status it goes with."""


class FilmRefused(ValueError):
    """The film cannot be used; the message says why and what to do instead, and nothing of its content.

    Attributes:
        code: one of `STATUS`.
    """

    def __init__(self, message: str, code: str = "film_refused") -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class FilmRefusal:
    """One of `STATUS`, and the words for a person."""

    code: str
    message: str

    @property
    def status(self) -> int:
        """Of HTTP."""
        return STATUS[self.code]


class _Told(msgspec.Struct):
    message: str = ""


class _Body(msgspec.Struct):
    error: _Told


def mark(code: str, message: str) -> str:
    """The message to raise in the engine."""
    assert code in STATUS, code
    return f"{code}: {message}"


def read(body: bytes) -> FilmRefusal | None:
    """The refusal in an engine's error body; None for any other error."""
    try:
        message = msgspec.json.decode(body, type=_Body).error.message
    except msgspec.DecodeError:
        return None
    code, colon, words = message.partition(": ")
    return FilmRefusal(code, words) if colon and code in STATUS else None
