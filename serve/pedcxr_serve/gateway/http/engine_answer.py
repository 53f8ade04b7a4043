"""Read what the engine answers: the events of a stream, without parsing their text, and whole completions."""

from __future__ import annotations

import re
from dataclasses import dataclass

import msgspec

from pedcxr_serve.gateway.accounting.usage import TokenUsage

MAX_EVENT_BYTES = 4 << 20
"""Maximum size of an event of the engine; a larger one counts as a failure of the engine."""


_FINISH_REASON = re.compile(rb'"finish_reason": ?"(\w+)"')
_USAGE = re.compile(rb'"usage": ?\{')
# The count in an event with text, after the list of choices. The last event has no choices and does not match.
_COUNT = re.compile(
    rb'\}\](, ?"usage": ?\{(?:"\w+": ?\d+, ?)*?"completion_tokens": ?(\d+)[^{}]*(?:\{[^{}]*\}[^{}]*)*\})'
)
_EVENT_END = b"\n\n"
_NULLABLE = ("content", "refusal", "finish_reason", "logprobs", "usage")  # of OpenAI's API


@dataclass(slots=True)
class SSEReader:
    """Extracts the finish reason and the token usage from a stream of server-sent events, without parsing it.

    Blocks of whole events are searched for the fields of interest. That is exact: within JSON strings a quote is
    escaped as ``\\"`` and a line break as ``\\n``, so the text of a model cannot match.

    Attributes:
        forward_usage: whether the last event, which has the token usage and no text, is forwarded.
        forward_counts: whether the count in every other event is forwarded.
        finish_reason: of the answer, or None until the engine sends it.
        usage: the engine's count at the end, or None until the engine sends it.
        output_tokens: the engine's count so far. An event may hold several tokens (``--stream-interval``).
        aborted: the engine aborted the request. That event and all later ones are not forwarded.
        failed: the engine sent an error event, which is not forwarded either, or an event that is too large.
        complete: the stream ended with ``[DONE]``.
        events: number of events so far that are forwarded, without comments.
    """

    forward_usage: bool
    forward_counts: bool = False
    finish_reason: str | None = None
    usage: TokenUsage | None = None
    aborted: bool = False
    failed: bool = False
    complete: bool = False
    output_tokens: int = 0
    events: int = 0
    _rest: bytes = b""

    def feed(self, chunk: bytes) -> bytes:
        """Return the whole events to forward now.

        An event without an end within `MAX_EVENT_BYTES` counts as a failure.
        """
        if self.aborted or self.failed:
            return b""
        if not self._rest and (one := self._take_one(chunk)) is not None:
            return one
        data = self._rest + chunk if self._rest else chunk
        cut = data.rfind(_EVENT_END) + len(_EVENT_END)
        if cut < len(_EVENT_END):
            self.failed = len(data) > MAX_EVENT_BYTES
            self._rest = data
            return b""
        block, self._rest = data[:cut], data[cut:]
        self.events += block.count(b"\ndata: {") + block.startswith(b"data: {")
        if b'"usage"' in block:
            block = self._take_counts(block)
        if finish := _FINISH_REASON.search(block):
            self.finish_reason = finish[1].decode()
            if self.finish_reason == "abort":
                self.aborted = True
                return block[: _event_start(block, finish.start())]
        if b'"usage"' in block and (matches := list(_USAGE.finditer(block))):
            block = self._take_usage(block, matches[-1].start())
        if (failure := block.find(b'data: {"error"')) >= 0:
            self.failed = True
            return block[:failure]
        if b"[DONE]" in block and (b"\ndata: [DONE]" in block or block.startswith(b"data: [DONE]")):
            self.complete = True
        return block

    def _take_one(self, chunk: bytes) -> bytes | None:
        """Take a chunk that is a single event with text, as vLLM sends nearly all. Return None for any other chunk."""
        if not chunk.startswith(b"data: {") or chunk.startswith(b'data: {"error"'):
            return None
        if chunk.find(_EVENT_END) != len(chunk) - len(_EVENT_END) or b'"finish_reason":null' not in chunk:
            return None
        start = chunk.rfind(b'}],"usage":{')
        if start >= 0:
            count = _COUNT.match(chunk, start)
            if count is None or chunk[count.end() :] != b"}\n\n":
                return None
            self.output_tokens = int(count[2])
            if not self.forward_counts:
                chunk = chunk[: count.start(1)] + b"}\n\n"
        elif b'"usage"' in chunk:
            return None
        self.events += 1
        return chunk

    def _take_counts(self, block: bytes) -> bytes:
        counts = list(_COUNT.finditer(block))
        if counts:
            self.output_tokens = int(counts[-1][2])
        if self.forward_counts:
            return block
        parts, start = [], 0
        for count in counts:
            parts.append(block[start : count.start(1)])
            start = count.end(1)
        return b"".join((*parts, block[start:]))

    def _take_usage(self, block: bytes, at: int) -> bytes:
        start = _event_start(block, at)
        end = block.find(_EVENT_END, at) + len(_EVENT_END)
        event = _parse(block[start:end].partition(b"data:")[2])
        if event is None or event.usage is None:
            return block
        if event.choices:
            return block
        self.usage, self.output_tokens = event.usage, event.usage.output
        if self.forward_usage:
            return block
        self.events -= 1
        return block[:start] + block[end:]


def parse_completion(body: bytes) -> tuple[str | None, TokenUsage | None]:
    """Return the finish reason and the token usage of an unstreamed answer; None for each that is absent."""
    completion = _parse(body)
    if completion is None:
        return None, None
    return (completion.choices[0].finish_reason if completion.choices else None), completion.usage


def without_nulls(body: bytes) -> bytes:
    """Return an answer without the empty fields of vLLM, which some clients send back with the next question."""
    try:
        completion = msgspec.json.decode(body)
        for choice in completion["choices"]:
            choice["message"] = _without_nulls(choice["message"])
        completion["choices"] = [_without_nulls(choice) for choice in completion["choices"]]
        return msgspec.json.encode(_without_nulls(completion))
    except (msgspec.DecodeError, KeyError, TypeError):
        return body


def _without_nulls(fields: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in fields.items() if value is not None or name in _NULLABLE}


class _Choice(msgspec.Struct):
    finish_reason: str | None = None


class _Completion(msgspec.Struct):
    choices: list[_Choice] = []  # msgspec copies the default
    usage: TokenUsage | None = None


_decoder = msgspec.json.Decoder(_Completion)


def _parse(data: bytes) -> _Completion | None:
    try:
        return _decoder.decode(data)
    except msgspec.DecodeError:
        return None


def _event_start(block: bytes, at: int) -> int:
    return block.rfind(_EVENT_END, 0, at) + len(_EVENT_END) if _EVENT_END in block[:at] else 0
