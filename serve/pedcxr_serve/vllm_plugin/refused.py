"""What the decoders of films raise."""

from __future__ import annotations


class FilmRefused(ValueError):
    """The film cannot be used; the message says why and what to do instead, and nothing of its content.

    Attributes:
        code: one of `pedcxr_serve.vllm_plugin.refusals.STATUS`.
    """

    def __init__(self, message: str, code: str = "film_refused") -> None:
        super().__init__(message)
        self.code = code
