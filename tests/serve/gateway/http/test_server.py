"""The HTTP server: supported versions of uvicorn, and the end of idle connections."""

from __future__ import annotations

import asyncio
import socket
import time
from pathlib import Path

import pytest
import uvicorn

from pedcxr_serve.config.settings import GatewayConfig
from pedcxr_serve.errors import ConfigError
from pedcxr_serve.gateway import app
from pedcxr_serve.gateway.http import server
from pedcxr_serve.gateway.http.listeners import listen
from pedcxr_serve.gateway.state import State
from tests.support.paths import ROOT
from tests.support.servers.fake_engine import FakeEngine
from tests.support.servers.gateway_server import running


def test_installed_uvicorn_is_supported() -> None:
    server.require_uvicorn(uvicorn.__version__)


@pytest.mark.parametrize("version", ["0.52.1", "0.55.0", "1.0.0", "1.40.1", "unknown"])
def test_other_versions_of_uvicorn_are_refused(version: str) -> None:
    with pytest.raises(ConfigError, match=r"uvicorn .* is not supported.*install 'uvicorn>=0\.53,<0\.55'") as caught:
        server.require_uvicorn(version)
    assert version in str(caught.value)


@pytest.mark.parametrize("version", ["0.53.0", "0.54.0", "0.54.0.post1"])
def test_supported_versions_of_uvicorn(version: str) -> None:
    server.require_uvicorn(version)


def test_versions_are_those_of_the_package_metadata() -> None:
    assert '"uvicorn>=0.53,<0.55"' in (ROOT / "pyproject.toml").read_text()


def test_server_does_not_start_with_another_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uvicorn, "__version__", "0.55.0")
    state = State(tmp_path / "engine.sock", demo=True, body_limit=1)

    async def serve() -> None:
        with listen(GatewayConfig(port=0, admin_port=0)) as listeners:
            async with app.engine_session(state) as session, server.serving(state, session, listeners):
                pass

    with pytest.raises(ConfigError, match=r"uvicorn 0\.55\.0 is not supported"):
        asyncio.run(serve())


def test_idle_connection_is_closed_after_the_keep_alive_time(tmp_path: Path) -> None:
    with (
        FakeEngine(uds=tmp_path / "engine.sock") as engine,
        running(engine, keep_alive_s=5) as gateway,
        socket.create_connection(gateway.address, timeout=60) as plug,
    ):
        start = time.monotonic()
        for _ in range(2):
            plug.sendall(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = b""
            while not answer.endswith(b"}"):
                part = plug.recv(65536)
                assert part, "the connection is kept between requests"
                answer += part
            assert b" 200 " in answer
        assert plug.recv(65536) == b""
        assert time.monotonic() - start >= 5
