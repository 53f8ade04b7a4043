"""What an engine's answer says about itself: why it ended and what it cost. Pure.

An event stream is not parsed. Its blocks are searched for the two events that matter, which works because a quote
within a text of a model is written ``\\"`` in JSON, and a line's end ``\\n``: what is searched for cannot occur in one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import msgspec

__all__ = ["Endless", "Stream", "Usage", "whole"]

_FINISH = re.compile(rb'"finish_reason": ?"(\w+)"')
_USAGE = re.compile(rb'"usage": ?\{')
_END = b"\n\n"
LONGEST_EVENT = 4 << 20


class Endless(Exception):
    """An event of the engine has no end."""


class Usage(msgspec.Struct, frozen=True):
    """Tokens, as the engine counted them; those of an image are in the prompt's."""

    prompt_tokens: int = 0
    completion_tokens: int | None = 0

    @property
    def output(self) -> int:
        """Tokens of the answer."""
        return self.completion_tokens or 0


class _Choice(msgspec.Struct):
    finish_reason: str | None = None


class _Whole(msgspec.Struct):
    choices: list[_Choice] = []  # msgspec copies it
    usage: Usage | None = None


_decoder = msgspec.json.Decoder(_Whole)


@dataclass(slots=True)
class Stream:
    """Reads along a stream of events.

    Attributes:
        keep_usage: whether the event that counts tokens is passed on.
        finish: of the answer, once it was told.
        aborted: the engine gave up; nothing of the event that says so is passed on, nor of what follows.
        failed: the engine sent an error as an event; treated alike.
        done: the stream ended as it should.
        events: how many so far, about one a token.
    """

    keep_usage: bool
    finish: str | None = None
    usage: Usage | None = None
    aborted: bool = False
    failed: bool = False
    done: bool = False
    events: int = 0
    _rest: bytes = b""

    def feed(self, chunk: bytes) -> bytes:
        """The whole events that are to be passed on now.

        Raises:
            Endless: an event is larger than any that can be meant.
        """
        if self.aborted or self.failed:
            return b""
        data = self._rest + chunk if self._rest else chunk
        cut = data.rfind(_END) + len(_END)
        if cut < len(_END):
            if len(data) > LONGEST_EVENT:
                raise Endless
            self._rest = data
            return b""
        block, self._rest = data[:cut], data[cut:]
        self.events += block.count(b"\ndata: {") + block.startswith(b"data: {")
        if finish := _FINISH.search(block):
            self.finish = finish[1].decode()
            if self.finish == "abort":
                self.aborted = True
                return block[: _start(block, finish.start())]
        if found := list(_USAGE.finditer(block)):  # the last counts, should an engine count in every event
            block = self._count(block, found[-1].start())
        if (failure := block.find(b'data: {"error"')) >= 0:
            self.failed = True
            return block[:failure]
        if b"\ndata: [DONE]" in block or block.startswith(b"data: [DONE]"):
            self.done = True
        return block

    def _count(self, block: bytes, at: int) -> bytes:
        start = _start(block, at)
        end = block.find(_END, at) + len(_END)
        told = _parse(block[start:end].partition(b"data:")[2])
        if told is None or told.usage is None:
            return block
        self.usage = told.usage
        if told.choices or self.keep_usage:
            return block
        self.events -= 1
        return block[:start] + block[end:]


def whole(body: bytes) -> tuple[str | None, Usage | None]:
    """The finish reason and the usage of an answer in one piece; None for what it does not say."""
    told = _parse(body)
    if told is None:
        return None, None
    return (told.choices[0].finish_reason if told.choices else None), told.usage


def _parse(data: bytes) -> _Whole | None:
    try:
        return _decoder.decode(data)
    except msgspec.DecodeError:
        return None


def _start(block: bytes, at: int) -> int:
    """Where the event begins that position ``at`` is in."""
    return block.rfind(_END, 0, at) + len(_END) if _END in block[:at] else 0
