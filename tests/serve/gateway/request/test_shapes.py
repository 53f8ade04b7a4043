"""Malformed HTTP, and requests that two parsers could read differently, byte by byte."""

from __future__ import annotations

import http.client
import json
import re
import socket
from collections.abc import Iterator

import pytest

from tests.support.servers.fake_engine import FakeEngine
from tests.support.servers.gateway_server import BODY, CHAT, Gateway, running, sent_messages

RAW = json.dumps(BODY).encode()
SIZE = str(len(RAW))
NEXT = "GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
LAST = "GET /health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
H2C = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAEAAEAAAAIAAAAB")


def post(*headers: str) -> bytes:
    return "\r\n".join([f"POST {CHAT} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode()


def get(*headers: str, target: str = "/health/live", version: str = "HTTP/1.1") -> bytes:
    return "\r\n".join([f"GET {target} {version}", *headers, "", ""]).encode("latin-1")


def chunked(data: bytes, extension: str = "", trailer: str = "") -> bytes:
    return b"%x%b\r\n%b\r\n0\r\n%b\r\n" % (len(data), extension.encode(), data, trailer.encode())


REFUSED = {
    "length and chunks": post("Content-Length: 5", "Transfer-Encoding: chunked") + b"0\r\n\r\n" + NEXT.encode(),
    "chunks and length": post("Transfer-Encoding: chunked", "Content-Length: 5") + b"0\r\n\r\n" + NEXT.encode(),
    "one length twice": post(f"Content-Length: {SIZE}", f"Content-Length: {SIZE}") + RAW,
    "two lengths": post(f"Content-Length: {SIZE}", "Content-Length: 1") + RAW,
    "a list of lengths": post(f"Content-Length: {SIZE}, {SIZE}") + RAW,
    "a length with a sign": post(f"Content-Length: +{SIZE}") + RAW,
    "a length in hex": post("Content-Length: 0x10") + RAW,
    "a length over 64 bits": post("Content-Length: 99999999999999999999999") + RAW,
    "a space before the colon": post(f"Content-Length : {SIZE}") + RAW,
    "coding identity": post("Transfer-Encoding: identity") + RAW,
    "coding xchunked": post("Transfer-Encoding: xchunked") + RAW,
    "coding gzip, chunked": post("Transfer-Encoding: gzip, chunked") + chunked(RAW),
    "coding chunked, identity": post("Transfer-Encoding: chunked, identity") + b"0\r\n\r\n" + NEXT.encode(),
    "coding twice": post("Transfer-Encoding: chunked", "Transfer-Encoding: chunked") + chunked(RAW),
    "coding on two lines": post("Transfer-Encoding: chun", " ked") + chunked(RAW),
    "a chunk of negative size": post("Transfer-Encoding: chunked") + b"-1\r\n" + RAW,
    "a chunk over 64 bits": post("Transfer-Encoding: chunked") + b"ffffffffffffffffff\r\n" + RAW,
    "a chunk longer than its size": post("Transfer-Encoding: chunked") + b"1\r\n" + RAW + b"\r\n0\r\n\r\n",
    "a chunk's line ended by LF": post("Transfer-Encoding: chunked") + chunked(RAW).replace(b"\r\n", b"\n"),
    "LF in a chunk's extension": post("Transfer-Encoding: chunked") + chunked(RAW, ";a\nb"),
    "two hosts": get("Host: localhost", "Host: y"),
    "two keys": post("Authorization: Bearer a", "Authorization: Bearer b", f"Content-Length: {SIZE}") + RAW,
    "two encodings": post("Content-Encoding: identity", "Content-Encoding: gzip", f"Content-Length: {SIZE}") + RAW,
    "lines ended by LF": get("Host: localhost").replace(b"\r\n", b"\n"),
    "a header on two lines": get("Host: localhost", "A: b", " c"),
    "NUL in a header": get("Host: localhost", "A: b\0c"),
    "CR in a header": get("Host: localhost", "A: b\rC: d"),
    "an address of bytes": get("Host: localhost", target="/\xff\xfe"),
    "an incomplete address": get("Host: localhost", target="http://["),
    "a tunnel": b"CONNECT a:1 HTTP/1.1\r\nHost: localhost\r\n\r\n" + NEXT.encode(),
    "HTTP/2 without an upgrade": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(50),
    "HTTP/3.0": get("Host: localhost", version="HTTP/3.0"),
    "a method in lower case": get("Host: localhost").replace(b"GET", b"get"),
}
SERVED = {
    "chunks": post("Transfer-Encoding: chunked") + chunked(RAW),
    "chunks with extensions": post("Transfer-Encoding: chunked") + chunked(RAW, ";a=b"),
    "a tab before the coding": post("Transfer-Encoding:\tchunked") + chunked(RAW),
    "an encoding in a trailer": post("Transfer-Encoding: chunked") + chunked(RAW, "", "Content-Encoding: gzip\r\n"),
    "an extra line end": post(f"Content-Length: {SIZE}") + RAW + b"\r\n",
    "an upgrade to HTTP/2, as Java sends it": post(*H2C, f"Content-Length: {SIZE}") + RAW,
    "an upgrade to HTTP/2, in chunks": post(*H2C, "Transfer-Encoding: chunked") + chunked(RAW),
    "an upgrade to WebSocket": get(
        "Host: localhost", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: a"
    ),
    "an unknown expectation": post("Expect: 200-maybe", f"Content-Length: {SIZE}") + RAW,
    "a body with GET": get("Host: localhost", "Content-Length: 5") + b"GET /",
}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with FakeEngine(uds=tmp_path_factory.mktemp("shapes") / "engine.sock") as engine, running(engine) as gateway:
        yield gateway


def exchange(gateway: Gateway, request: bytes) -> bytes:
    with socket.create_connection(gateway.address, timeout=60) as plug:
        plug.sendall(request)
        parts = []
        while part := plug.recv(65536):
            parts.append(part)
        return b"".join(parts)


def statuses(answer: bytes) -> list[bytes]:
    return re.findall(rb"HTTP/1\.1 (\d+) ", answer)


@pytest.mark.parametrize("name", REFUSED)
def test_ambiguous_requests_get_one_400_and_a_closed_connection(gateway: Gateway, name: str) -> None:
    before = len(gateway.engine.chats)
    answer = exchange(gateway, REFUSED[name])
    head, _, body = answer.partition(b"\r\n\r\n")
    assert statuses(answer) == [b"400"]
    assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
    assert json.loads(body)["error"]["code"] == "invalid_http"
    assert b"\nx-request-id: " in head and b"\nconnection: close" in head
    assert len(gateway.engine.chats) == before


@pytest.mark.parametrize("name", SERVED)
def test_unusual_but_valid_requests_are_served_on_an_open_connection(gateway: Gateway, name: str) -> None:
    with socket.create_connection(gateway.address, timeout=60) as plug:
        plug.sendall(SERVED[name])
        assert first_status(plug) == 200
        plug.sendall(LAST.encode())
        assert first_status(plug) == 200
        assert plug.recv(1) == b""


def first_status(plug: socket.socket) -> int:
    """Read one response and return its status."""
    with http.client.HTTPResponse(plug) as response:
        response.begin()
        response.read()
        return response.status


def test_fragmentation_does_not_matter(gateway: Gateway) -> None:
    """The gateway rebuilds a request for an HTTP/2 upgrade; the body stays whole wherever it is split."""
    request = SERVED["an upgrade to HTTP/2, as Java sends it"]
    for size in (1, 7, 150, 190):
        with socket.create_connection(gateway.address, timeout=60) as plug:
            plug.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for start in range(0, len(request), size):
                plug.sendall(request[start : start + size])
            assert first_status(plug) == 200, size
        assert sent_messages(gateway.engine.chats[-1]) == BODY["messages"]


@pytest.mark.parametrize("behind", [b"\0\1garbage", NEXT.encode(), post(f"Content-Length: {SIZE}") + RAW])
def test_connection_closes_after_a_request_with_something_behind_it(gateway: Gateway, behind: bytes) -> None:
    before = len(gateway.engine.chats)
    answer = exchange(gateway, post(f"Content-Length: {SIZE}") + RAW + behind)
    assert statuses(answer) == [b"200"] and b"\nconnection: close" in answer.partition(b"\r\n\r\n")[0].lower()
    assert len(gateway.engine.chats) == before + 1
