"""The deadline of an answer, kept where the SDK does not look."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any


class Watched:
    """An HTTP response that checks the deadline whenever bytes arrive.

    The SDK's stream shows events only, so a server that sends nothing but keep-alive comments would hold us for ever.
    """

    def __init__(self, response: object, check: Callable[[], object]) -> None:
        self._response: Any = response
        self._check = check

    def __getattr__(self, name: str) -> Any:
        return getattr(self._response, name)

    def iter_bytes(self) -> Iterator[bytes]:
        for block in self._response.iter_bytes():
            self._check()
            yield block
