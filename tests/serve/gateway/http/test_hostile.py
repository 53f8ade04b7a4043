"""Clients that mean no good, over real sockets: answered in OpenAI's shape or cut off, and nobody else harmed."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pedcxr_serve.gateway import upstream
from pedcxr_serve.gateway.auth import api_keys
from pedcxr_serve.gateway.auth.tenant_store import TenantStore
from pedcxr_serve.gateway.http import connection_limiter, protocol
from pedcxr_serve.gateway.request.body import BodyMemory
from tests.support.fake_engine import Answer, FakeEngine
from tests.support.gateway_server import BODY, CHAT, LIMIT, Gateway, assert_openai_error, eventually, running

CHUNKED = b"POST %b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" % CHAT.encode()


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeEngine]:
    with FakeEngine(uds=tmp_path_factory.mktemp("hostile") / "engine.sock") as engine:
        yield engine


@pytest.fixture(scope="module")
def shared(engine: FakeEngine) -> Iterator[Gateway]:
    with running(engine, bodies=BodyMemory(8 * LIMIT, timeout_s=1)) as gateway:
        yield gateway


@pytest.fixture
def gateway(shared: Gateway) -> Iterator[Gateway]:
    """Whatever a test did, an ordinary request is served after it, and nothing of it is left."""
    shared.engine.reset()
    yield shared
    shared.engine.answer = Answer()
    with shared.client() as client:
        assert client.post(CHAT, json=BODY).status_code == 200
    eventually(lambda: shared.state.bodies.in_use == 0 and shared.state.in_flight == 0)
    admission = shared.state.gate.admission
    eventually(lambda: (admission.running, admission.waiting) == (0, 0))


@contextmanager
def connected(gateway: Gateway) -> Iterator[socket.socket]:
    with socket.create_connection(gateway.address, timeout=10) as plug:
        yield plug


def heard(plug: socket.socket) -> bytes:
    """All until the server closes."""
    parts = []
    while True:
        try:
            part = plug.recv(65536)
        except ConnectionResetError:
            part = b""
        if not part:
            return b"".join(parts)
        parts.append(part)


def head(length: object, *more: str) -> bytes:
    lines = [f"POST {CHAT} HTTP/1.1", "Host: x", f"Content-Length: {length}", *more, "", ""]
    return "\r\n".join(lines).encode()


def trickle(plug: socket.socket, *, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        plug.sendall(b"x" * 1000)
        time.sleep(0.01)


def error_in(answer: bytes) -> Any:
    return json.loads(answer.rpartition(b"\r\n\r\n")[2])["error"]


def test_a_slow_body(gateway: Gateway) -> None:
    with connected(gateway) as plug:
        plug.sendall(head(1000) + b"{")
        began = time.monotonic()
        answer = heard(plug)
    assert b" 408 " in answer and error_in(answer)["code"] == "body_too_slow"
    assert time.monotonic() - began < 5


def test_a_body_without_end(gateway: Gateway) -> None:
    with connected(gateway) as plug:
        plug.sendall(CHUNKED)
        sent = 0
        with contextlib.suppress(OSError):
            while sent < 100 * LIMIT:
                plug.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")
                sent += 65536
    assert sent < 30 * LIMIT, "it is cut off"
    assert gateway.state.bodies.in_use <= LIMIT


def test_a_body_in_crumbs(gateway: Gateway) -> None:
    """A chunk for every byte is six bytes for one, and still one request."""
    body = json.dumps(BODY).encode() + b" " * 100_000
    crumbs = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    with connected(gateway) as plug:
        plug.sendall(CHUNKED.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") + crumbs)
        assert heard(plug).startswith(b"HTTP/1.1 200 ")


def test_a_chunk_whose_extension_has_no_end(gateway: Gateway) -> None:
    """Bytes that are no body count for nothing but time."""
    with connected(gateway) as plug:
        plug.sendall(CHUNKED + b"1;")
        with pytest.raises(OSError):  # noqa: PT011  (reset, or a broken pipe, by the system's timing)
            trickle(plug, seconds=10)


def test_half_a_body_and_gone(gateway: Gateway) -> None:
    for _ in range(50):
        with connected(gateway) as plug:
            plug.sendall(head(500_000) + b"x" * 1000)


def test_one_teams_bodies_leave_room_for_another(engine: FakeEngine, tmp_path: Path) -> None:
    path = tmp_path / "tenants.toml"
    greedy, other = api_keys.new(path, "greedy"), api_keys.new(path, "other")
    with running(engine, bodies=BodyMemory(2 * LIMIT, timeout_s=5), book=TenantStore(path)) as gateway:
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


def test_a_client_that_reads_a_little_now_and_then(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each sip comes in time; all of them together may not keep a place in the engine for ever."""
    monkeypatch.setattr(upstream, "_STALL_S", 1.0)
    monkeypatch.setattr(protocol, "STALL_S", 2.0)
    engine.reset()
    engine.answer = Answer(pieces=("x" * 100_000,) * 1000)
    with running(engine) as gateway, connected(gateway) as plug:
        with gateway.client() as client:
            assert client.get("/health/live").status_code == 200
        files = len(os.listdir("/proc/self/fd"))  # of which one is the gateway's end of the plug
        plug.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        body = json.dumps(BODY | {"stream": True}).encode()
        plug.sendall(head(len(body)) + body)
        end = time.monotonic() + 15
        while not (engine.chats and engine.chats[0].disconnected.wait(0.05)):
            assert time.monotonic() < end, "it is still there"
            plug.recv(65536)
        eventually(lambda: gateway.state.in_flight == 0)
        eventually(lambda: len(os.listdir("/proc/self/fd")) < files)
        assert 'pedcxr_rejections_total{reason="client_stalled"' in gateway.metrics()


def test_a_client_that_does_not_read(gateway: Gateway) -> None:
    """It is held by its own socket; leaving frees the engine."""
    gateway.engine.answer = Answer(pieces=("x" * 100_000,) * 200)
    with connected(gateway) as plug:
        plug.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        body = json.dumps(BODY | {"stream": True}).encode()
        plug.sendall(head(len(body)) + body)
        eventually(lambda: gateway.engine.chats)
        with gateway.client() as client:
            assert client.get("/health/ready").status_code == 200
    assert gateway.engine.chats[0].disconnected.wait(5)


@pytest.mark.parametrize(
    "made",
    [
        lambda: b"".join(b"X-%d: %s\r\n" % (number, b"y" * 1000) for number in range(1000)),
        lambda: b"".join(b"X-%d: y\r\n" % number for number in range(10_000)),
        lambda: b"X: " + b"y" * 1_000_000 + b"\r\n",
    ],
    ids=["large", "many", "long"],
)
def test_header_bombs(gateway: Gateway, made: Callable[[], bytes]) -> None:
    with connected(gateway) as plug:
        try:
            plug.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\n" + made() + b"\r\n")
        except OSError:
            return  # cut off while it wrote
        answer = heard(plug)
    assert answer == b"" or (b" 431 " in answer and error_in(answer)["code"] == "headers_too_large")


def test_a_long_address(gateway: Gateway) -> None:
    with connected(gateway) as plug:
        plug.sendall(b"GET /" + b"a" * 60_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b" 431 " in heard(plug)


def test_headers_that_never_end(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEADERS_S", 0.3)
    with running(engine) as gateway, connected(gateway) as silent, connected(gateway) as slow:
        slow.sendall(b"GET /health/live HTTP/1.1\r\nX: ")
        assert heard(silent) == heard(slow) == b""
        with gateway.client() as client:  # a connection kept open between requests is another matter
            client.get("/health/live")
            time.sleep(0.5)
            assert client.get("/health/live").status_code == 200


def test_an_answered_request_has_to_end(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """404 and 401 come before the body, of which the rest is thrown away, but not for ever."""
    monkeypatch.setattr(protocol, "HEADERS_S", 0.3)
    with running(engine) as gateway, connected(gateway) as plug:
        plug.sendall(head(1 << 30).replace(CHAT.encode(), b"/nowhere"))
        assert b" 404 " in plug.recv(65536)
        with pytest.raises(OSError):  # noqa: PT011  (reset, or a broken pipe, by the system's timing)
            trickle(plug, seconds=5)
        with gateway.client() as client:  # one that ends in time keeps its connection
            assert client.post("/nowhere", content=b"x" * 300_000).status_code == 404
            assert client.post(CHAT, json=BODY).status_code == 200


def test_the_connection_that_waits_longest_gives_way(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_limiter, "CONNECTIONS", 20)
    engine.answer = Answer(stall_after=1)
    with running(engine) as gateway, gateway.client() as client, connected(gateway) as streaming:
        body = json.dumps(BODY | {"stream": True}).encode()
        streaming.sendall(head(len(body)) + body)
        assert b" 200 " in streaming.recv(65536)
        with contextlib.ExitStack() as stack:
            plugs = [stack.enter_context(connected(gateway)) for _ in range(100)]
            assert client.get("/health/ready").status_code == 200
            assert all(heard(plug) == b"" for plug in plugs[:80]), "pushed out by the later ones"
            assert gateway.state.in_flight == 1, "but never a request in work"
            plugs[-1].sendall(head(5) + b"{")
            eventually(lambda: gateway.state.bodies.in_use == 1)


def test_more_requests_than_connections_are_told(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_limiter, "CONNECTIONS", 16)
    with running(engine) as gateway, contextlib.ExitStack() as stack:
        for _ in range(16):
            stack.enter_context(connected(gateway)).sendall(head(5) + b"{")
        eventually(lambda: gateway.state.bodies.in_use == 16)
        with connected(gateway) as plug:
            answer = heard(plug)
        assert b" 503 " in answer and b"retry-after: " in answer
        assert error_in(answer)["code"] == "too_many_connections"


@pytest.mark.parametrize(
    "noise",
    [b"\x16\x03\x01\x02\x00" * 50, b"GET\r\n\r\n", b"\x00" * 5000, b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n"],
)
def test_no_http(gateway: Gateway, noise: bytes) -> None:
    with connected(gateway) as plug:
        plug.sendall(noise)
        answer = heard(plug)
    assert answer == b"" or error_in(answer)["code"] == "invalid_http"


def test_pipelined_requests_and_garbage_behind_them(gateway: Gateway) -> None:
    with connected(gateway) as plug:
        plug.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n" * 20 + b"\x00garbage\r\n\r\n")
        answer = heard(plug)
    assert b"500" not in answer


def test_a_socket_half_closed_still_gets_its_answer_or_a_close(gateway: Gateway) -> None:
    body = json.dumps(BODY).encode()
    with connected(gateway) as plug:
        plug.sendall(head(len(body), "Connection: close") + body)
        plug.shutdown(socket.SHUT_WR)
        answer = heard(plug)
    assert answer == b"" or b" 200 " in answer


def test_compressed_bodies_are_refused_unread(gateway: Gateway) -> None:
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
def test_bodies_that_are_no_request(gateway: Gateway, body: bytes) -> None:
    with gateway.client() as client:
        answer = client.post(CHAT, content=body)
    assert answer.status_code == 400
    assert_openai_error(answer, 400, answer.json()["error"]["code"])
    assert gateway.engine.chats == []


def test_a_folder_of_files_is_not_served(gateway: Gateway, tmp_path: Path) -> None:
    with gateway.client() as client:
        for path in ("/../../etc/passwd", "/%2e%2e/etc/passwd", "/v1/chat/completions/../../metrics", "/v1//models"):
            assert client.get(path).status_code == 404
