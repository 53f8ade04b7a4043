"""Adapters at the gateway: which tenant may use which, the default of a tenant, revisions, caches, records."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from pedcxr_client import Client
from pedcxr_serve.config import load
from pedcxr_serve.errors import ConfigError
from pedcxr_serve.gateway.accounting.audit import AuditLog
from pedcxr_serve.gateway.auth.models import ServedAdapter
from pedcxr_serve.gateway.auth.tenant_store import TenantStore
from pedcxr_serve.gateway.request import validation
from pedcxr_serve.gateway.request.validation import Rules, cache_salt, film_id
from pedcxr_serve.gateway.state import open_state
from tests.serve.gateway.auth.test_tenancy import Teams
from tests.support.films.phantom_films import fresh
from tests.support.servers.fake_engine import FakeEngine
from tests.support.servers.gateway_server import BODY, CHAT, Gateway, assert_openai_error, eventually, running

BASE = "sha256:" + "b" * 16
ADAPTERS = {
    "north": ServedAdapter("sha256:" + "1" * 16, frozenset({"n", "both"})),
    "south": ServedAdapter("sha256:" + "2" * 16, frozenset({"both"})),
    "open": ServedAdapter("sha256:" + "3" * 16),
}
RULES = Rules("fake", 500, served=frozenset(ADAPTERS), adapters=ADAPTERS)
MODELS = ("fake", *ADAPTERS)
TENANTS = {  # settings of each, and the models that it may use
    "n": ('models = ["north"]\ndefault_model = "north"', ["north"]),
    "both": ("", ["fake", "north", "south", "open"]),
    "others": ("", ["fake", "open"]),
    "listed": ('models = ["fake", "south"]', ["fake"]),
}


@pytest.fixture
def teams(tmp_path: Path) -> Teams:
    teams = Teams(tmp_path)
    for name, (settings, _) in TENANTS.items():
        teams.add(name, settings)
    return teams


@pytest.fixture
def gateway(engine: FakeEngine, teams: Teams, tmp_path: Path) -> Iterator[Gateway]:
    engine.models = MODELS
    log = AuditLog(tmp_path / "audit.jsonl", os.urandom(32))
    with running(engine, tenants=TenantStore(teams.path), rules=RULES, revision=BASE, audit=log) as gateway:
        yield gateway
    log.close()


def revision(model: str) -> str:
    return BASE if model == "fake" else f"{BASE}+{ADAPTERS[model].revision}"


@pytest.mark.parametrize("tenant", TENANTS)
def test_a_tenant_sees_and_uses_its_adapters_only(gateway: Gateway, teams: Teams, tenant: str) -> None:
    allowed = TENANTS[tenant][1]
    with gateway.client(teams.keys[tenant]) as client:
        listing = client.get("/v1/models").json()["data"]
        assert [entry["id"] for entry in listing] == allowed
        assert [entry["pedcxr"]["adapter"] for entry in listing] == [model != "fake" for model in allowed]
        for model in MODELS:
            answer = client.post(CHAT, json=BODY | {"model": model})
            one = client.get(f"/v1/models/{model}")
            if model in allowed:
                assert answer.headers["x-pedcxr-revision"] == one.json()["pedcxr"]["revision"] == revision(model)
            else:
                assert_openai_error(answer, 404, "model_not_found")
                assert one.status_code == 404
    assert [request.json["model"] for request in gateway.engine.chats] == allowed


def test_a_request_without_a_model_gets_the_default_of_its_tenant(gateway: Gateway, teams: Teams) -> None:
    for tenant, model in (("n", "north"), ("both", "fake")):
        with gateway.client(teams.keys[tenant]) as client:
            assert client.post(CHAT, json=BODY).headers["x-pedcxr-revision"] == revision(model)
            [default] = [entry["id"] for entry in client.get("/v1/models").json()["data"] if entry["pedcxr"]["default"]]
            assert default == gateway.engine.chats[-1].json["model"] == model


@pytest.mark.parametrize(
    ("tenant", "named", "model"), [("both", None, "fake"), ("n", None, "north"), ("both", "south", "south")]
)
def test_the_report_of_the_client_has_the_revision_of_the_adapter(
    gateway: Gateway, teams: Teams, tenant: str, named: str | None, model: str
) -> None:
    with Client(gateway.listeners.url, api_key=teams.keys[tenant], model=named) as client:
        report = client.report(fresh().png, age="6y", sex="M")
    assert (report.model, report.model_revision) == (model, revision(model))


def test_audit_and_metrics_name_the_adapter(gateway: Gateway, teams: Teams, tmp_path: Path) -> None:
    with gateway.client(teams.keys["both"]) as client:
        for model in ("south", "fake", "south"):
            assert client.post(CHAT, json=BODY | {"model": model}).status_code == 200
        client.post(CHAT, json=BODY | {"model": "Jane Doe"})
        log = tmp_path / "audit.jsonl"
        eventually(lambda: len(log.read_text().splitlines()) == 4)  # written after the answers
        page = gateway.metrics()
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    lines = Counter((entry.get("model"), entry["revision"]) for entry in entries)
    assert lines == {("south", revision("south")): 2, ("fake", BASE): 1, (None, BASE): 1}
    assert 'pedcxr_model_requests_total{model="south",outcome="ok"} 2.0' in page
    assert 'pedcxr_model_requests_total{model="fake",outcome="ok"} 1.0' in page
    assert "Jane" not in page


def test_caches_are_apart_by_tenant_and_adapter(gateway: Gateway, teams: Teams) -> None:
    for tenant, model in (("both", "fake"), ("both", "north"), ("both", "south"), ("n", "north"), ("both", "north")):
        with gateway.client(teams.keys[tenant]) as client:
            assert client.post(CHAT, json=BODY | {"model": model}).status_code == 200
    salts = [request.json["cache_salt"] for request in gateway.engine.chats]
    films = [request.json["messages"][0]["content"][0]["uuid"] for request in gateway.engine.chats]
    assert len(set(salts)) == len(set(films)) == 4
    assert (salts[1], films[1]) == (salts[4], films[4])


def test_the_salt_of_a_tenant_is_never_that_of_another_with_an_adapter() -> None:
    pairs = [("a", ""), ("a", "b"), ("ab", ""), ("b", "a"), ("b", "")]
    salts = {cache_salt(b"k" * 32, *pair) for pair in pairs}
    assert len(salts) == len({film_id(salt, b"film") for salt in salts}) == len(pairs)


def test_a_request_cannot_name_the_folder_of_an_adapter(gateway: Gateway, teams: Teams) -> None:
    with gateway.client(teams.keys["both"]) as client:
        for field in ("lora_path", "lora_name", "lora_request"):
            assert_openai_error(client.post(CHAT, json=BODY | {field: "/tmp/x"}), 400, "unknown_field")
        assert client.post("/v1/load_lora_adapter", json={"lora_name": "x", "lora_path": "/tmp/x"}).status_code == 404
    assert not [name for name in validation.SCHEMA.fields if "lora" in name]


@pytest.mark.parametrize(
    ("adapters", "tenants", "message"),
    [
        ('tenants = ["n", "absent"]', "[tenant.n]\n", r"adapters.a.tenants: no tenant 'absent' in .*keys new absent"),
        ("", '[tenant.n]\ndefault_model = "b"\n', r"tenant.n.default_model = 'b': must be one of a, pedcxr-demo"),
    ],
)
def test_names_that_do_not_exist_are_refused_at_start(
    tmp_path: Path, adapters: str, tenants: str, message: str
) -> None:
    file = tmp_path / "tenants.toml"
    file.write_text(tenants)
    (tmp_path / "serve.toml").write_text(f'[gateway]\ntenants = "{file}"\n[adapters.a]\npath = "/a"\n{adapters}\n')
    settings = load.load(tmp_path / "serve.toml", {})
    with (
        pytest.raises(ConfigError, match=message),
        open_state(settings, tmp_path / "s", slots=1, image_tokens=64, demo=True, env={}),
    ):
        pass


@pytest.mark.parametrize(
    ("edited", "message"),
    [
        ('[tenant.n]\ndefault_model = "nroth"\n', "tenant.n.default_model = 'nroth': must be one of a, pedcxr-demo"),
        ("[tenant.other]\n", "adapters.a.tenants: no tenant 'n'"),
    ],
)
def test_reload_refuses_what_the_next_start_would_refuse(tmp_path: Path, edited: str, message: str) -> None:
    file = tmp_path / "tenants.toml"
    file.write_text("[tenant.n]\n")
    (tmp_path / "serve.toml").write_text(f'[gateway]\ntenants = "{file}"\n[adapters.a]\npath = "/a"\ntenants = ["n"]\n')
    settings = load.load(tmp_path / "serve.toml", {})
    with open_state(settings, tmp_path / "s", slots=1, image_tokens=64, demo=True, env={}) as state:
        file.write_text(edited)
        state.reload()
        assert state.tenants.broken is not None and message in state.tenants.broken
        assert set(state.tenants.current.all) == {"n"}


def test_the_state_knows_the_revisions(tmp_path: Path) -> None:
    settings = load.load(None, {})
    adapters = {"a": ServedAdapter("sha256:1")}
    with open_state(
        settings, tmp_path / "s", slots=1, image_tokens=64, demo=True, env={}, revision="r", adapters=adapters
    ) as state:
        assert (state.revision_of("a"), state.revision_of("pedcxr-demo")) == ("r+sha256:1", "r")
        labels = {"model": "a", "revision": "r+sha256:1"}
        assert state.metrics.registry.get_sample_value("pedcxr_model_info", labels) == 1
