"""TLS of the public port over real sockets: checks at start, renewals, handshakes that never complete."""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

import pedcxr_client
from pedcxr_serve.errors import ConfigError
from pedcxr_serve.gateway.http import handshakes, tls
from pedcxr_serve.gateway.http.tls import CertificateStore
from tests.support import certificates
from tests.support.certificates import NOW, Files, make_certificate
from tests.support.servers.fake_engine import REPORT, TEXT, Answer, FakeEngine
from tests.support.servers.gateway_server import BODY, CHAT, Gateway, eventually, running


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[FakeEngine]:
    with FakeEngine(uds=tmp_path / "engine.sock") as engine:
        yield engine


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return make_certificate(tmp_path)


@contextlib.contextmanager
def secured(engine: FakeEngine, files: Files, **more: Any) -> Iterator[Gateway]:
    with running(engine, tls=CertificateStore(files.certificate, files.key), **more) as gateway:
        yield gateway


def client(gateway: Gateway, files: Files) -> httpx.Client:
    return httpx.Client(base_url=gateway.root, verify=files.trust(), trust_env=False, timeout=60)


def served_serial(gateway: Gateway) -> int:
    """Return the serial number of the certificate that a new connection gets."""
    return certificates.serial(ssl.get_server_certificate(gateway.address).encode())


def hello(gateway: Gateway, context: ssl.SSLContext) -> ssl.SSLSocket:
    return context.wrap_socket(socket.create_connection(gateway.address, timeout=60), server_hostname="localhost")


def test_report_over_https(engine: FakeEngine, files: Files) -> None:
    with secured(engine, files) as gateway, client(gateway, files) as ours:
        assert gateway.root.startswith("https://127.0.0.1:")
        assert ours.post(CHAT, json=BODY).json()["choices"][0]["message"]["content"] == TEXT
        assert TEXT.encode()[:5] in ours.post(CHAT, json=BODY | {"stream": True}).content
        assert gateway.listeners.metrics_url.startswith("http://127.0.0.1:")
        expiry = float(gateway.metrics().partition("\npedcxr_tls_expiry_seconds ")[2].partition("\n")[0])
        assert expiry == (NOW + timedelta(days=30)).timestamp()
        assert "pedcxr_tls_reload_failures_total 0.0" in gateway.metrics()
        with httpx.Client() as plain, pytest.raises(httpx.HTTPError):
            plain.get(f"http://localhost:{gateway.address[1]}/health/live")
        with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
            httpx.get(gateway.root, trust_env=False)


def test_client_trusts_ssl_cert_file(
    engine: FakeEngine, files: Files, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with secured(engine, files) as gateway:
        monkeypatch.setenv("SSL_CERT_FILE", str(files.certificate))
        with pedcxr_client.Client(gateway.listeners.url) as ours:
            assert [model.id for model in ours.openai.models.list()] == ["fake"]
        monkeypatch.delenv("SSL_CERT_FILE")
        with pedcxr_client.Client(gateway.listeners.url) as ours, pytest.raises(Exception, match="Connection error"):
            ours.openai.models.list()


def test_tls_1_2_or_later_and_http_1_1_only(engine: FakeEngine, files: Files) -> None:
    with secured(engine, files) as gateway:
        offering = files.trust()
        offering.set_alpn_protocols(["h2", "http/1.1"])
        with hello(gateway, offering) as plug:
            assert (plug.selected_alpn_protocol(), plug.version()) == ("http/1.1", "TLSv1.3")
        for version, good in ((ssl.TLSVersion.TLSv1_2, True), (ssl.TLSVersion.TLSv1_1, False)):
            old = files.trust()
            old.set_ciphers("ALL:@SECLEVEL=0")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                old.minimum_version = old.maximum_version = version
            with contextlib.nullcontext() if good else pytest.raises(ssl.SSLError), hello(gateway, old) as plug:
                assert plug.version() == "TLSv1.2"


@pytest.mark.slow
def test_renewed_pair_is_served_while_an_old_stream_continues(engine: FakeEngine, files: Files, tmp_path: Path) -> None:
    with secured(engine, files) as gateway, client(gateway, files) as ours:
        before = served_serial(gateway)
        engine.answer = Answer(gap=0.6)
        with ours.stream("POST", CHAT, json=BODY | {"stream": True}) as answer:
            lines = answer.iter_lines()
            next(lines)
            make_certificate(tmp_path)
            eventually(lambda: gateway.state.tls is not None and gateway.state.tls.reloads)
            engine.answer = Answer()
            now = served_serial(gateway)
            assert now == certificates.serial(files.certificate.read_bytes()) != before
            with client(gateway, files) as late:
                assert late.post(CHAT, json=BODY).status_code == 200
            rest = "\n".join(lines)
        assert REPORT[-1] in rest and "[DONE]" in rest
        assert ours.post(CHAT, json=BODY).status_code == 200, "the old connection still works"


def test_invalid_renewal_keeps_the_old_pair_and_is_logged(
    engine: FakeEngine, files: Files, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with secured(engine, files) as gateway:
        before = served_serial(gateway)
        other = tmp_path / "other"
        other.mkdir()
        files.certificate.write_bytes(make_certificate(other).certificate.read_bytes())
        eventually(lambda: "pedcxr_tls_reload_failures_total 1.0" in gateway.metrics())
        assert served_serial(gateway) == before
        assert "certificate not reloaded, the current one expires" in caplog.text
        assert "tls.key is not the key of" in caplog.text
        for broken in (b"", b"half a key"):
            files.key.write_bytes(broken)
            gateway.state.reload()
            assert served_serial(gateway) == before
        files.key.write_bytes((other / "tls.key").read_bytes())
        gateway.state.reload()
        assert served_serial(gateway) == certificates.serial(files.certificate.read_bytes()) != before
        assert "pedcxr_tls_reload_failures_total 3.0" in gateway.metrics()


def test_pair_that_was_replaced_outside_of_its_mount_is_reported(
    files: Files, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A container that mounts the files alone keeps the old ones."""
    with files.certificate.open() as mounted:  # as with a mount, this path leads to the old file after the replacement
        tls = CertificateStore(Path(f"/proc/self/fd/{mounted.fileno()}"), files.key)
        tls.reload_if_changed()
        assert not tls.broken
        files.certificate.unlink()
        for _ in range(3):
            tls.reload_if_changed()
    assert tls.broken
    assert caplog.text.count("mount its folder") == 1


def test_files_that_still_change_are_not_read(files: Files, tmp_path: Path) -> None:
    tls = CertificateStore(files.certificate, files.key)
    for number in range(3):
        files.key.write_bytes(b"x" * (number + 1))
        tls.reload_if_changed()
        tls.reload_if_changed() if number == 2 else None
    assert (tls.reloads, tls.failures._value.get()) == (0, 1.0), "read once they no longer change"  # type: ignore[attr-defined]


def test_incomplete_handshakes_do_not_affect_other_clients(
    engine: FakeEngine, files: Files, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(handshakes, "TIMEOUT_S", 4)  # on a busy machine, a handshake may take some seconds
    with secured(engine, files) as gateway, contextlib.ExitStack() as stack:
        slow = [stack.enter_context(socket.create_connection(gateway.address, timeout=60)) for _ in range(100)]
        for number, plug in enumerate(slow):
            plug.sendall((b"\x16\x03\x01\x02\x00\x01", b"")[number % 2])
        for noise in (b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 5000, b"\x16\x03\x01\xff\xff" + b"x" * 70_000):
            with socket.create_connection(gateway.address, timeout=60) as plug, contextlib.suppress(OSError):
                plug.sendall(noise)
                while plug.recv(65536):
                    pass
        with client(gateway, files) as ours:
            assert ours.post(CHAT, json=BODY).status_code == 200
        began = time.monotonic()
        for plug in slow:
            with contextlib.suppress(ConnectionResetError):
                while plug.recv(100):
                    pass
        assert time.monotonic() - began < 30, "closed by the time limit; reading would fail after 60 s"
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda files, folder: files.certificate.unlink(), "tls_cert: {0} cannot be read (No such file"),
        (lambda files, folder: files.key.unlink(), "tls_key: {1} cannot be read (No such file"),
        (lambda files, folder: files.certificate.write_text("x"), "tls_cert: {0} contains no PEM certificate"),
        (lambda files, folder: files.key.write_text("x"), "tls_key: {1} cannot be used with {0}"),
        (lambda files, folder: files.key.write_bytes(files.certificate.read_bytes()), "tls_key: {1} cannot be used"),
        (lambda files, folder: make_certificate(folder, passphrase=b"word"), "tls_key: {1} has a passphrase"),
        (lambda files, folder: make_certificate(folder, expires=NOW - timedelta(hours=1)), "tls_cert: {0} expired on"),
        (
            lambda files, folder: make_certificate(folder, begins=NOW + timedelta(hours=1)),
            "tls_cert: {0} is not valid before",
        ),
    ],
)
def test_invalid_pair_is_refused_by_setting_and_path(files: Files, tmp_path: Path, damage: Any, words: str) -> None:
    damage(files, tmp_path)
    with pytest.raises(ConfigError) as caught:
        CertificateStore(files.certificate, files.key)
    assert words.format(files.certificate, files.key) in str(caught.value)
    assert str(caught.value).startswith("gateway.tls_")


def test_command_refuses_an_invalid_pair_before_the_engine_starts(files: Files) -> None:
    files.key.write_text("x")
    command = [sys.executable, "-m", "pedcxr_serve", "start", "--port", "0", "--admin-port", "0"]
    command += ["--tls-cert", str(files.certificate), "--tls-key", str(files.key)]
    for words, message in (
        (command, f"gateway.tls_key: {files.key} cannot be used"),
        (command[:-2], "requires gateway.tls_key"),
    ):
        process = subprocess.run(words, capture_output=True, text=True, timeout=60)
        assert (process.returncode, message in process.stderr) == (2, True), process.stderr


def test_key_that_is_renewed_during_the_start(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_and_remove(certificate: Path, key: Path, now: datetime) -> tls.KeyPair:
        pair = load(certificate, key, now)
        key.unlink()
        return pair

    load = tls.load
    monkeypatch.setattr(tls, "load", load_and_remove)
    assert not CertificateStore(files.certificate, files.key).broken


def test_key_readable_by_others_is_logged(files: Files, caplog: pytest.LogCaptureFixture) -> None:
    CertificateStore(files.certificate, files.key)
    assert caplog.text == ""
    files.key.chmod(0o640)
    CertificateStore(files.certificate, files.key)
    assert "is readable by other users" in caplog.text
