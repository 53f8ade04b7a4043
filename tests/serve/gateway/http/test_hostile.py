"""Hostile clients over real sockets: they get an error in OpenAI's format or are disconnected; others are served."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pedcxr_serve.gateway import upstream
from pedcxr_serve.gateway.auth import api_keys
from pedcxr_serve.gateway.auth.tenant_store import TenantStore
from pedcxr_serve.gateway.http import protocol
from pedcxr_serve.gateway.request.body import BodyMemory
from tests.support.servers.fake_engine import Answer, FakeEngine
from tests.support.servers.gateway_server import BODY, CHAT, LIMIT, Gateway, assert_openai_error, eventually, running

BODY_S = 4  # for a whole body: long enough for one that a busy machine sends in parts
CHUNKED = b"POST %b HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n" % CHAT.encode()


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeEngine]:
    with FakeEngine(uds=tmp_path_factory.mktemp("hostile") / "engine.sock") as engine:
        yield engine


@pytest.fixture(scope="module")
def shared(engine: FakeEngine) -> Iterator[Gateway]:
    with running(engine, bodies=BodyMemory(8 * LIMIT, timeout_s=BODY_S)) as gateway:
        yield gateway


@pytest.fixture
def gateway(shared: Gateway) -> Iterator[Gateway]:
    """After each test an ordinary request is served, and no request or body remains."""
    shared.engine.reset()
    yield shared
    shared.engine.answer = Answer()
    with shared.client() as client:
        assert client.post(CHAT, json=BODY).status_code == 200
    eventually(lambda: shared.state.bodies.in_use == 0 and shared.state.in_flight == 0)
    queue = shared.state.scheduler.queue
    eventually(lambda: (queue.running, queue.waiting) == (0, 0))


@contextmanager
def connected(gateway: Gateway) -> Iterator[socket.socket]:
    with socket.create_connection(gateway.address, timeout=60) as plug:
        yield plug


def read_all(plug: socket.socket) -> bytes:
    """Read until the server closes."""
    parts = []
    while True:
        try:
            part = plug.recv(65536)
        except ConnectionResetError:
            part = b""
        if not part:
            return b"".join(parts)
        parts.append(part)


def head(length: object, *headers: str) -> bytes:
    lines = [f"POST {CHAT} HTTP/1.1", "Host: localhost", f"Content-Length: {length}", *headers, "", ""]
    return "\r\n".join(lines).encode()


def trickle(plug: socket.socket, *, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        plug.sendall(b"x" * 1000)
        time.sleep(0.01)


def error_in(answer: bytes) -> Any:
    return json.loads(answer.rpartition(b"\r\n\r\n")[2])["error"]


def test_slow_body_is_408(gateway: Gateway) -> None:
    with connected(gateway) as plug:
        began = time.monotonic()
        plug.sendall(head(1000) + b"{")
        answer = read_all(plug)
    assert b" 408 " in answer and error_in(answer)["code"] == "body_too_slow"
    assert BODY_S <= time.monotonic() - began < 30, "the limit of this gateway, not the usual one of 60 s"


def test_body_without_end_is_cut_off(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "MAX_DISCARDED_BYTES", 4 * LIMIT)
    with connected(gateway) as plug:
        plug.sendall(CHUNKED)
        sent = 0
        with contextlib.suppress(OSError):
            while sent < 100 * LIMIT:
                plug.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")
                sent += 65536
    assert sent < 30 * LIMIT, "the connection is closed"
    assert gateway.state.bodies.in_use <= LIMIT


def test_body_in_chunks_of_one_byte(gateway: Gateway) -> None:
    """A chunk per byte costs six bytes for one, and is still a valid request."""
    body = json.dumps(BODY).encode() + b" " * 20_000
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    with connected(gateway) as plug:
        plug.sendall(CHUNKED.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") + chunks)
        assert read_all(plug).startswith(b"HTTP/1.1 200 ")


def test_chunk_extension_without_end_is_cut_off(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """These bytes are not part of the body, so only the limits of time apply: for the body, and after its 408."""
    monkeypatch.setattr(protocol, "HEADERS_TIMEOUT_S", 0.5)
    with connected(gateway) as plug:
        plug.sendall(CHUNKED + b"1;")
        with pytest.raises(OSError):  # noqa: PT011  (reset or broken pipe, depending on timing)
            trickle(plug, seconds=30)


def test_disconnect_within_the_body(gateway: Gateway) -> None:
    for _ in range(50):
        with connected(gateway) as plug:
            plug.sendall(head(500_000) + b"x" * 1000)


def test_bodies_of_one_tenant_leave_memory_for_another(engine: FakeEngine, tmp_path: Path) -> None:
    path = tmp_path / "tenants.toml"
    greedy, other = api_keys.new(path, "greedy"), api_keys.new(path, "other")
    with running(engine, bodies=BodyMemory(2 * LIMIT, timeout_s=60), tenants=TenantStore(path)) as gateway:
        with contextlib.ExitStack() as stack:
            for _ in range(2):
                plug = stack.enter_context(connected(gateway))
                plug.sendall(head(LIMIT, f"Authorization: Bearer {greedy}") + b"x" * int(0.7 * LIMIT))
            eventually(lambda: gateway.state.bodies.in_use == 2 * int(0.7 * LIMIT))
            with gateway.client(greedy) as client:
                assert_openai_error(client.post(CHAT, content=b" " * (LIMIT // 4)), 503, "no_room")
            with gateway.client(other) as client:
                assert client.post(CHAT, json=BODY).status_code == 200
        eventually(lambda: gateway.state.bodies.in_use == 0)
        with gateway.client(greedy) as client:
            assert client.post(CHAT, json=BODY).status_code == 200


def test_client_that_reads_slowly_is_disconnected(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each read comes in time, but the total stall time is limited, since the request occupies a slot."""
    monkeypatch.setattr(upstream, "_MAX_STALL_S", 1.0)
    monkeypatch.setattr(protocol, "WRITE_TIMEOUT_S", 2.0)
    engine.reset()
    engine.answer = Answer(pieces=("x" * 100_000,) * 1000)
    with running(engine) as gateway, connected(gateway) as plug:
        with gateway.client() as client:
            assert client.get("/health/live").status_code == 200
        files = len(os.listdir("/proc/self/fd"))  # includes the gateway's end of this connection
        plug.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        body = json.dumps(BODY | {"stream": True}).encode()
        plug.sendall(head(len(body)) + body)
        end = time.monotonic() + 40  # the whole answer would take 76 s at this rate
        while not (engine.chats and engine.chats[0].disconnected.wait(0.05)):
            assert time.monotonic() < end, "the request is still running"
            plug.recv(65536)
        eventually(lambda: gateway.state.in_flight == 0)
        eventually(lambda: len(os.listdir("/proc/self/fd")) < files)
        assert 'pedcxr_rejections_total{reason="client_stalled"' in gateway.metrics()


def test_client_that_does_not_read_is_not_buffered(gateway: Gateway) -> None:
    """Only the client's own stream stalls, and its disconnect ends the engine's request."""
    gateway.engine.answer = Answer(pieces=("x" * 100_000,) * 200)
    with connected(gateway) as plug:
        plug.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        body = json.dumps(BODY | {"stream": True}).encode()
        plug.sendall(head(len(body)) + body)
        eventually(lambda: gateway.engine.chats)
        with gateway.client() as client:
            assert client.get("/health/ready").status_code == 200
    assert gateway.engine.chats[0].disconnected.wait(30)


HEADERS_OVER_A_LIMIT = {
    "bytes": b"".join(b"X-%d: %s\r\n" % (number, b"y" * 1000) for number in range(17)),
    "number": b"".join(b"X-%d: y\r\n" % number for number in range(protocol.MAX_HEADERS)),  # and Host
    "length": b"X: " + b"y" * protocol.MAX_HEADER_BYTES + b"\r\n",
}
HEADER_BOMBS = {
    "bytes": b"".join(b"X-%d: %s\r\n" % (number, b"y" * 1000) for number in range(1000)),
    "number": b"".join(b"X-%d: y\r\n" % number for number in range(10_000)),
    "length": b"X: " + b"y" * 1_000_000 + b"\r\n",
}


def request_with(headers: bytes) -> bytes:
    return b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n" + headers + b"\r\n"


@pytest.mark.parametrize("headers", HEADERS_OVER_A_LIMIT.values(), ids=HEADERS_OVER_A_LIMIT)
def test_headers_over_a_limit_are_431(gateway: Gateway, headers: bytes) -> None:
    with connected(gateway) as plug:
        plug.sendall(request_with(headers))
        answer = read_all(plug)
    assert b" 431 " in answer and error_in(answer)["code"] == "headers_too_large"


def test_headers_at_the_limits_are_accepted(gateway: Gateway) -> None:
    many = b"".join(b"X-%d: y\r\n" % number for number in range(protocol.MAX_HEADERS - 2))
    long = b"X: " + b"y" * (protocol.MAX_HEADER_BYTES - 100) + b"\r\n"
    for headers in (many, long):
        with connected(gateway) as plug:
            plug.sendall(request_with(headers + b"Connection: close\r\n"))
            assert read_all(plug).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("headers", HEADER_BOMBS.values(), ids=HEADER_BOMBS)
def test_header_bombs_are_cut_off(gateway: Gateway, headers: bytes) -> None:
    """The 431 may be lost, since the gateway closes the connection while the client still sends."""
    answer = b""
    with connected(gateway) as plug, contextlib.suppress(OSError):
        plug.sendall(request_with(headers))
        answer = read_all(plug)
    assert answer == b"" or b" 431 " in answer


def test_long_url_is_431(gateway: Gateway) -> None:
    with connected(gateway) as plug:
        plug.sendall(b"GET /" + b"a" * 60_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b" 431 " in read_all(plug)


def test_headers_without_end_time_out(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEADERS_TIMEOUT_S", 2.5)  # the last client must connect and ask within this time
    with running(engine) as gateway, connected(gateway) as silent, connected(gateway) as slow:
        slow.sendall(b"GET /health/live HTTP/1.1\r\nX: ")
        assert read_all(silent) == read_all(slow) == b""
        with gateway.client() as client:  # the time limit does not apply between requests
            client.get("/health/live")
            time.sleep(3)
            assert client.get("/health/live").status_code == 200


def test_body_after_an_early_answer_has_a_time_limit(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """404 and 401 are sent before the body, the rest of which is discarded within a time limit."""
    monkeypatch.setattr(protocol, "HEADERS_TIMEOUT_S", 2.5)  # the head must arrive within this time
    with running(engine) as gateway, connected(gateway) as plug:
        plug.sendall(head(1 << 30).replace(CHAT.encode(), b"/nowhere"))
        assert b" 404 " in plug.recv(65536)
        with pytest.raises(OSError):  # noqa: PT011  (reset or broken pipe, depending on timing)
            trickle(plug, seconds=30)
        monkeypatch.setattr(protocol, "HEADERS_TIMEOUT_S", 60)
        with gateway.client() as client:
            assert client.post("/nowhere", content=b"x" * 300_000).status_code == 404
            assert client.post(CHAT, json=BODY).status_code == 200


def test_longest_idle_connection_is_evicted(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "MAX_CONNECTIONS", 20)
    engine.answer = Answer(stall_after=1)
    with running(engine) as gateway, gateway.client() as client, connected(gateway) as streaming:
        body = json.dumps(BODY | {"stream": True}).encode()
        streaming.sendall(head(len(body)) + body)
        assert b" 200 " in streaming.recv(65536)
        with contextlib.ExitStack() as stack:
            plugs = [stack.enter_context(connected(gateway)) for _ in range(100)]
            assert client.get("/health/ready").status_code == 200
            assert all(read_all(plug) == b"" for plug in plugs[:80]), "evicted by later connections"
            assert gateway.state.in_flight == 1, "a connection with a request in flight is not evicted"
            plugs[-1].sendall(head(5) + b"{")
            eventually(lambda: gateway.state.bodies.in_use == 1)


def test_503_when_every_connection_has_a_request(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "MAX_CONNECTIONS", 16)
    with running(engine) as gateway, contextlib.ExitStack() as stack:
        for _ in range(16):
            stack.enter_context(connected(gateway)).sendall(head(5) + b"{")
        eventually(lambda: gateway.state.bodies.in_use == 16)
        with connected(gateway) as plug:
            answer = read_all(plug)
        assert b" 503 " in answer and b"retry-after: " in answer
        assert error_in(answer)["code"] == "too_many_connections"


@pytest.mark.parametrize(
    "noise",
    [b"\x16\x03\x01\x02\x00" * 50, b"GET\r\n\r\n", b"\x00" * 5000, b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n"],
)
def test_bytes_that_are_not_http_are_400(gateway: Gateway, noise: bytes) -> None:
    with connected(gateway) as plug:
        plug.sendall(noise)
        answer = read_all(plug)
    assert b" 400 " in answer and error_in(answer)["code"] == "invalid_http"


def test_refused_connection_is_logged_with_its_address(gateway: Gateway, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "pedcxr.gateway")
    with connected(gateway) as plug:
        plug.sendall(b"\x00" * 100)
        read_all(plug)
    assert "connection from 127.0.0.1 refused: invalid_http" in caplog.text
    assert 'pedcxr_connections_refused_total{reason="invalid_http"}' in gateway.metrics()


PIPELINED = {
    "request": b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n" * 20,
    "upgrade": b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n",
    "headers over the limit": b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 20_000 + b"\r\n\r\n",
    "garbage": b"\x00garbage\r\n\r\n",
}


@pytest.mark.parametrize("behind", PIPELINED.values(), ids=PIPELINED)
def test_first_of_pipelined_requests_is_answered(gateway: Gateway, behind: bytes) -> None:
    """A client repeats the others, as after any closed connection."""
    body = json.dumps(BODY).encode()
    with connected(gateway) as plug:
        plug.sendall(head(len(body)) + body + behind)
        answer = read_all(plug)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert answer.startswith(b"HTTP/1.1 200 ") and b"connection: close" in answer.lower()


@pytest.mark.parametrize("behind", [b"", PIPELINED["request"]], ids=["alone", "pipelined"])
def test_client_that_leaves_is_noticed(gateway: Gateway, behind: bytes) -> None:
    gateway.engine.answer = Answer(first=60)
    body = json.dumps(BODY).encode()
    with connected(gateway) as plug:
        plug.sendall(head(len(body)) + body + behind)
        eventually(lambda: gateway.engine.chats)
    assert gateway.engine.chats[0].disconnected.wait(30)
    eventually(lambda: gateway.state.in_flight == 0)
    assert len(gateway.engine.requests) == 1


def test_half_closed_connection_gets_no_answer(gateway: Gateway) -> None:
    """The gateway treats the end of the client's data as a disconnect."""
    gateway.engine.answer = Answer(first=30)
    body = json.dumps(BODY).encode()
    with connected(gateway) as plug:
        plug.sendall(head(len(body), "Connection: close") + body)
        eventually(lambda: gateway.engine.chats)
        plug.shutdown(socket.SHUT_WR)
        assert read_all(plug) == b""
    assert gateway.engine.chats[0].disconnected.wait(30)


def test_compressed_body_is_refused_unread(gateway: Gateway) -> None:
    bomb = gzip.compress(b" " * 50_000_000)
    with gateway.client() as client:
        answer = client.post(CHAT, content=bomb, headers={"Content-Encoding": "gzip"})
    assert_openai_error(answer, 415, "unsupported_encoding")
    assert gateway.engine.chats == []


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 500_000,
        b'{"a":' * 100_000,
        b'{"messages":[],"messages":[]}',
        b'{"messages":[{"role":"user","content":"\\ud800"}]}',
        b'{"temperature":NaN}',
        b'{"temperature":1e99999}',
        b"\xef\xbb\xbf{}",
        "{}".encode("utf-16"),
        b'"data:image/',
        b'"data:image/png;base64,"' * 100,
        b'{"seed":' + b"1" * 100_000 + b"}",
        b"\xff" * 1000,
    ],
)
def test_invalid_bodies_are_400(gateway: Gateway, body: bytes) -> None:
    with gateway.client() as client:
        answer = client.post(CHAT, content=body)
    assert answer.status_code == 400
    assert_openai_error(answer, 400, answer.json()["error"]["code"])
    assert gateway.engine.chats == []


def test_paths_outside_the_routes_are_404(gateway: Gateway, tmp_path: Path) -> None:
    with gateway.client() as client:
        for path in ("/../../etc/passwd", "/%2e%2e/etc/passwd", "/v1/chat/completions/../../metrics", "/v1//models"):
            assert client.get(path).status_code == 404
