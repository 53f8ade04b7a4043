"""Reading along a stream of events without parsing it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pedcxr_serve.gateway.answer import LONGEST_EVENT, Endless, Stream, Usage, whole


def event(text: str | None = None, finish: str | None = None, *, tight: bool = True) -> bytes:
    separators = (",", ":") if tight else None
    choice = {"index": 0, "delta": {"content": text} if text is not None else {}, "finish_reason": finish}
    return b"data: " + json.dumps({"choices": [choice]}, separators=separators).encode() + b"\n\n"


COUNT = b'data: {"choices":[],"usage":{"prompt_tokens":300,"completion_tokens":7,"total_tokens":307}}\n\n'
DONE = b"data: [DONE]\n\n"
NASTY = 'a "finish_reason":"abort" \n\ndata: {"usage": {"prompt_tokens": 9}} data: [DONE] "abort"'


@given(st.lists(st.text(max_size=9) | st.just(NASTY), max_size=6), st.data(), st.booleans(), st.booleans())
def test_however_it_is_cut_the_same_comes_out(texts: list[str], data: st.DataObject, keep: bool, tight: bool) -> None:
    told = [event(text, tight=tight) for text in texts] + [event(finish="stop", tight=tight)]
    stream = b"".join([*told, COUNT, b": ping\n\n", DONE])
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    reader = Stream(keep)
    out = b"".join(reader.feed(stream[a:b]) for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True))
    assert out == (stream if keep else stream.replace(COUNT, b""))
    assert (reader.finish, reader.usage, reader.done) == ("stop", Usage(300, 7), True)
    assert (reader.aborted, reader.failed) == (False, False)
    assert reader.events == len(told) + keep


@given(st.data())
def test_nothing_from_an_abort_on_is_passed_on(data: st.DataObject) -> None:
    stream = event("one") + event(finish="abort") + COUNT + DONE
    cut = data.draw(st.integers(0, len(stream)))
    reader = Stream(True)
    assert reader.feed(stream[:cut]) + reader.feed(stream[cut:]) == event("one")
    assert reader.aborted and not reader.done


def test_of_several_counts_the_last_holds() -> None:
    early = b'data: {"choices":[{"delta":{}}],"usage":{"prompt_tokens":300,"completion_tokens":1}}\n\n'
    reader = Stream(False)
    assert reader.feed(early + event(finish="stop") + COUNT + DONE) == early + event(finish="stop") + DONE
    assert reader.usage == Usage(300, 7)


def test_an_error_of_the_engine_is_seen() -> None:
    reader = Stream(False)
    error = b'data: {"error": {"message": "out of memory"}}\n\n'
    assert reader.feed(event("a") + error + DONE) == event("a")
    assert reader.feed(event("b")) == b""
    assert (reader.failed, reader.done) == (True, False)


def test_an_event_without_end() -> None:
    reader = Stream(False)
    reader.feed(b"x" * LONGEST_EVENT)
    with pytest.raises(Endless):
        reader.feed(b"x")


def test_a_whole_answer() -> None:
    body = {"choices": [{"finish_reason": "length", "message": {"content": NASTY}}], "usage": {"prompt_tokens": 3}}
    assert whole(json.dumps(body).encode()) == ("length", Usage(3, 0))
    assert whole(b"not json") == whole(b'{"choices": 3}') == (None, None)
