"""Answers that are sent before their request has arrived: every client gets them, and no later request is misread."""

from __future__ import annotations

import http.client
import json
import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import pytest

from pedcxr_serve.gateway.auth import api_keys
from pedcxr_serve.gateway.auth.tenant_store import TenantStore
from pedcxr_serve.gateway.http import protocol
from pedcxr_serve.gateway.http.tls import CertificateStore
from pedcxr_serve.gateway.request import body as request_body
from tests.support.certificates import Files, make_certificate
from tests.support.servers.fake_engine import FakeEngine
from tests.support.servers.gateway_server import BODY, CHAT, Gateway, assert_openai_error, eventually, running

LARGE = b"x" * (5 << 20)
CHUNKS = b"%x\r\n%b\r\n0\r\n\r\n" % (len(LARGE), LARGE)
NEXT = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("early")


@pytest.fixture(scope="module")
def keys(folder: Path) -> dict[str, str]:
    """Keys by tenant, and an unknown one."""
    path = folder / "tenants.toml"
    path.write_text("[tenant.one]\n\n[tenant.limited]\nrequests_per_minute = 1\n")
    return {name: api_keys.new(path, name) for name in ("one", "limited")} | {"wrong": "wrong"}


@pytest.fixture(scope="module")
def files(folder: Path) -> Files:
    return make_certificate(folder)


@contextmanager
def gateway_of(folder: Path, keys: dict[str, str], tls: CertificateStore | None = None) -> Iterator[Gateway]:
    """Run a gateway at which the tenant ``limited`` has spent its request."""
    uds = folder / ("tls.sock" if tls else "engine.sock")
    with (
        FakeEngine(uds=uds) as engine,
        running(engine, tenants=TenantStore(folder / "tenants.toml"), tls=tls) as gateway,
    ):
        with gateway.client(keys["limited"]) as client:
            client.post(CHAT, json=BODY)
        yield gateway


@pytest.fixture(scope="module")
def gateway(folder: Path, keys: dict[str, str]) -> Iterator[Gateway]:
    with gateway_of(folder, keys) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def secured(folder: Path, keys: dict[str, str], files: Files) -> Iterator[Gateway]:
    with gateway_of(folder, keys, CertificateStore(files.certificate, files.key)) as gateway:
        yield gateway


@dataclass(frozen=True)
class Refused:
    """A request that is refused by its head, or by its size."""

    status: int
    code: str
    key: str = "one"
    start: str = f"POST {CHAT} HTTP/1.1"
    headers: tuple[str, ...] = ()
    stage: str = "ready"

    def head(self, keys: dict[str, str], *headers: str, length: int | None = len(LARGE)) -> bytes:
        framing = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
        lines = [self.start, "Host: localhost", f"Authorization: Bearer {keys[self.key]}", framing]
        return "\r\n".join((*lines, *self.headers, *headers, "", "")).encode()


WRONG_KEY = Refused(401, "invalid_api_key", key="wrong")
REFUSED = {
    "key": WRONG_KEY,
    "path": Refused(404, "not_found", start="POST /nowhere HTTP/1.1"),
    "method": Refused(404, "not_found", start=f"PUT {CHAT} HTTP/1.1"),
    "size": Refused(413, "body_too_large"),
    "encoding": Refused(415, "unsupported_encoding", headers=("Content-Encoding: gzip",)),
    "rate": Refused(429, "rate_limited", key="limited"),
    "stop": Refused(503, "not_ready", stage="stopping"),
    "HTTP/1.0": Refused(401, "invalid_api_key", key="wrong", start=f"POST {CHAT} HTTP/1.0"),
    "client closes": Refused(401, "invalid_api_key", key="wrong", headers=("Connection: close",)),
}


@contextmanager
def connected(gateway: Gateway, refused: Refused) -> Iterator[socket.socket]:
    """Connect while the gateway is in the stage that refuses the request."""
    gateway.state.set_ready(refused.stage == "ready", refused.stage)
    try:
        with socket.create_connection(gateway.address, timeout=20) as plug:
            yield plug
    finally:
        gateway.state.set_ready(True, "ready")


def open_connections(gateway: Gateway) -> float:
    return float(gateway.metrics().partition("\npedcxr_connections ")[2].partition("\n")[0])


def answer_of(plug: socket.socket) -> tuple[int, str | None, str]:
    """Read one answer; return its status, its header ``Connection`` and the code of its error."""
    with http.client.HTTPResponse(plug) as answer:
        answer.begin()
        error = json.loads(answer.read()).get("error", {})
        return answer.status, answer.headers["connection"], error.get("code", "")


@pytest.mark.parametrize(
    ("name", "length"),
    [(name, len(LARGE)) for name in REFUSED] + [(name, None) for name in REFUSED if name != "HTTP/1.0"],
)
def test_client_that_writes_all_before_it_reads_gets_the_answer(
    gateway: Gateway, keys: dict[str, str], name: str, length: int | None
) -> None:
    """The connection ends in order, without a reset, which could take the answer away."""
    refused = REFUSED[name]
    with connected(gateway, refused) as plug:
        plug.sendall(refused.head(keys, length=length) + (LARGE if length else CHUNKS))
        assert answer_of(plug) == (refused.status, "close", refused.code)
        assert plug.recv(1) == b""


@pytest.mark.parametrize("name", REFUSED)
def test_answer_comes_before_the_rest_of_the_body(gateway: Gateway, keys: dict[str, str], name: str) -> None:
    """The end of the answer's side is sent with it; the rest is still read, and the connection then closed."""
    refused, half = REFUSED[name], len(LARGE) // 2
    with connected(gateway, refused) as plug:
        plug.sendall(refused.head(keys) + LARGE[:half])
        assert answer_of(plug) == (refused.status, "close", refused.code)
        assert plug.recv(1) == b""
        eventually(lambda: open_connections(gateway) == 1)
        plug.sendall(LARGE[half:])
        eventually(lambda: open_connections(gateway) == 0)


def test_request_behind_a_refused_body_is_not_read(gateway: Gateway, keys: dict[str, str]) -> None:
    before, body = len(gateway.engine.chats), json.dumps(BODY).encode()
    served = Refused(200, "").head(keys, length=len(body)) + body
    with connected(gateway, WRONG_KEY) as plug:
        plug.sendall(WRONG_KEY.head(keys))
        assert answer_of(plug) == (401, "close", "invalid_api_key")
        plug.sendall(LARGE + served)
        assert plug.recv(1) == b""
    eventually(lambda: open_connections(gateway) == 0)
    assert len(gateway.engine.chats) == before


def test_body_that_is_not_valid_gets_no_second_answer(gateway: Gateway, keys: dict[str, str]) -> None:
    with connected(gateway, WRONG_KEY) as plug:
        plug.sendall(WRONG_KEY.head(keys, length=None))
        assert answer_of(plug) == (401, "close", "invalid_api_key")
        plug.sendall(b"no chunk\r\n")
        assert plug.recv(1) == b""
    eventually(lambda: open_connections(gateway) == 0)


@pytest.mark.parametrize(
    ("name", "length"),
    [(name, len(LARGE)) for name in REFUSED if name != "HTTP/1.0"]
    + [(name, 1000) for name in REFUSED if name not in ("HTTP/1.0", "size")],
)
def test_client_that_expects_100_is_not_asked_for_the_body(
    gateway: Gateway, keys: dict[str, str], name: str, length: int
) -> None:
    """It may leave the body out. Its next request on this connection would be read as the body (RFC 9110, 10.1.1)."""
    refused = REFUSED[name]
    with connected(gateway, refused) as plug:
        plug.sendall(refused.head(keys, "Expect: 100-continue", length=length))
        assert answer_of(plug) == (refused.status, "close", refused.code)
        assert plug.recv(1) == b""


def test_small_body_keeps_the_connection(
    gateway: Gateway, keys: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python's clients write head and body apart."""
    monkeypatch.setattr(request_body, "_SMALL_S", 60.0)
    unauthenticated = gateway.state.tenant_metrics.unauthenticated._value.get
    with connected(gateway, WRONG_KEY) as plug:
        for _ in range(3):
            before = unauthenticated()
            plug.sendall(WRONG_KEY.head(keys, length=1000))
            eventually(lambda before=before: unauthenticated() > before)
            assert not select.select([plug], [], [], 0)[0]
            plug.sendall(b"x" * 1000)
            assert answer_of(plug) == (401, None, "invalid_api_key")
        plug.sendall(NEXT)
        assert answer_of(plug) == (200, None, "")


def test_small_body_that_does_not_come_is_not_awaited_for_long(
    gateway: Gateway, keys: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_body, "_SMALL_S", 0.05)
    with connected(gateway, WRONG_KEY) as plug:
        plug.sendall(WRONG_KEY.head(keys, length=1000))
        assert answer_of(plug) == (401, "close", "invalid_api_key")


def test_body_that_is_not_wanted_has_a_limit(
    gateway: Gateway, keys: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "MAX_DISCARDED_BYTES", 1 << 20)
    sent = 0
    with connected(gateway, WRONG_KEY) as plug:
        plug.sendall(WRONG_KEY.head(keys, length=None))
        with suppress(OSError):
            while sent < 100 << 20:
                plug.sendall(CHUNKS[: -len(b"0\r\n\r\n")])
                sent += len(LARGE)
    assert sent < 100 << 20


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_clients_get_the_typed_error(
    gateway: Gateway, secured: Gateway, keys: dict[str, str], files: Files, scheme: str
) -> None:
    server = gateway if scheme == "http" else secured
    with httpx.Client(base_url=server.root, verify=files.trust(), trust_env=False, timeout=20) as client:
        for key, status, code in (("wrong", 401, "invalid_api_key"), ("limited", 429, "rate_limited")) * 3:
            headers = {"Authorization": f"Bearer {keys[key]}"}
            answer = client.post(CHAT, content=LARGE, headers=headers)
            assert_openai_error(answer, status, code)
            assert answer.headers["connection"] == "close"
            answer = client.post(CHAT, content=iter([LARGE]), headers=headers)
            assert_openai_error(answer, status, code)
        assert_openai_error(
            client.post(CHAT, content=LARGE, headers={"Authorization": f"Bearer {keys['one']}"}), 413, "body_too_large"
        )
        for key, error in (("wrong", openai.AuthenticationError), ("limited", openai.RateLimitError)):
            sdk = openai.OpenAI(base_url=server.listeners.url, api_key=keys[key], max_retries=0, http_client=client)
            for stream in (True, False):
                with pytest.raises(error):
                    sdk.chat.completions.create(
                        model="m", messages=[{"role": "user", "content": LARGE.decode()}], stream=stream
                    )
    eventually(lambda: open_connections(server) == 0)
