"""Request ids and errors of the shipped files of HAProxy and nginx, before a server that shows what it received."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from pedcxr_serve.gateway.http import access_log
from tests.deploy.test_fleet import BALANCERS, FLEET, local_fleet, need
from tests.support.http_server import Handler, serving
from tests.support.servers.gateway_server import CHAT, ERROR_KEYS, eventually

LONGEST = "a" * 64
HEAD = b"Host: localhost\r\nConnection: close\r\n"


class Replica(Handler):
    """Answers with the ids of the request; a POST is refused as by a full replica."""

    def do_GET(self) -> None:
        self.answer(json.dumps(self.headers.get_all("x-request-id")).encode())

    def do_POST(self) -> None:
        if "content-length" not in self.headers:
            self.rfile.read()  # until the balancer gives up
            return
        self.body()
        body = b'{"error":{"message":"full","type":"service_unavailable_error","param":null,"code":"queue_full"}}'
        self.send_response(503)
        for name, value in {"Retry-After": "7", "X-Request-Id": "other", "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


@dataclass
class Front:
    """A balancer before one `Replica`."""

    kind: str
    folder: Path
    balancer: Any

    def get(self, path: str, *ids: str) -> httpx.Response:
        url = self.balancer.url + path
        return httpx.get(url, headers=[("X-Request-Id", one) for one in ids], timeout=60, trust_env=False)

    def post(self, size: int) -> httpx.Response:
        return httpx.post(self.balancer.url + CHAT, content=b" " * size, timeout=60, trust_env=False)

    def raw(self, *parts: bytes) -> tuple[int, dict[str, str], bytes]:
        """Send bytes, each part after the balancer has read the one before; return status, headers and body."""
        address = urlsplit(self.balancer.url)
        with socket.create_connection((address.hostname, address.port), timeout=60) as plug:
            plug.sendall(parts[0])
            for part in parts[1:]:
                eventually(self._in_backend)
                plug.sendall(part)
            answer = b""
            while chunk := plug.recv(65_536):
                answer += chunk
        head, _, body = answer.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        return int(first.split()[1]), {line.partition(":")[0].lower(): line.partition(": ")[2] for line in lines}, body

    def _in_backend(self) -> bool:
        page = httpx.get(self.balancer.metrics_url, timeout=60, trust_env=False).text
        return self.kind == "nginx" or 'backend_current_sessions{proxy="replicas"} 1' in page

    def log_line(self, request_id: str) -> str:
        """Return the only line of the log with an id, as soon as it is there."""
        word = re.compile(rf".*(?<![\w.-]){re.escape(request_id)}(?![\w.-]).*")
        eventually(lambda: word.search(self.balancer.log.read_text()))
        [line] = word.findall(self.balancer.log.read_text())
        return str(line)


@pytest.fixture(scope="module", params=BALANCERS)
def front(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    need(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    balancer = local_fleet.Balancer(request.param, folder)
    with serving(Replica) as port:
        balancer.configure([SimpleNamespace(port=port)])
        try:
            balancer.start()
            yield Front(request.param, folder, balancer)
        finally:
            balancer.stop()


@pytest.mark.parametrize(
    ("ids", "kept"),
    [
        ((), False),
        (("mine-1._Z",), True),
        ((LONGEST,), True),
        ((LONGEST + "a",), False),
        (("",), False),
        (('abc,evil"} 200 fake',), False),
        (("abc,evil",), False),
        (("first", "evil"), True),
        (("no/", "evil"), False),
    ],
)
def test_log_answer_and_replica_have_one_id(front: Front, ids: tuple[str, ...], kept: bool) -> None:
    answer = front.get("/v1/models", *ids)
    [request_id] = answer.json()
    assert answer.headers.get_list("x-request-id") == [request_id]
    if len(ids) == 1:  # of several, the first one or a new id: it depends on the version of nginx
        assert (request_id == ids[0]) is kept
    assert request_id in ids[:1] or re.fullmatch("[0-9a-f-]{32,36}", request_id)
    line = front.log_line(request_id)
    assert " 200 " in line and "/v1/models" in line
    assert "evil" not in front.balancer.log.read_text()


def test_balancers_accept_the_ids_that_the_gateway_accepts() -> None:
    for name in local_fleet.FILES.values():
        assert f"^{access_log._REQUEST_ID.pattern}$" in (FLEET / name).read_text()


def test_answer_of_a_replica_keeps_its_headers_and_gets_the_id(front: Front) -> None:
    answer = front.post(100)
    assert (answer.status_code, answer.headers.get_list("retry-after")) == (503, ["7"])
    [request_id] = answer.headers.get_list("x-request-id")
    assert request_id != "other" and " 503 " in front.log_line(request_id)


@pytest.mark.parametrize("path", ["/nope?query", "/errors/full"])
def test_error_of_a_balancer_has_the_id_of_its_log(front: Front, path: str) -> None:
    answer = front.get(path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    line = front.log_line(answer.headers["x-request-id"])
    assert f"GET {path.partition('?')[0]}" in line and " 404 " in line


# Requests that no replica sees. HAProxy answers those marked True with HTML, whatever its configuration says.
_BAD: dict[str, tuple[list[bytes], bool]] = {
    "not HTTP": ([b"hello world\r\n\r\n"], True),
    "long path": ([b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\n" + HEAD + b"\r\n"], True),
    "long header": ([b"GET /health HTTP/1.1\r\n" + HEAD + b"X: " + b"a" * 40_000 + b"\r\n\r\n"], True),
    "unknown coding": ([f"POST {CHAT} HTTP/1.1\r\n".encode() + HEAD + b"Transfer-Encoding: x\r\n\r\n"], True),
    "bad length": ([f"POST {CHAT} HTTP/1.1\r\n".encode() + HEAD + b"Content-Length: x\r\n\r\n"], True),
    "CONNECT": ([b"CONNECT a:1 HTTP/1.1\r\n" + HEAD + b"\r\n"], True),
    "OPTIONS *": ([b"OPTIONS * HTTP/1.1\r\n" + HEAD + b"\r\n"], False),
    "bad chunk": (
        [f"POST {CHAT} HTTP/1.1\r\n".encode() + HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"x\r\n"],
        False,
    ),
    "large": ([f"POST {CHAT} HTTP/1.1\r\n".encode() + HEAD + b"Content-Length: 99999999\r\n\r\n"], False),
}


@pytest.mark.parametrize("name", _BAD)
def test_refused_request_gets_an_error_in_the_shape_of_the_api(front: Front, name: str) -> None:
    parts, plain = _BAD[name]
    status, headers, body = front.raw(*parts)
    assert status in (400, 404, 413, 414, 501)
    if front.kind == "haproxy" and plain:
        assert headers["content-type"] == "text/html"  # docs/fleet/scale-out.md says so
        return
    assert headers["content-type"] == "application/json"
    assert set(json.loads(body)["error"]) == ERROR_KEYS
    assert f" {status} " in front.log_line(headers["x-request-id"])


@pytest.mark.parametrize("request_line", ["TRACE /health HTTP/1.1", "GET /health HTTP/3.0"])
def test_methods_and_versions_that_nginx_refuses(front: Front, request_line: str) -> None:
    if front.kind != "nginx":
        pytest.skip("HAProxy passes them to a replica")
    status, headers, body = front.raw(request_line.encode() + b"\r\n" + HEAD + b"\r\n")
    assert (status in (405, 505), headers["content-type"]) == (True, "application/json")
    assert json.loads(body)["error"]["code"] == "bad_http"


def test_body_that_nginx_cannot_store_may_be_sent_again(front: Front) -> None:
    if front.kind != "nginx":
        pytest.skip("HAProxy stores no body")
    folder = front.folder / "client_body"
    folder.rename(front.folder / "away")  # as little can be written there as to a full tmpfs
    try:
        answer = front.post(2 << 20)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_room")
        assert (answer.headers["retry-after"], answer.headers["x-should-retry"]) == ("2", "true")
        assert "POST /v1/chat/completions" in front.log_line(answer.headers["x-request-id"])
    finally:
        (front.folder / "away").rename(folder)
    assert front.post(2 << 20).json()["error"]["code"] == "queue_full"
