"""A web page cannot use a server without API keys, by any name but one of this machine."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from pedcxr_serve.gateway.auth import api_keys
from pedcxr_serve.gateway.auth.tenant_store import TenantStore
from pedcxr_serve.gateway.http.host_check import is_local
from tests.support.servers.fake_engine import FakeEngine
from tests.support.servers.gateway_server import BODY, CHAT, Gateway, assert_openai_error, running


def status(gateway: Gateway, **headers: str) -> int:
    with gateway.client() as client:
        answer = client.post(CHAT, json=BODY, headers={name.replace("_", "-"): text for name, text in headers.items()})
    if answer.status_code != 200:
        assert_openai_error(answer, 403, "foreign_host")
    return answer.status_code


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, 200),
        ({"Host": "localhost:8000"}, 200),
        ({"Host": "evil.example"}, 403),  # DNS rebinding: the page's own name
        ({"Host": "evil.example:8000", "Origin": "http://evil.example:8000"}, 403),
        ({"Origin": "https://evil.example", "Content_Type": "text/plain"}, 403),  # a page that sends without CORS
        ({"Origin": "null"}, 403),
        ({"Origin": "http://localhost:3000"}, 200),
        # A proxy on this machine, whose client chose the Host header.
        ({"Host": "localhost", "X_Forwarded_For": "203.0.113.9"}, 403),
        ({"X_Forwarded_For": "127.0.0.1, 203.0.113.9"}, 403),
        ({"X_Forwarded_For": "203.0.113.9, 127.0.0.1"}, 403),
        ({"X_Real_IP": "2001:db8::9"}, 403),
        ({"Forwarded": "for=203.0.113.9"}, 403),
        ({"Via": "1.1 varnish"}, 403),
        ({"X_Forwarded_For": "unknown"}, 403),
        ({"X_Forwarded_For": "127.0.0.1, ::1", "X_Real_IP": "127.0.0.1"}, 200),
    ],
)
def test_requests_of_web_pages_are_refused(gateway: Gateway, headers: dict[str, str], expected: int) -> None:
    assert status(gateway, **headers) == expected
    assert len(gateway.engine.chats) == (expected == 200)


def test_metrics_and_usage_are_not_readable_by_web_pages(gateway: Gateway) -> None:
    for path in ("metrics", "usage"):
        url = gateway.listeners.metrics_url.replace("metrics", path)
        assert httpx.get(url).status_code == 200
        assert httpx.get(url, headers={"Host": "evil.example"}).status_code == 403


def test_allowed_hosts_and_origins(engine: FakeEngine) -> None:
    with running(engine, allowed_hosts=("proxy.example",), allowed_origins=("https://page.example",)) as gateway:
        assert status(gateway, Host="Proxy.example:443") == 200
        assert status(gateway, Host="proxy.example", Origin="https://proxy.example") == 200
        assert status(gateway, Origin="https://page.example") == 200
        assert status(gateway, Host="other.example") == 403
        assert status(gateway, Host="proxy.example", X_Forwarded_For="203.0.113.9") == 200
        assert status(gateway, Host="localhost", X_Forwarded_For="203.0.113.9") == 403
    with running(engine, allowed_hosts=("*",)) as gateway:
        assert status(gateway, Host="any.example") == 200


def test_server_with_keys_has_any_name(engine: FakeEngine, tmp_path: Path) -> None:
    path = tmp_path / "tenants.toml"
    key = api_keys.new(path, "team")
    with running(engine, tenants=TenantStore(path)) as gateway:
        assert status(gateway, Host="reports.example", Authorization=f"Bearer {key}") == 200


@pytest.mark.parametrize(
    ("authority", "local"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8:80", True),
        ("[::1]:8000", True),
        ("LOCALHOST", True),
        ("", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("evil.example@127.0.0.1", True),  # the part before @ is no host
        ("127.0.0.1@evil.example", False),
        ("10.0.0.1", False),
        ("[", False),
    ],
)
def test_names_of_this_machine(authority: str, local: bool) -> None:
    assert is_local(authority) is local
