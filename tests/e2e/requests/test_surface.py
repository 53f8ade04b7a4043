"""Every route that the running vLLM logs is requested through the gateway."""

from __future__ import annotations

import http.client
import re
import socket

import httpx
import pytest

from tests.e2e.conftest import Teams
from tests.support.servers.gateway_server import assert_openai_error
from tests.support.servers.live_server import family, listening

pytestmark = pytest.mark.slow

SERVED = {
    ("POST", "/v1/chat/completions"),
    *((method, "/v1/models") for method in ("GET", "HEAD")),
    *((method, path) for method in ("GET", "HEAD") for path in ("/health", "/health/live", "/health/ready")),
}
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
MOUNTED = "/metrics"  # vLLM's list leaves out mounted apps; this is its only one (instrumentator/metrics.py)


@pytest.fixture(scope="module")
def routes(shared_by_two: Teams) -> set[str]:
    """Return the paths that vLLM logs at start-up."""
    log = shared_by_two.server.log.read_text()
    assert "Available routes are" in log
    return {*re.findall(r"Route: (/\S*), (?:Methods|Endpoint):", log), MOUNTED}


def test_the_route_list_is_complete(routes: set[str], engine: httpx.Client) -> None:
    """A known path answers 405 to an unknown method; an unknown path answers 404."""
    assert len(routes) > 15
    assert {"/v1/chat/completions", "/v1/completions", "/tokenize", "/v1/models", "/health", "/ping"} <= routes
    assert engine.request("QUERY", "/no-such-route").status_code == 404
    missing = [path for path in routes if "{" not in path and engine.request("QUERY", path).status_code == 404]
    assert missing == []


def test_all_other_routes_are_404(shared_by_two: Teams, routes: set[str]) -> None:
    """The key is valid, so that only the route can be the reason."""
    with shared_by_two.client("ward") as client:
        for path in sorted(routes | {"/", "/docs", "/openapi.json", "/redoc", "/v1", "/usage", "/shutdown"}):
            path = re.sub(r"\{[^}]*\}", "x", path)
            for method in METHODS:
                answer = client.request(method, path, json={} if method == "POST" else None)
                if (method, path) in SERVED:
                    assert answer.status_code == (400 if method == "POST" else 200), (method, path)
                elif method == "HEAD":
                    assert answer.status_code == 404, path
                else:
                    assert_openai_error(answer, 404, "not_found")


def test_every_route_but_health_requires_a_key(shared_by_two: Teams, routes: set[str]) -> None:
    with httpx.Client(base_url=shared_by_two.server.root, timeout=30, trust_env=False) as client:
        for path in sorted(routes):
            path = re.sub(r"\{[^}]*\}", "x", path)
            for method in METHODS:
                answer = client.request(method, path, json={} if method == "POST" else None)
                public = (method, path) in SERVED and path.startswith("/health")
                expected = 200 if public else 401 if (method, path) in SERVED else 404
                assert answer.status_code == expected, (method, path)


SPELLINGS = [
    "//tokenize",
    "/v1//completions",
    "/V1/COMPLETIONS",
    "/v1/%63ompletions",
    "/%74okenize",
    "/%2574okenize",
    "/v1%2fcompletions",
    "/tokenize/",
    "/tokenize%00",
    "/tokenize%20",
    "/tokenize;x=1",
    "/tokenize#x",
    "/./tokenize",
    "/health/../tokenize",
    "/health/%2e%2e/tokenize",
    "/health/..%2ftokenize",
    "/v1/models/../completions",
    "/v1/chat/completions/../../../tokenize",
    "/v1/chat/completions/render",
    "/v1/chat/completions/batch",
    "\\tokenize",
    "/health\\..\\tokenize",
    "http://engine/tokenize",
    "http://127.0.0.1/metrics",
    "http://localhost:8001/usage",
    "*",
    "/v1/chat/completions/",
    "/v1/chat/completions//",
    "/V1/chat/completions",
    "/health/",
]


@pytest.mark.parametrize("target", SPELLINGS)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_alternative_spellings_of_routes_are_refused(shared_by_two: Teams, method: str, target: str) -> None:
    """Targets are sent byte for byte, without a library's normalisation; 400 means malformed HTTP."""
    assert status(shared_by_two, method, target, key=True) in (400, 404)
    refused = (400, 401, 404) if target.startswith("/v1/models/") else (400, 404)  # the name of a model needs a key
    assert status(shared_by_two, method, target, key=False) in refused


@pytest.mark.parametrize(
    "target", ["/v1/chat/%63ompletions", "/v1%2fchat/completions", "http://engine/v1/chat/completions"]
)
def test_alternative_spellings_of_served_routes_require_a_key(shared_by_two: Teams, target: str) -> None:
    assert status(shared_by_two, "POST", target, key=False) == 401


@pytest.mark.parametrize(
    "header",
    [
        "Host: engine",
        "Host: 127.0.0.1:8001",
        "X-Original-URL: /tokenize",
        "X-Rewrite-URL: /tokenize",
        "X-HTTP-Method-Override: DELETE",
        "X-Forwarded-Prefix: /tokenize",
        "X-Forwarded-Host: engine",
        "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: eA==\r\nSec-WebSocket-Version: 13",
        "Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AA",
    ],
)
def test_headers_do_not_select_a_route(shared_by_two: Teams, header: str) -> None:
    assert status(shared_by_two, "GET", "/v1/models", key=False, header=header) == 401
    assert status(shared_by_two, "GET", "/v1/models", key=True, header=header) == 200
    assert status(shared_by_two, "GET", "/v1/realtime", key=True, header=header) == 404


@pytest.mark.parametrize("method", ["CONNECT", "TRACE"])
def test_proxy_methods_are_refused(shared_by_two: Teams, method: str) -> None:
    for target in ("engine:80", "/tokenize", "http://engine/tokenize"):
        assert status(shared_by_two, method, target, key=True) in (400, 404)


def test_the_admin_port_serves_two_pages(shared_by_two: Teams, routes: set[str]) -> None:
    admin = shared_by_two.server.metrics_url.removesuffix("/metrics")
    with httpx.Client(base_url=admin, timeout=30, trust_env=False) as client:
        assert client.get("/usage").status_code == 200
        for path in sorted(routes - {MOUNTED}):
            assert {client.get(path).status_code, client.post(path, json={}).status_code} == {404}, path


def test_listening_sockets(shared_by_two: Teams) -> None:
    """The launcher listens on two ports; of the engine only gloo (torch.distributed), on loopback, without HTTP."""
    launcher = shared_by_two.server.process.pid
    ours = {int(address.rpartition(":")[2], 16) for address in listening({launcher})}
    assert ours == {
        int(url.removesuffix("/metrics").rpartition(":")[2])
        for url in (shared_by_two.server.root, shared_by_two.server.metrics_url)
    }
    for address in listening(family(launcher) - {launcher}):
        host, _, port = address.partition(":")
        assert host == "0100007F", f"listens beyond loopback: {address}"
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://127.0.0.1:{int(port, 16)}/health", timeout=0.3)


def status(teams: Teams, method: str, target: str, *, key: bool, header: str = "") -> int:
    """Send the target unchanged and return the status."""
    host, port = teams.server.root.removeprefix("http://").split(":")
    lines = [f"{method} {target} HTTP/1.1", "Content-Length: 0"]
    lines += [header] if header.startswith("Host:") else ["Host: localhost", *filter(None, [header])]
    lines += [f"Authorization: Bearer {teams.keys['ward']}"] if key else []
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        answer = http.client.HTTPResponse(connection, method=method)
        answer.begin()
        if answer.status not in (200, 204):
            assert b'"error"' in answer.read()
        return answer.status
