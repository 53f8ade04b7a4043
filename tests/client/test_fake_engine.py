"""The fake engine that other tests use."""

from __future__ import annotations

import http.client
import json
import socket

import pytest

from tests.support.servers.fake_engine import TEXT, Answer, FakeEngine


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=60)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self.path)


def send(connection: http.client.HTTPConnection, method: str, path: str, body: object = None) -> tuple[int, bytes]:
    connection.request(method, path, json.dumps(body) if body else None)
    response = connection.getresponse()
    return response.status, response.read()


def test_it_serves_a_unix_socket_and_removes_it(tmp_path):
    path = tmp_path / "engine.sock"
    with FakeEngine(uds=path) as engine:
        connection = UnixConnection(str(path))
        assert send(connection, "GET", "/health") == (200, b"")
        status, body = send(connection, "POST", "/v1/chat/completions", {"model": "m"})
        assert (status, json.loads(body)["choices"][0]["message"]["content"]) == (200, TEXT)
        status, body = send(connection, "POST", "/v1/chat/completions", {"model": "m", "stream": True})
        assert (status, body.count(b"data: "), body[-8:]) == (200, 8, b"[DONE]\n\n")
        assert b"fake_chat_requests_total 2" in send(connection, "GET", "/metrics")[1]
        assert send(connection, "GET", "/nothing")[0] == 404
        connection.close()
        assert engine.chats[0].answered.wait(30)
        assert not engine.chats[0].disconnected.is_set()
    assert not path.exists()


def test_cut_after_breaks_the_connection(engine):
    engine.answer = Answer(cut_after=1)
    host, port = engine.url.removeprefix("http://").removesuffix("/v1").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=60)
    with pytest.raises(http.client.IncompleteRead):
        send(connection, "POST", "/v1/chat/completions", {"model": "m", "stream": True})
    connection.close()
