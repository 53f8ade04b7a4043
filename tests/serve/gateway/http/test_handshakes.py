"""Limits on TLS handshakes: a flood from one address or from many leaves other clients served."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import resource
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from pedcxr_serve.gateway.http import handshakes
from pedcxr_serve.gateway.http.handshakes import HandshakeServer, network
from tests.support.certificates import Files, make_certificate
from tests.support.paths import ROOT
from tests.support.servers.gateway_server import BODY, CHAT

FILES_LIMIT = 600
FLOOD = 1_700
_SERVER = """
import resource, sys, threading
from pathlib import Path
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[2]), int(sys.argv[2])))
from pedcxr_serve.gateway.http import handshakes
from pedcxr_serve.gateway.http.tls import CertificateStore
from tests.support.servers.fake_engine import FakeEngine
from tests.support.servers.gateway_server import running
folder = Path(sys.argv[1])
handshakes.TIMEOUT_S = 60  # only the limits end the flood, and no busy machine ends the handshake of the client
tls = CertificateStore(folder / "tls.crt", folder / "tls.key")
with FakeEngine(uds=folder / "engine.sock") as engine, running(engine, tls=tls) as gateway:
    print(gateway.address[1], gateway.listeners.metrics_url, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def server(files: Files) -> Iterator[tuple[int, str]]:
    """A gateway in a process with 600 open files; yields its port and the URL of its metrics."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = FLOOD + 500  # of this process
    if soft < needed:
        if hard < needed:
            pytest.skip(f"needs {needed} open files")
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "client", ROOT / "serve")))}
    command = [sys.executable, "-c", _SERVER, str(files.certificate.parent), str(FILES_LIMIT)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        port, url = process.stdout.readline().split()
        yield int(port), url
    finally:
        process.communicate("")


def ask(port: int, files: Files) -> int:
    """Send a request for a report on a new connection from 127.0.0.1, and return its status."""
    with contextlib.closing(http.client.HTTPSConnection("127.0.0.1", port, timeout=60, context=files.trust())) as line:
        line.request("POST", CHAT, json.dumps(BODY))
        return line.getresponse().status


def refused(url: str, reason: str) -> float:
    line = http.client.HTTPConnection(url.split("/")[2], timeout=60)
    with contextlib.closing(line):
        line.request("GET", "/metrics")
        page = line.getresponse().read().decode()
    _, _, rest = page.partition(f'pedcxr_connections_refused_total{{reason="{reason}"}} ')
    return float(rest.partition("\n")[0] or 0)


@pytest.mark.parametrize("addresses", [1, 200], ids=["one address", "many addresses"])
def test_flood_of_silent_connections_leaves_others_served(
    server: tuple[int, str], files: Files, addresses: int
) -> None:
    """The flood is over the limit on open files of the server: 600, two thirds of them for connections."""
    port, url = server
    statuses, start = [], time.monotonic()
    with contextlib.ExitStack() as stack:
        for number in range(FLOOD):
            plug = stack.enter_context(socket.socket())
            plug.bind((f"127.1.{number % addresses // 100}.{number % addresses % 100 + 1}", 0))
            plug.settimeout(60)
            with contextlib.suppress(ConnectionResetError, BrokenPipeError):  # some are reset at once
                plug.connect(("127.0.0.1", port))
                if number % 2:
                    plug.sendall(b"\x16\x03\x01\x02\x00\x01")  # the start of a ClientHello
            if number % 170 == 169:
                statuses.append(ask(port, files))
    assert statuses == [200] * 10
    assert refused(url, "handshake_limit") > 100
    if addresses == 1:
        admitted = handshakes.BURST_PER_ADDRESS + handshakes.RATE_PER_ADDRESS * (time.monotonic() - start)
        assert refused(url, "handshake_rate") >= FLOOD - admitted - 1


def test_rate_of_an_address_is_limited() -> None:
    address = handshakes._Address(updated_at=0.0)
    assert [handshakes._take(address, 0.0) for _ in range(401)] == [True] * 400 + [False]
    assert [handshakes._take(address, 0.03) for _ in range(4)] == [True] * 3 + [False]
    assert sum(handshakes._take(address, 1e6) for _ in range(500)) == 400, "a pause earns no more than a burst"


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
    ],
)
def test_addresses_that_count_together(host: str, expected: str) -> None:
    assert network(host) == expected


def test_accept_pauses_while_no_file_is_free(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the loop would turn without end on a socket that stays readable."""
    monkeypatch.setattr(handshakes, "_NO_FILES_PAUSE_S", 0.01)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)
    reasons: list[str] = []

    class Bound(socket.socket):
        failures = 3

        def accept(self) -> tuple[socket.socket, object]:
            if self.failures:
                self.failures -= 1
                raise OSError(24, "Too many open files")
            return super().accept()

    async def work() -> bytes:
        class Echo(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                assert isinstance(transport, asyncio.WriteTransport)
                transport.write(b"made")

        with Bound() as bound:
            bound.bind(("127.0.0.1", 0))
            bound.listen()
            server = HandshakeServer(bound, Echo, context, limit=9, refused=reasons.append)
            _, port = bound.getsockname()
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=files.trust())
            data = await reader.readexactly(4)
            assert len(server) == 0
            writer.close()
            await writer.wait_closed()
            server.close()
            server.close()
            await server.wait_closed()
            return data

    assert asyncio.run(work()) == b"made"
    assert reasons == ["no_files"] * 3
