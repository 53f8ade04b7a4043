"""Responses that are cut, stalled or garbled at each stage, or belong to another request, with both clients."""

from __future__ import annotations

import json

import pytest

from pedcxr_client import (
    AbortedReport,
    AuthenticationFailed,
    BadRequest,
    ConnectionFailed,
    FilmRequest,
    RateLimited,
    ServerFailed,
    TimedOut,
    Timeouts,
    Unavailable,
)
from pedcxr_client.request.stream_parser import StreamParser, new_request_id
from tests.support.servers.fake_engine import TEXT, Answer
from tests.support.servers.raw_server import raw_server

EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
CHUNKED = EVENTS + b"Transfer-Encoding: chunked\r\n\r\n"
# What the server has sent arrives within this gap, also on a busy machine.
SILENT = {"retries": 0, "model": "m", "timeouts": Timeouts(gap=3)}
BROKEN = {"retries": 0, "model": "m"}


def event(text: str | None, finish: str | None = None, **fields: object) -> bytes:
    delta = {} if text is None else {"content": text}
    value = {"id": "1", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]} | fields
    return chunk(b"data: " + json.dumps(value).encode() + b"\n\n")


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


PIECE = event(TEXT)
FINISHED = CHUNKED + PIECE + event(None, "stop")
GZIP = b"Content-Encoding: gzip\r\nContent-Length: 5\r\n\r\nhello"


@pytest.mark.parametrize(
    ("answer", "kind", "text"),
    [
        pytest.param(b"", ConnectionFailed, "", id="nothing"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Ty", ConnectionFailed, "", id="headers cut"),
        pytest.param(b"\x00\xff\r\n\r\n", ConnectionFailed, "", id="headers garbled"),
        pytest.param(EVENTS + GZIP, AbortedReport, "", id="undecodable"),
        pytest.param(CHUNKED, AbortedReport, "", id="before the first event"),
        pytest.param(CHUNKED + PIECE[:30], AbortedReport, "", id="in the first event"),
        pytest.param(CHUNKED + chunk(b"data: {no\n\n"), AbortedReport, "", id="first event garbled"),
        pytest.param(CHUNKED + PIECE + PIECE[:30], AbortedReport, TEXT, id="in the middle"),
        pytest.param(CHUNKED + PIECE + b"\x00\xff", AbortedReport, TEXT, id="middle garbled"),
        pytest.param(FINISHED, AbortedReport, TEXT, id="before [DONE]"),
        pytest.param(FINISHED + b"\x00\xff", AbortedReport, TEXT, id="[DONE] garbled"),
    ],
)
def test_a_response_that_breaks_is_a_typed_error(film, twin, answer, kind, text):
    with raw_server(answer) as url:
        with pytest.raises(kind) as caught:
            twin.report(url, film, client=BROKEN)
        assert caught.value.text == text
        [result] = twin.reports(url, [FilmRequest(film)], **BROKEN)
    assert type(result.error) is kind


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Ty", "", id="headers"),
        pytest.param(b"HTTP/1.1 503 Busy\r\nContent-Length: 99\r\n\r\n{", "", id="error body"),
        pytest.param(CHUNKED, "", id="first event"),
        pytest.param(CHUNKED + PIECE + PIECE[:30], TEXT, id="middle"),
        pytest.param(FINISHED, TEXT, id="before [DONE]"),
    ],
)
def test_a_response_that_stalls_is_a_timeout(film, twin, answer, text):
    with raw_server(answer, stall=True) as url, pytest.raises(TimedOut) as caught:
        twin.report(url, film, client=SILENT)
    assert caught.value.text == text


def test_a_report_is_complete_with_done(film, twin):
    with raw_server(FINISHED + chunk(b"data: [DONE]\n\n")) as url:
        assert twin.report(url, film, client=BROKEN).text == TEXT


STATUSES = {
    b"401 Unauthorized": AuthenticationFailed,
    b"413 Too Large": BadRequest,
    b"429 Too Many": RateLimited,
    b"500 Error": ServerFailed,
    b"502 Bad Gateway": Unavailable,
    b"503 Busy": Unavailable,
    b"504 Timeout": Unavailable,
}


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("body", [b"Content-Length: 99\r\n\r\n{", GZIP, b"\r\n\xff"], ids=["cut", "gzip", "no JSON"])
def test_an_unreadable_error_body_keeps_its_status(film, twin, status, body):
    with raw_server(b"HTTP/1.1 %s\r\nX-Request-Id: r7\r\nRetry-After: 7\r\n%s" % (status, body)) as url:
        [result] = twin.reports(url, [FilmRequest(film)], **BROKEN)
    error = result.error
    assert type(error) is STATUSES[status]
    assert (error.status_code, error.request_id, error.code) == (int(status[:3]), "r7", None)
    assert getattr(error, "retry_after", 7) == 7


@pytest.mark.parametrize("status", [502, 504])
def test_a_proxy_error_is_retried_and_one_of_the_server_is_not(engine, film, twin, status):
    page = Answer(status=status, raw=b"<html>", content_type="text/html", headers={"retry-after": "0.01"})
    engine.reply(page)
    assert twin.report(engine.url, film).attempts == 2
    engine.reply(Answer(status=status, error={"message": "the engine stopped", "code": "engine_lost"}))
    with pytest.raises(ServerFailed, match="the engine stopped"):
        twin.report(engine.url, film)
    assert len(engine.chats) == 3


@pytest.mark.parametrize(
    ("status", "message", "code"),
    [
        (429, "tokens_per_day of team radiology is used up", "budget_spent"),
        (429, "2 requests are open", "too_many_concurrent"),
        (429, "60 requests per minute", "rate_limited"),
        (401, "the key expired on 2026-01-01", "invalid_api_key"),
        (403, "this key may not stream", "stream_not_allowed"),
        (503, "the queue is full", "queue_full"),
        (404, "no model x", 404),
    ],
)
def test_errors_carry_the_servers_code_and_message(engine, film, twin, status, message, code):
    engine.answer = Answer(status=status, error={"message": message, "code": code})
    [result] = twin.reports(engine.url, [FilmRequest(film)], retries=0, model="fake")
    assert (result.error.code, result.error.reason) == (str(code), message)
    assert message in str(result.error)


# The first chunks of real servers.
ROLE = {"role": "assistant", "content": ""}


@pytest.mark.parametrize(
    "deltas",
    [
        pytest.param([{"id": "a", "delta": ROLE}, {"id": "a", "delta": {"content": "x"}}], id="vLLM, OpenAI, SGLang"),
        pytest.param([{"id": "a", "delta": {"role": "assistant", "content": "x"}}], id="LiteLLM"),
        pytest.param([{"id": "a", "delta": {"role": "assistant", "content": None}}, {"id": "a"}], id="llama.cpp"),
        pytest.param([{"id": "a", "delta": {"content": "x"}}, {"id": "a"}], id="no role"),
        pytest.param([{"id": "", "delta": ROLE}, {"id": "", "delta": {"content": "x"}}], id="TGI"),
        pytest.param([{"id": ""}, {"id": "a", "delta": ROLE}, {"id": "a", "delta": {"content": "x"}}], id="Azure"),
        pytest.param([{"delta": ROLE}, {"delta": {"content": "x"}}], id="no id"),
    ],
)
def test_chunks_of_real_servers_are_accepted(deltas):
    parser = StreamParser(sent_id=new_request_id())
    for fields in deltas:
        choices = [{"index": 0, "delta": fields["delta"]}] if "delta" in fields else []
        parser.add({"choices": choices} | ({"id": fields["id"]} if "id" in fields else {}), 0.0)


def own(name: str) -> str:
    return f"chatcmpl-{name}"


SENT, OTHER = new_request_id(), new_request_id()


@pytest.mark.parametrize(
    "chunks",
    [
        pytest.param([("a", ROLE), ("b", {"content": "x"})], id="the id changes"),
        pytest.param([("a", {"content": "x"}), ("", {"content": "x"}), ("b", {"content": "x"})], id="it changes later"),
        pytest.param([(own(OTHER), ROLE)], id="the id of another request"),
        pytest.param([(own(SENT), {"content": "x"})], id="the start is missing"),
    ],
)
def test_chunks_of_another_response_are_refused(chunks):
    parser = StreamParser(sent_id=SENT)
    *events, last = [{"id": name, "choices": [{"index": 0, "delta": delta}]} for name, delta in chunks]
    for each in events:
        parser.add(each, 0.0)
    with pytest.raises(AbortedReport, match="another request"):
        parser.add(last, 0.0)
    assert parser.text == ""


def test_the_response_to_another_request_is_refused(engine, film, twin):
    engine.answer = Answer(headers={"x-request-id": OTHER})
    with pytest.raises(AbortedReport, match="another request"):
        twin.report(engine.url, film)
    engine.answer = Answer(like_vllm=True)
    assert twin.report(engine.url, film).request_id == engine.chats[-1].headers["x-request-id"]
    assert len({request.headers["x-request-id"] for request in engine.chats}) == 2
