"""Metrics of the gateway's process, over real sockets."""

from __future__ import annotations

import re
import socket
import time
from importlib.metadata import version
from pathlib import Path

from pedcxr_serve.gateway.accounting import audit
from pedcxr_serve.gateway.auth import api_keys
from pedcxr_serve.gateway.auth.tenant_store import TenantStore
from pedcxr_serve.gateway.http.tls import CertificateStore
from pedcxr_serve.gateway.scheduler import FairQueue, FairScheduler
from tests.support.certificates import make_certificate
from tests.support.servers.fake_engine import FakeEngine
from tests.support.servers.gateway_server import BODY, CHAT, Gateway, eventually, running


def value(gateway: Gateway, name: str) -> float:
    match = re.search(rf"^{re.escape(name)} (\S+)$", gateway.metrics(), re.MULTILINE)
    assert match is not None, f"{name} is not exported"
    return float(match[1])


def test_page_has_process_build_slots_and_lag(engine: FakeEngine) -> None:
    scheduler = FairScheduler(FairQueue(30, max_waiting=9, max_wait_s=9, spare=2))
    with running(engine, scheduler=scheduler) as gateway:
        assert value(gateway, "pedcxr_slots") == 32
        assert value(gateway, "pedcxr_gateway_process_resident_memory_bytes") > 1 << 20
        assert value(gateway, "pedcxr_gateway_process_open_fds") > 3
        assert (
            'pedcxr_build_info{python="' in gateway.metrics() and f'version="{version("pedcxr")}"' in gateway.metrics()
        )
        eventually(lambda: value(gateway, "pedcxr_event_loop_lag_seconds_count") >= 2)
        names = re.findall(r"^# TYPE (\S+)", gateway.metrics(), re.MULTILINE)
        assert len(names) == len(set(names)), "the engine's page has no metric of the same name"


def test_connections_and_bodies(engine: FakeEngine) -> None:
    with running(engine) as gateway:
        with socket.create_connection(gateway.address) as plug:
            plug.sendall(
                f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999\r\n\r\n".encode() + b"x" * 500
            )
            eventually(lambda: value(gateway, "pedcxr_request_body_bytes") == 500)
            assert value(gateway, "pedcxr_connections") == 1
        eventually(lambda: value(gateway, "pedcxr_connections") == 0)
        assert value(gateway, "pedcxr_request_body_bytes") == 0


def test_handshakes_in_progress(engine: FakeEngine, tmp_path: Path) -> None:
    files = make_certificate(tmp_path)
    with running(engine, tls=CertificateStore(files.certificate, files.key)) as gateway:
        with socket.create_connection(gateway.address):
            eventually(lambda: value(gateway, "pedcxr_tls_handshakes_in_progress") == 1)
        eventually(lambda: value(gateway, "pedcxr_tls_handshakes_in_progress") == 0)
        eventually(lambda: value(gateway, 'pedcxr_connections_refused_total{reason="handshake_failed"}') == 1)


def test_failed_reload_is_shown_until_one_succeeds(engine: FakeEngine, tmp_path: Path) -> None:
    files, tenants = make_certificate(tmp_path), tmp_path / "tenants.toml"
    api_keys.new(tenants, "team")
    begin, text = time.time(), tenants.read_text()
    tls = CertificateStore(files.certificate, files.key)
    with running(engine, tls=tls, tenants=TenantStore(tenants)) as gateway:
        for file, path, good in (("tenants", tenants, text), ("certificate", files.key, files.key.read_text())):
            successful, read_at = (
                f'pedcxr_last_reload_{name}{{file="{file}"}}' for name in ("successful", "timestamp_seconds")
            )
            assert value(gateway, successful) == 1
            before = value(gateway, read_at)
            assert before >= begin - 1
            path.write_text("broken")
            gateway.state.reload()
            assert (value(gateway, successful), value(gateway, read_at)) == (0, before)
            path.write_text(good)
            gateway.state.reload()
            assert value(gateway, successful) == 1 and value(gateway, read_at) > before
        gateway.state.tenants.reload()


def test_write_failures_and_the_next_audit_line(engine: FakeEngine, tmp_path: Path) -> None:
    log = audit.AuditLog(tmp_path / "audit.jsonl", b"k" * 32)
    with running(engine, audit=log) as gateway, gateway.client() as client:
        client.post(CHAT, json=BODY)
        eventually(lambda: value(gateway, "pedcxr_audit_next_seq") == 1)
        for failures in (0, 2, 2, 3):
            log.failures = failures
            for name in ("pedcxr_write_failures_total", "pedcxr_writes_failed"):
                assert value(gateway, f'{name}{{file="audit"}}') == failures
    log.close()


def test_rest_of_the_budget(engine: FakeEngine, tmp_path: Path) -> None:
    path = tmp_path / "tenants.toml"
    path.write_text("[tenant.a]\ntokens_per_day = 1000\n[tenant.b]\n")
    key = api_keys.new(path, "a")
    with running(engine, tenants=TenantStore(path)) as gateway, gateway.client(key) as client:
        assert value(gateway, 'pedcxr_tenant_tokens_left{tenant="a"}') == 1000
        client.post(CHAT, json=BODY)
        eventually(lambda: value(gateway, 'pedcxr_tenant_tokens_left{tenant="a"}') == 1000 - 306)
        assert 'pedcxr_tenant_tokens_left{tenant="b"}' not in gateway.metrics()
