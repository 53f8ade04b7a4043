"""`SSEReader`: finish reason and usage of a stream of server-sent events."""

from __future__ import annotations

import json
from dataclasses import asdict

from hypothesis import given
from hypothesis import strategies as st

from pedcxr_serve.gateway.accounting.usage import TokenUsage
from pedcxr_serve.gateway.http.engine_answer import MAX_EVENT_BYTES, SSEReader, parse_completion


def event(text: str | None = None, finish: str | None = None, *, tight: bool = True) -> bytes:
    separators = (",", ":") if tight else None
    choice = {"index": 0, "delta": {"content": text} if text is not None else {}, "finish_reason": finish}
    return b"data: " + json.dumps({"choices": [choice]}, separators=separators).encode() + b"\n\n"


STATS = b',"usage":{"prompt_tokens":300,"total_tokens":%d,"completion_tokens":%d,"completion_tokens_details":%b}}\n\n'
COUNT = b'data: {"choices":[],"usage":{"prompt_tokens":300,"completion_tokens":7,"total_tokens":307}}\n\n'
DONE = b"data: [DONE]\n\n"
NASTY = 'a "finish_reason":"abort" \n\ndata: {"usage": {"prompt_tokens": 9}} data: [DONE] "abort"'


@given(st.lists(st.text(max_size=9) | st.just(NASTY), max_size=6), st.data(), st.booleans(), st.booleans())
def test_chunk_boundaries_do_not_matter(texts: list[str], data: st.DataObject, keep: bool, tight: bool) -> None:
    events = [event(text, tight=tight) for text in texts] + [event(finish="stop", tight=tight)]
    stream = b"".join([*events, COUNT, b": ping\n\n", DONE])
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    reader = SSEReader(keep)
    output = b"".join(reader.feed(stream[a:b]) for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True))
    assert output == (stream if keep else stream.replace(COUNT, b""))
    assert (reader.finish_reason, reader.usage, reader.complete) == ("stop", TokenUsage(300, 7), True)
    assert (reader.aborted, reader.failed) == (False, False)
    assert reader.events == len(events) + keep


@given(st.data())
def test_events_from_the_abort_on_are_dropped(data: st.DataObject) -> None:
    stream = event("one") + event(finish="abort") + COUNT + DONE
    cut = data.draw(st.integers(0, len(stream)))
    reader = SSEReader(True)
    assert reader.feed(stream[:cut]) + reader.feed(stream[cut:]) == event("one")
    assert reader.aborted and not reader.complete


@given(
    st.lists(st.tuples(st.text(max_size=9) | st.just(NASTY), st.booleans(), st.booleans()), max_size=6),
    st.booleans(),
    st.booleans(),
)
def test_events_one_by_one_give_what_they_give_together(
    texts: list[tuple[str, bool, bool]], usage: bool, counts: bool
) -> None:
    events = []
    for number, (text, tight, counted) in enumerate(texts, 1):
        one = event(text, tight=tight)
        events.append(one[: -len(b"}\n\n")] + STATS % (300 + number, number, b"null") if counted else one)
    events += [b": ping\n\n", event(finish="stop"), COUNT, DONE]
    alone, together = SSEReader(usage, counts), SSEReader(usage, counts)
    assert b"".join(map(alone.feed, events)) == together.feed(b"".join(events))
    alone_at_end, together_at_end = (asdict(reader) for reader in (alone, together))
    assert alone_at_end == together_at_end


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.data(), st.booleans(), st.booleans())
def test_counts_of_tokens_are_read_from_every_event_and_forwarded_on_request(
    sizes: list[int], data: st.DataObject, usage: bool, counts: bool
) -> None:
    plain = [event(NASTY) for _ in sizes] + [event(finish="stop")]
    tokens = [sum(sizes[: number + 1]) for number in range(len(sizes))] + [sum(sizes)]
    details = [b'{"reasoning_tokens":0}' if data.draw(st.booleans()) else b"null" for _ in plain]
    events = [
        one[: -len(b"}\n\n")] + STATS % (300 + count, count, detail)
        for one, count, detail in zip(plain, tokens, details, strict=True)
    ]
    reader = SSEReader(usage, counts)
    output = b""
    for number, one in enumerate(events):
        cut = data.draw(st.integers(0, len(one)))
        output += reader.feed(one[:cut]) + reader.feed(one[cut:])
        assert reader.output_tokens == tokens[number]
        assert reader.usage is None, "not before the end"
    output += reader.feed(COUNT + DONE)
    assert reader.usage == TokenUsage(300, 7)
    assert output == b"".join(events if counts else plain) + (COUNT if usage else b"") + DONE


def test_counts_before_an_abort_are_not_forwarded() -> None:
    first = event("one")[: -len(b"}\n\n")] + STATS % (301, 1, b"null")
    reader = SSEReader(False)
    assert reader.feed(first + event(finish="abort")) == event("one")


def test_error_event_of_the_engine_is_dropped() -> None:
    reader = SSEReader(False)
    error = b'data: {"error": {"message": "out of memory"}}\n\n'
    assert reader.feed(event("a") + error + DONE) == event("a")
    assert reader.feed(event("b")) == b""
    assert (reader.failed, reader.complete) == (True, False)


def test_event_without_end_fails() -> None:
    reader = SSEReader(False)
    reader.feed(b"x" * MAX_EVENT_BYTES)
    assert not reader.failed
    assert reader.feed(b"x") == b""
    assert reader.failed


def test_parse_completion() -> None:
    body = {"choices": [{"finish_reason": "length", "message": {"content": NASTY}}], "usage": {"prompt_tokens": 3}}
    assert parse_completion(json.dumps(body).encode()) == ("length", TokenUsage(3, 0))
    assert parse_completion(b"not json") == parse_completion(b'{"choices": 3}') == (None, None)
