"""Failures of the server and the connection, as typed errors with their evidence, with both clients."""

from __future__ import annotations

import socket
import threading
import time
from datetime import UTC, datetime

import pytest

from pedcxr_client import (
    AbortedReport,
    AuthenticationFailed,
    BadRequest,
    Client,
    ConfigurationError,
    ConnectionFailed,
    EmptyReport,
    NotFound,
    RateLimited,
    ReportError,
    RequestError,
    ServerFailed,
    TimedOut,
    Timeouts,
    TruncatedReport,
    Unavailable,
)
from pedcxr_client.metrics.hooks import NullHook
from pedcxr_client.request.retry import RetryState, parse_retry_after, wait_before_retry
from pedcxr_client.request.settings import Settings
from tests.support.http_server import reserved_port
from tests.support.servers.fake_engine import TEXT, Answer

ONCE = {"retries": 0}
GAP_S = 3  # what the engine has sent arrives before, also on a busy machine


@pytest.mark.parametrize(
    ("answer", "kind", "text", "finish"),
    [
        (Answer(finish="length"), TruncatedReport, TEXT, "length"),
        (Answer(finish="abort"), AbortedReport, TEXT, "abort"),
        (Answer(finish="content_filter"), AbortedReport, TEXT, "content_filter"),
        (Answer(finish=None), AbortedReport, TEXT, None),
        (Answer(finish=None, done=False), AbortedReport, TEXT, None),
        (Answer(cut_after=2), AbortedReport, "FINDINGS: The lungs", None),
        (Answer(cut_after=0), AbortedReport, "", None),
        (Answer(error_after=2), AbortedReport, "FINDINGS: The lungs", None),
        (Answer(error_after=0), AbortedReport, "", None),
        (Answer(pieces=()), EmptyReport, "", "stop"),
        (Answer(pieces=(" \n", "\t")), EmptyReport, " \n\t", "stop"),
        (Answer(raw=b"data: {not json\n\n"), AbortedReport, "", None),
        (Answer(raw=b"data: [1]\n\n"), AbortedReport, "", None),
        (Answer(raw=b'data: {"choices": 7}\n\n'), AbortedReport, "", None),
        (Answer(raw=b'data: {"choices": [{"delta": "x"}]}\n\ndata: [DONE]\n\n'), AbortedReport, "", None),
        (Answer(raw=b"data: \xff\xfe\n\n"), AbortedReport, "", None),
        (Answer(raw=b""), AbortedReport, "", None),
    ],
)
def test_incomplete_report_raises_with_its_text(engine, film, twin, answer, kind, text, finish):
    engine.answer = answer
    with pytest.raises(ReportError) as caught:
        twin.report(engine.url, film)
    error = caught.value
    assert type(error) is kind
    assert (error.text, error.finish_reason, error.request_id) == (text, finish, "req-fake")
    assert error.timing.done >= error.timing.sent
    assert error.exit_code == 4
    assert not text.strip() or text not in str(error)
    assert len(engine.chats) == 1, "nothing is retried after the response has started"


def test_error_event_carries_the_servers_message(engine, film, twin):
    engine.answer = Answer(error_after=1, error={"message": "out of\nmemory \x1b[31m", "code": 500})
    with pytest.raises(AbortedReport, match=r"out of memory \[31m$") as caught:
        twin.report(engine.url, film)
    assert caught.value.code == "500"


@pytest.mark.parametrize(
    ("status", "kind", "exit_code"),
    [
        (400, BadRequest, 3),
        (401, AuthenticationFailed, 2),
        (403, AuthenticationFailed, 2),
        (404, NotFound, 2),
        (413, BadRequest, 3),
        (422, BadRequest, 3),
        (429, RateLimited, 4),
        (500, ServerFailed, 4),
        (502, ServerFailed, 4),
        (503, Unavailable, 4),
    ],
)
def test_status_codes_map_to_errors(engine, film, twin, status, kind, exit_code):
    error = {"message": "the reason", "type": "t", "param": "messages", "code": "bad_image"}
    engine.answer = Answer(status=status, error=error, headers={"x-request-id": "req-9"})
    with pytest.raises(RequestError) as caught:
        twin.report(engine.url, film, client=ONCE)
    error = caught.value
    assert type(error) is kind
    assert (error.status_code, error.request_id, error.exit_code) == (status, "req-9", exit_code)
    assert error.__cause__ is not None
    assert error.timing.sent is not None
    assert len(engine.chats) == 1
    assert (error.code, error.reason) == ("bad_image", "the reason")
    assert "the reason" in str(error)
    if kind is BadRequest:
        assert error.param == "messages"


def test_html_error_page_is_not_quoted(engine, film, twin):
    engine.answer = Answer(status=502, raw=b"<html>" + b"x" * 5000, content_type="text/html")
    with pytest.raises(Unavailable) as caught:
        twin.report(engine.url, film, client=ONCE)
    assert "html" not in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("content_type", ["text/html", "application/json"])
def test_response_of_another_type_raises(engine, film, twin, content_type):
    engine.answer = Answer(raw=b"{}", content_type=content_type)
    with pytest.raises(ServerFailed, match="usually ends in /v1"):
        twin.report(engine.url, film)


def test_redirects_are_not_followed(engine, film, twin):
    engine.answer = Answer(status=307, headers={"location": engine.url + "/elsewhere"})
    with pytest.raises(ServerFailed):
        twin.report(engine.url, film)
    assert len(engine.chats) == len([request for request in engine.requests if request.method == "POST"]) == 1


def test_refused_connection_raises(film, twin):
    with reserved_port() as port, pytest.raises(ConnectionFailed, match="pedcxr-serve start") as caught:
        twin.report(f"http://127.0.0.1:{port}/v1", film, client=ONCE)
    assert caught.value.status_code is None
    assert str(port) in str(caught.value)


def test_gap_before_the_response_times_out(engine, film, twin):
    engine.answer = Answer(first=300)
    with pytest.raises(TimedOut) as caught:
        twin.report(engine.url, film, client={"timeouts": Timeouts(gap=GAP_S)})
    assert caught.value.text == ""
    assert len(engine.chats) == 1, "a timeout is not retried"
    assert engine.chats[0].disconnected.wait(30)


def test_gap_within_the_response_times_out_with_its_text(engine, film, twin):
    engine.answer = Answer(stall_after=2)
    with pytest.raises(TimedOut, match="stopped sending") as caught:
        twin.report(engine.url, film, client={"timeouts": Timeouts(gap=GAP_S)})
    assert caught.value.text == "FINDINGS: The lungs"
    assert caught.value.timing.first is not None
    assert engine.chats[0].disconnected.wait(30)


@pytest.mark.parametrize(
    "answer", [Answer(gap=0.05, pieces=("x",) * 2000), Answer(gap=0.05, ping_after=1)], ids=["trickle", "comments"]
)
def test_total_deadline_ends_a_slow_response(engine, film, twin, answer):
    twin.report(engine.url, film)  # loads the SDK's lazy imports
    engine.answer = answer
    began = time.monotonic()
    with pytest.raises(TimedOut, match="within 4 s") as caught:
        twin.report(engine.url, film, client={"timeouts": Timeouts(total=4), "model": "fake"})
    assert caught.value.timing.done - caught.value.timing.scheduled >= 4
    assert time.monotonic() - began < 40, "the whole response would take 100 s, or never end"
    assert caught.value.text
    assert engine.chats[-1].disconnected.wait(30)


def test_503_is_retried_after_retry_after(engine, film, twin):
    engine.reply(*[Answer(status=503, headers={"retry-after": "0.1"})] * 3)
    report = twin.report(engine.url, film, client={"retries": 1})
    assert (report.text, report.attempts) == (TEXT, 4)
    assert report.timing.sent - report.timing.scheduled >= 0.3
    assert report.timing.ttft < report.timing.ttft_user - 0.3


def test_429_is_retried_after_retry_after(engine, film, twin):
    engine.reply(Answer(status=429, headers={"retry-after": "0.1"}))
    assert twin.report(engine.url, film).attempts == 2


def test_model_list_is_not_retried_past_the_deadline(engine, film, twin):
    engine.models_answer = Answer(status=503, headers={"retry-after": "60"})
    with pytest.raises(Unavailable) as caught:
        twin.report(engine.url, film, client={"timeouts": Timeouts(total=30)})
    assert caught.value.retry_after == 60
    assert len(engine.requests) == 1, "a wait of 60 s would end after the deadline"


def test_retries_limit_the_attempts_without_retry_after(engine, film, twin):
    engine.answer = Answer(status=503)
    with pytest.raises(Unavailable):
        twin.report(engine.url, film, client={"retries": 1})
    assert len(engine.chats) == 2


def test_disconnect_before_the_response_is_retried(film, twin):
    """A server that stops accepts the connection and closes it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(60)
        closed = []

        def drop() -> None:
            for _ in range(2):
                connection, _ = listener.accept()
                connection.recv(100)
                connection.close()
                closed.append(1)

        dropper = threading.Thread(target=drop)
        dropper.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        with pytest.raises(ConnectionFailed):
            twin.report(url, film, client={"retries": 1, "model": "fake"})
        dropper.join()
    assert len(closed) == 2


def test_no_phase_of_an_attempt_extends_past_the_deadline():
    now = 0.0
    settings = Settings("http://127.0.0.1/v1", None, None, Timeouts(connect=5, write=6, gap=7, total=20), 0, False)
    retries = RetryState(settings, NullHook(), clock=lambda: now)
    timeout = retries.timeout()
    assert (timeout.connect, timeout.write, timeout.read, timeout.pool) == (5, 6, 7, 20)
    now = 18.0
    timeout = retries.timeout()
    assert (timeout.connect, timeout.write, timeout.read, timeout.pool) == (2, 2, 2, 2)
    now = 20.0
    with pytest.raises(TimedOut, match="within 20 s"):
        retries.timeout()


def _unavailable(seconds: float | None) -> Unavailable:
    error = Unavailable("starting")
    error.retry_after = seconds
    return error


@pytest.mark.parametrize(
    ("error", "attempt", "retries", "remaining", "least", "most"),
    [
        (ConnectionFailed("x"), 1, 2, 60, 0.25, 0.5),
        (ConnectionFailed("x"), 2, 2, 60, 0.5, 1.0),
        (ConnectionFailed("x"), 3, 2, 60, None, None),
        (ConnectionFailed("x"), 9, 99, 60, 4.0, 8.0),
        (_unavailable(None), 2, 2, 60, 0.5, 1.0),
        (_unavailable(None), 3, 2, 60, None, None),
        (_unavailable(5), 50, 2, 60, 5.0, 6.25),
        (_unavailable(5), 1, 2, 4, None, None),
        (_unavailable(5), 1, 0, 60, None, None),
        (_unavailable(0), 1, 2, 60, 0.1, 0.125),
        (_unavailable(0), 99, 2, 60, 1.0, 1.25),
        (TimedOut("x"), 1, 2, 60, None, None),
        (ServerFailed("x"), 1, 2, 60, None, None),
        (BadRequest("x"), 1, 2, 60, None, None),
        (AbortedReport("x"), 1, 2, 60, None, None),
        (ConfigurationError("x"), 1, 2, 60, None, None),
    ],
)
def test_wait_before_retry(error, attempt, retries, remaining, least, most):
    waits = [
        wait_before_retry(error, attempt=attempt, retries=retries, remaining=remaining, jitter=jitter)
        for jitter in (0.0, 1.0)
    ]
    assert waits == ([None, None] if least is None else pytest.approx([least, most]))


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("3", 3.0),
        ("0.5", 0.5),
        ("-4", 0.0),
        ("inf", None),
        ("nan", None),
        ("soon", None),
        ("", None),
        ("Fri, 01 Jan 2027 00:00:10 GMT", 10.0),
        ("Thu, 31 Dec 2026 00:00:00 GMT", 0.0),
        ("Fri, 01 Jan 2027 00:00:10 -0000", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(header, seconds):
    assert parse_retry_after(header, datetime(2027, 1, 1, tzinfo=UTC)) == seconds


@pytest.mark.parametrize(
    "url",
    ["http://10.0.0.5:8000/v1", "http://server/v1", "http://127.0.0.1.evil.example/v1", "http://0.0.0.0:8000/v1"],
)
def test_plain_http_to_another_machine_needs_permission(url):
    with pytest.raises(ConfigurationError, match="--insecure-http"):
        Client(url)
    Client(url, insecure_http=True).close()


@pytest.mark.parametrize(
    "url", ["https://server/v1", "http://localhost:8000/v1", "http://[::1]:8000/v1", "http://127.3.2.1/v1"]
)
def test_valid_addresses(url):
    Client(url).close()


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"url": ""}, "url"),
        ({"url": "server:8000"}, "url"),
        ({"url": "ftp://server/v1"}, "url"),
        ({"url": "http://127.0.0.1:99999/v1"}, "url"),
        ({"url": "http://[::1/v1"}, "url"),
        ({"url": "http://user:secret@127.0.0.1/v1"}, "url"),
        ({"api_key": ""}, "api_key"),
        ({"api_key": "secret\n"}, "api_key"),
        ({"api_key": "secrét"}, "api_key"),
        ({"retries": -1}, "retries"),
    ],
)
def test_invalid_setting_is_named_without_secrets(arguments, name):
    with pytest.raises(ConfigurationError, match=f"^{name}:") as caught:
        Client(**arguments)
    assert "secr" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("phase", ["connect", "write", "gap", "total"])
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_timeouts_must_be_above_zero(phase, value):
    with pytest.raises(ConfigurationError, match=phase):
        Timeouts(**{phase: value})
