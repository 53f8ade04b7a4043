"""Pass the reason why a film is refused from the plugin through vLLM to the gateway.

An error of vLLM 0.32 carries a message and an HTTP status, and its ``code`` repeats the status. The plugin therefore
puts a stable error code in front of the message, and the gateway moves it into ``error.code``, where OpenAI clients
expect it.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

STATUS = {
    "film_refused": 400,  # a plain image that cannot be decoded without loss
    "film_blocked": 422,  # a DICOM film outside the intended use
    "film_unreadable": 422,  # DICOM without a film of one frame, or damaged DICOM
    "dicom_not_installed": 501,  # the extra `dicom` or one of its decoders is not installed on the server
}
"""The error codes and their HTTP statuses."""


class FilmRefused(ValueError):
    """Raised by the decoders; the message says why the film is refused and what to do, and repeats none of its content.

    Attributes:
        code: a key of `STATUS`.
    """

    def __init__(self, message: str, code: str = "film_refused") -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class FilmRefusal:
    """A refused film, as the gateway reads it from an error of the engine; ``code`` is a key of `STATUS`."""

    code: str
    message: str

    @property
    def status(self) -> int:
        """The HTTP status."""
        return STATUS[self.code]


class _Error(msgspec.Struct):
    message: str = ""


class _Body(msgspec.Struct):
    error: _Error


def mark(code: str, message: str) -> str:
    """Return the message to raise in the engine: the code, a colon and the message."""
    assert code in STATUS, code
    return f"{code}: {message}"


def read(body: bytes) -> FilmRefusal | None:
    """Read a refused film from the engine's JSON error body; return None for any other error."""
    try:
        message = msgspec.json.decode(body, type=_Body).error.message
    except msgspec.DecodeError:
        return None
    code, colon, reason = message.partition(": ")
    return FilmRefusal(code, reason) if colon and code in STATUS else None
