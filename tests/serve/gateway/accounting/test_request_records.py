"""What log, audit log and usage say about a request: its outcome, its key, and the client's address."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pedcxr_serve.gateway.accounting import audit
from pedcxr_serve.gateway.auth import api_keys, tenants
from pedcxr_serve.gateway.auth.tenant_store import TenantStore
from pedcxr_serve.gateway.scheduler import FairQueue, FairScheduler
from tests.support.servers.fake_engine import REPORT, Answer, FakeEngine
from tests.support.servers.gateway_server import BODY, CHAT, eventually, running


class Team(NamedTuple):
    """A file with one tenant, and its key."""

    tenants: TenantStore
    key: str


@pytest.fixture
def team(tmp_path: Path) -> Team:
    path = tmp_path / "tenants.toml"
    key = api_keys.new(path, "team")
    return Team(TenantStore(path), key)


def test_request_line_has_outcome_tokens_key_and_address(
    engine: FakeEngine, team: Team, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "pedcxr.gateway")
    with running(engine, tenants=team.tenants) as gateway, gateway.client(team.key) as client:
        client.post(CHAT, json=BODY | {"stream": True}, headers={"X-Request-Id": "r-1"})
        client.post(CHAT, content=b"{", headers={"X-Request-Id": "r-2"})
        eventually(lambda: "request r-2: POST" in caplog.text)
    records: list[Any] = [record for record in caplog.records if hasattr(record, "fields")]
    lines = {record.fields["request_id"]: record for record in records}
    first, second = lines["r-1"].fields, lines["r-2"].fields
    assert first.pop("seconds") >= first.pop("time_to_first_token") > 0
    name = tenants.digest(team.key)[:12]
    assert first == {
        "request_id": "r-1",
        "method": "POST",
        "route": CHAT,
        "status": 200,
        "tenant": "team",
        "key": name,
        "address": "127.0.0.1",
        "outcome": "ok",
        "code": None,
        "trace_id": None,
        "prompt_tokens": 300,
        "output_tokens": len(REPORT),
    }
    assert (second["outcome"], second["code"], second["time_to_first_token"]) == ("refused", "invalid_json", None)
    assert f", ok, 300 + {len(REPORT)} tokens, first token after " in lines["r-1"].getMessage()
    assert lines["r-2"].getMessage().endswith(f", refused (invalid_json), 0 + 0 tokens, key {name}, from 127.0.0.1")


def test_line_of_the_models_has_tenant_and_key(
    engine: FakeEngine, team: Team, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "pedcxr.gateway")
    with running(engine, tenants=team.tenants) as gateway, gateway.client(team.key) as client:
        for route in ("/v1/models", "/v1/models/fake"):
            assert client.get(route).status_code == 200
        eventually(lambda: caplog.text.count("GET /v1/models, team, 200 after ") == 2)
    assert caplog.text.count(f"key {tenants.digest(team.key)[:12]}") == 2


def test_failure_of_the_gateway_is_audited_as_failed(engine: FakeEngine, tmp_path: Path) -> None:
    log = audit.AuditLog(tmp_path / "audit.jsonl", b"k" * 32)
    with running(engine, rules="broken", audit=log) as gateway, gateway.client() as client:
        assert client.post(CHAT, json=BODY).status_code == 500
        assert 'pedcxr_tenant_requests_total{outcome="failed",tenant="anonymous"} 1.0' in gateway.metrics()
    log.close()
    line = json.loads((tmp_path / "audit.jsonl").read_text())
    assert (line["outcome"], line["status"], line["address"], line["key"]) == ("failed", 500, "127.0.0.1", None)


@pytest.mark.parametrize("point", ["body", "queue", "engine", "stream"])
def test_client_that_leaves_is_audited_as_such(engine: FakeEngine, tmp_path: Path, point: str) -> None:
    log = audit.AuditLog(tmp_path / "audit.jsonl", b"k" * 32)
    scheduler = FairScheduler(FairQueue(1, max_waiting=9, max_wait_s=60, max_starting=0 if point == "queue" else 1))
    engine.answer = Answer(stall_after=2) if point == "stream" else Answer(first=60)
    body = json.dumps(BODY | {"stream": point == "stream"}).encode()
    with running(engine, audit=log, scheduler=scheduler) as gateway:
        with socket.create_connection(gateway.address) as plug:
            plug.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode())
            plug.sendall(body[:9] if point == "body" else body)
            if point == "stream":
                while b"The lungs" not in plug.recv(65536):
                    pass
            waits = {"body": lambda: gateway.state.bodies.in_use, "queue": lambda: scheduler.queue.waiting}
            eventually(waits.get(point, lambda: engine.chats))
        eventually(lambda: (tmp_path / "audit.jsonl").read_text().endswith("\n"))
    log.close()
    assert json.loads((tmp_path / "audit.jsonl").read_text())["outcome"] == "client_left"


@pytest.mark.parametrize("finish", ["repetition", None])
@pytest.mark.parametrize("stream", [True, False])
def test_only_stop_counts_as_a_report(engine: FakeEngine, finish: str | None, stream: bool) -> None:
    engine.answer = Answer(finish=finish)
    with running(engine) as gateway, gateway.client() as client:
        client.post(CHAT, json=BODY | {"stream": stream})
        eventually(lambda: 'outcome="incomplete",tenant="anonymous"} 1.0' in gateway.metrics())
        (today,) = gateway.usage().values()
        assert (today["anonymous"]["requests"], today["anonymous"]["reports"]) == (1, 0)


def test_usage_counts_accepted_requests_without_a_token_count(engine: FakeEngine) -> None:
    engine.answer = Answer(status=500)
    with running(engine) as gateway, gateway.client() as client:
        client.post(CHAT, json=BODY)
        client.post(CHAT, content=b"{")  # refused
        eventually(gateway.usage)
        (today,) = gateway.usage().values()
        assert (today["anonymous"]["requests"], today["anonymous"]["tokens"]) == (1, 0)
