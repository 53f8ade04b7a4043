"""Several tenants at one gateway, over real sockets: keys, permissions, limits, fair shares, usage, audit."""

from __future__ import annotations

import base64
import json
import socket
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from pedcxr_serve.config import load
from pedcxr_serve.errors import ConfigError
from pedcxr_serve.gateway.accounting import audit
from pedcxr_serve.gateway.accounting.usage import UsageStore
from pedcxr_serve.gateway.auth import api_keys
from pedcxr_serve.gateway.auth.tenant_store import TenantStore
from pedcxr_serve.gateway.auth.tenants import Tenant
from pedcxr_serve.gateway.rate_limit import RateLimiter
from pedcxr_serve.gateway.request.validation import Rules
from pedcxr_serve.gateway.scheduler import OUTPUT_COST, FairQueue, FairScheduler
from pedcxr_serve.gateway.state import State, open_state
from pedcxr_serve.vllm_plugin import refusals
from tests.support.servers.fake_engine import REPORT, TEXT, Answer, FakeEngine
from tests.support.servers.gateway_server import (
    BODY,
    BODY_TOKENS,
    CHAT,
    assert_openai_error,
    eventually,
    raw_post,
    running,
)

SECRET = b"k" * 32
FILM = "data:image/png;base64," + "iVBORw0KGgoA" * 4
WITH_FILM = {
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": FILM}},
                {"type": "text", "text": "Jane Doe, 5-year-old"},
            ],
        }
    ]
}


class Teams:
    """A tenants.toml and its API keys."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "tenants.toml"
        self.keys: dict[str, str] = {}

    def add(self, name: str, settings: str = "") -> str:
        with self.path.open("a") as file:
            file.write(f"[tenant.{name}]\n{settings}\n")
        self.keys[name] = api_keys.new(self.path, name)
        return self.keys[name]


@pytest.fixture
def teams(tmp_path: Path) -> Teams:
    return Teams(tmp_path)


def serving(engine: FakeEngine, teams: Teams, *, slots: int = 8, **more: Any) -> Any:
    scheduler = FairScheduler(FairQueue(slots, max_waiting=100, max_wait_s=60))
    return running(engine, tenants=TenantStore(teams.path), scheduler=scheduler, rules=Rules("fake", 500), **more)


def test_wrong_keys_are_unauthorized(engine: FakeEngine, teams: Teams) -> None:
    key = teams.add("a")
    with serving(engine, teams) as gateway:
        for wrong in (None, "", "wrong", key[:-1], key + "x", "\xff"):
            with httpx.Client(base_url=gateway.root) as client:
                headers = {} if wrong is None else {"Authorization": f"Bearer {wrong}".strip().encode("latin-1")}
                for answer in (
                    client.post(CHAT, json=BODY, headers=headers),
                    client.get("/v1/models", headers=headers),
                ):
                    assert_openai_error(answer, 401, "invalid_api_key")
                    assert answer.headers["www-authenticate"] == "Bearer"
        with gateway.client(key) as client:
            assert client.post(CHAT, json=BODY).status_code == 200
        assert "pedcxr_unauthenticated_total 12.0" in gateway.metrics()
        with gateway.client() as client:
            assert client.get("/health/live").status_code == 200
    assert len(engine.chats) == 1


def test_engine_receives_the_rewritten_request(engine: FakeEngine, teams: Teams) -> None:
    teams.add("a")
    teams.add("b", "may_sample = true")
    body = WITH_FILM | {"temperature": 0.8, "max_tokens": 9000, "user": "Jane"}
    with serving(engine, teams) as gateway:
        for name in ("a", "b", "a"):
            with gateway.client(teams.keys[name]) as client:
                hidden = {"X-Vllm-Priority": "-9", "X-data-parallel-rank": "1", "X-Request-Id": "r1"}
                hidden |= {"X-Pedcxr-Prompt": "card/1:0123456789ab", "X-Pedcxr-Allow": "age"}
                assert client.post(CHAT, json=body, headers=hidden).status_code == 200
    one, two, three = engine.chats
    [image, text] = one.json["messages"][0]["content"]
    assert len(image.pop("uuid")) == 64
    assert [image, text] == WITH_FILM["messages"][0]["content"]
    assert (one.json["temperature"], two.json["temperature"], one.json["max_tokens"]) == (0, 0.8, 500)
    assert one.json["cache_salt"] == three.json["cache_salt"] != two.json["cache_salt"]
    assert "user" not in one.json
    assert set(one.headers) <= {"host", "accept", "connection", "content-type", "content-length", "x-request-id"}
    assert one.headers["x-request-id"] == "r1"
    assert int(one.headers["content-length"]) == len(one.body)


@pytest.mark.parametrize("more", [{"uuid": "x"}, {"n": 2}, {"priority": 1}, {"cache_salt": "guess"}])
def test_refusal_names_the_field(engine: FakeEngine, teams: Teams, more: dict[str, Any]) -> None:
    with serving(engine, teams_with(teams, "a")) as gateway, gateway.client(teams.keys["a"]) as client:
        answer = client.post(CHAT, json=BODY | more)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == next(iter(more))
        assert 'pedcxr_rejections_total{reason="' in gateway.metrics()
    assert engine.chats == []


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("code", refusals.STATUS)
def test_film_refused_by_the_plugin(engine: FakeEngine, teams: Teams, code: str, stream: bool) -> None:
    status = refusals.STATUS[code]
    message = refusals.mark(code, "modality: Modality (0008,0060) is CT")
    engine.answer = Answer(status=status, error={"message": message, "type": "X", "param": None, "code": status})
    with serving(engine, teams_with(teams, "a")) as gateway, gateway.client(teams.keys["a"]) as client:
        answer = client.post(CHAT, json=WITH_FILM | {"stream": stream})
        assert_openai_error(answer, status, code)
        assert answer.json()["error"]["message"] == "modality: Modality (0008,0060) is CT"
        assert answer.json()["error"]["param"] == "messages[].content[].image_url.url"
        page = gateway.metrics()
    assert f'pedcxr_rejections_total{{reason="{code}",tenant="a"}} 1.0' in page
    assert 'pedcxr_tenant_requests_total{outcome="refused",tenant="a"} 1.0' in page


def test_other_engine_errors_are_counted_but_not_passed_on(engine: FakeEngine, teams: Teams) -> None:
    error = {"message": "too many tokens: 9999", "type": "BadRequestError", "param": "input_tokens", "code": 400}
    engine.answer = Answer(status=400, error=error)
    with serving(engine, teams_with(teams, "a")) as gateway, gateway.client(teams.keys["a"]) as client:
        answer = client.post(CHAT, json=WITH_FILM)
        assert_openai_error(answer, 400, "engine_refused")
        assert "tokens" not in answer.text
        assert 'outcome="engine_refused",tenant="a"} 1.0' in gateway.metrics()


def teams_with(teams: Teams, *names: str) -> Teams:
    for name in names:
        teams.add(name)
    return teams


def test_tenant_sees_and_uses_its_models_only(engine: FakeEngine, teams: Teams) -> None:
    engine.models = ("fake", "adapter", "other")
    teams.add("a", 'models = ["fake", "adapter"]')
    with serving(engine, teams) as gateway, gateway.client(teams.keys["a"]) as client:
        assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["fake", "adapter"]
        assert_openai_error(client.post(CHAT, json=BODY | {"model": "other"}), 404, "model_not_found")


def test_exceeded_limits_return_429_with_retry_after(engine: FakeEngine, teams: Teams) -> None:
    teams.add("rate", "requests_per_minute = 2")
    teams.add("busy", "max_concurrent = 1")
    with serving(engine, teams, rate_limiter=RateLimiter(clock=lambda: 0.0)) as gateway:
        with gateway.client(teams.keys["rate"]) as client:
            assert [client.post(CHAT, json=BODY).status_code for _ in range(2)] == [200, 200]
            answer = client.post(CHAT, json=BODY)
            assert_openai_error(answer, 429, "rate_limited")
            assert answer.headers["retry-after"] == "60"
        with gateway.client(teams.keys["busy"]) as client:
            engine.answer = Answer(stall_after=1)
            with client.stream("POST", CHAT, json=BODY | {"stream": True}) as stream:
                assert stream.status_code == 200
                assert_openai_error(client.post(CHAT, json=BODY), 429, "too_many_concurrent")
            engine.answer = Answer()
            eventually(lambda: gateway.state.in_flight == 0)
            assert client.post(CHAT, json=BODY).status_code == 200


def test_full_queue_returns_503(engine: FakeEngine) -> None:
    engine.answer = Answer(first=0.5)
    scheduler = FairScheduler(FairQueue(1, max_waiting=0, max_wait_s=60))
    with running(engine, scheduler=scheduler) as gateway, gateway.client() as client:
        answer = client.post(CHAT, json=BODY)
    assert_openai_error(answer, 503, "queue_full")
    assert int(answer.headers["retry-after"]) >= 1


def test_queue_alternates_between_tenants(engine: FakeEngine, teams: Teams) -> None:
    """With one slot, a tenant that arrives after a flood of another tenant is served next."""
    teams_with(teams, "flood", "rare")
    rare_waits = threading.Event()
    engine.reply(Answer(hold=rare_waits))
    with serving(engine, teams, slots=1) as gateway, ThreadPoolExecutor(9) as pool:

        def ask(name: str) -> int:
            with gateway.client(teams.keys[name]) as client:
                # An answer of about half of max_tokens is charged as expected, so that the counters are exact.
                body = BODY | {"max_tokens": 2 * len(REPORT)}
                return client.post(CHAT, json=body, headers={"X-Request-Id": name}).status_code

        floods = [pool.submit(ask, "flood") for _ in range(8)]
        eventually(lambda: gateway.state.scheduler.queue.waiting >= 4)
        rare = pool.submit(ask, "rare")
        eventually(lambda: any(gateway.state.scheduler.queue.counts().get("rare", ())))
        before = len(engine.chats)  # one more request may be in transit
        rare_waits.set()
        assert rare.result() == 200
        assert all(flood.result() == 200 for flood in floods)
    order = [chat.headers["x-request-id"] for chat in engine.chats]
    assert order.index("rare") <= before + 1


@pytest.mark.slow
@pytest.mark.parametrize(("weight", "share"), [(1, 0.5), (3, 0.75)])
def test_service_shares_follow_the_weights(engine: FakeEngine, teams: Teams, weight: int, share: float) -> None:
    """Both tenants are always queued; one has twice as many clients.

    The bounds are wide because on a busy machine the client threads do not keep the queue full. The simulation in
    test_scheduler asserts exact shares.
    """
    teams.add("team", f"weight = {weight}")
    teams.add("flood")
    engine.answer = Answer(gap=0.01, pieces=("x",) * 20)
    store, end = UsageStore(None), time.monotonic() + 4
    with serving(engine, teams, slots=3, usage=store) as gateway, ThreadPoolExecutor(18) as pool:

        def keep_asking(name: str) -> None:
            with gateway.client(teams.keys[name]) as client:
                while time.monotonic() < end:
                    client.post(CHAT, json=BODY | {"stream": True})

        for name in ["team"] * 6 + ["flood"] * 12:
            pool.submit(keep_asking, name)
        eventually(lambda: sum(gateway.state.scheduler.queue.service().values()) > 0)
        time.sleep(3.5)
        service = gateway.state.scheduler.queue.service()
        assert service["team"] / sum(service.values()) == pytest.approx(share, abs=0.12)


def test_request_of_a_client_that_leaves_the_queue_is_never_sent(engine: FakeEngine) -> None:
    other_left = threading.Event()
    engine.answer = Answer(hold=other_left)  # the first request keeps the only slot until then
    scheduler = FairScheduler(FairQueue(1, max_waiting=9, max_wait_s=60))
    with running(engine, scheduler=scheduler) as gateway, ThreadPoolExecutor(1) as pool:
        with gateway.client() as client:
            first = pool.submit(client.post, CHAT, json=BODY)
            eventually(lambda: scheduler.queue.running)
            with socket.create_connection(gateway.address, timeout=60) as other:
                other.sendall(raw_post(BODY))
                eventually(lambda: scheduler.queue.waiting == 1)
            eventually(lambda: scheduler.queue.waiting == 0)
            other_left.set()
            assert first.result().status_code == 200
        eventually(lambda: scheduler.queue.running == 0)
    assert len(engine.chats) == 1


@pytest.mark.parametrize("stream", [True, False])
def test_aborted_report_is_an_error(engine: FakeEngine, stream: bool) -> None:
    engine.answer = Answer(finish="abort")
    with running(engine) as gateway, gateway.client() as client:
        answer = client.post(CHAT, json=BODY | {"stream": stream})
        assert "engine_aborted" in answer.text
        assert 'abort"' not in answer.text.replace("engine_abort", "")
        if stream:
            assert "[DONE]" not in answer.text
        else:
            assert_openai_error(answer, 502, "engine_aborted")
        eventually(lambda: 'outcome="aborted",tenant="anonymous"} 1.0' in gateway.metrics())


def test_truncated_stream_ends_with_an_error(engine: FakeEngine) -> None:
    engine.answer = Answer(done=False)
    with running(engine) as gateway, gateway.client() as client:
        assert "engine_lost" in client.post(CHAT, json=BODY | {"stream": True}).text


@pytest.mark.parametrize("include_usage", [True, False, None, "absent"])
def test_usage_event_is_sent_on_request_only(engine: FakeEngine, include_usage: bool | str | None) -> None:
    body = (
        BODY
        | {"stream": True}
        | ({} if include_usage == "absent" else {"stream_options": {"include_usage": include_usage}})
    )
    with running(engine) as gateway, gateway.client() as client:
        answer = client.post(CHAT, json=body)
        assert ('"usage"' in answer.text) is (include_usage is True)
        assert answer.text.endswith("data: [DONE]\n\n")
        eventually(gateway.usage)
        (today,) = gateway.usage().values()
        assert today["anonymous"]["output_tokens"] == len(REPORT)


@pytest.mark.parametrize("counts", [True, False])
def test_counts_in_every_event_are_sent_on_request_only(engine: FakeEngine, counts: bool) -> None:
    options = {"include_usage": True, "continuous_usage_stats": counts}
    with running(engine) as gateway, gateway.client() as client:
        answer = client.post(CHAT, json=BODY | {"stream": True, "stream_options": options})
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    tokens = [event["usage"]["completion_tokens"] for event in events if "usage" in event]
    every = [*range(1, len(REPORT) + 1), len(REPORT)]  # an event for each piece, and one with the finish reason
    assert tokens == [*(every if counts else []), len(REPORT)]


def test_usage_and_budgets_survive_a_restart(engine: FakeEngine, teams: Teams, tmp_path: Path) -> None:
    teams.add("a", "tokens_per_day = 600")
    path = tmp_path / "usage.sqlite"
    counts = {
        "requests": 2,
        "reports": 2,
        "prompt_tokens": 88,
        "image_tokens": 512,
        "output_tokens": 12,
        "tokens": 612,
    }
    for round_ in range(2):
        store = UsageStore(path)
        with serving(engine, teams, usage=store) as gateway, gateway.client(teams.keys["a"]) as client:
            if round_ == 0:
                assert client.post(CHAT, json=WITH_FILM).status_code == 200
                assert client.post(CHAT, json=BODY | {"stream": True}).status_code == 200
                eventually(lambda gateway=gateway: next(iter(gateway.usage().values()))["a"]["requests"] == 2)
            answer = client.post(CHAT, json=BODY)
            assert_openai_error(answer, 429, "budget_spent")
            now = datetime.now(UTC)
            seconds = 86_400 - (60 * now.hour + now.minute) * 60 - now.second
            assert int(answer.headers["retry-after"]) == pytest.approx(seconds, abs=10), "until midnight, UTC"
            (today,) = gateway.usage().values()
            assert today == {"a": counts}
        store.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


TOKENS_PER_EVENT = pytest.mark.parametrize("tokens", [1, 4])  # the second is the default on a GPU


@TOKENS_PER_EVENT
def test_client_that_leaves_early_is_charged_for_the_tokens_sent(engine: FakeEngine, tokens: int) -> None:
    engine.answer = Answer(stall_after=4, completion_tokens=tokens * len(REPORT))
    with running(engine) as gateway, gateway.client() as client:
        with client.stream("POST", CHAT, json=BODY | {"stream": True}) as answer:
            lines = answer.iter_lines()
            for _ in range(7):
                next(lines)
        eventually(gateway.usage)
        (today,) = gateway.usage().values()
        assert today["anonymous"]["output_tokens"] == 4 * tokens
        assert today["anonymous"]["reports"] == 0


@TOKENS_PER_EVENT
def test_stream_is_charged_while_it_runs(engine: FakeEngine, tokens: int) -> None:
    """Otherwise a tenant could start many long reports before the first of them is charged."""
    engine.answer = Answer(stall_after=4, completion_tokens=tokens * len(REPORT))
    with running(engine) as gateway, gateway.client() as client:
        with client.stream("POST", CHAT, json=BODY | {"stream": True}) as answer:
            lines = answer.iter_lines()
            for _ in range(7):  # four events and the empty lines between
                next(lines)
            service = gateway.state.scheduler.queue.service()["anonymous"]
        assert service == BODY_TOKENS + OUTPUT_COST * 4 * tokens


def test_large_film_is_charged_by_its_pixels(engine: FakeEngine) -> None:
    """The engine decodes and resizes all of them, for the same number of tokens."""
    head = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (4 * 896).to_bytes(4) + (2 * 896).to_bytes(4)
    url = "data:image/png;base64," + base64.b64encode(head).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}]
    with running(engine) as gateway, gateway.client() as client:
        queue = gateway.state.scheduler.queue
        assert client.post(CHAT, json=BODY | {"stream": True}).status_code == 200
        small = queue.service()["anonymous"]
        large = BODY | {"stream": True, "messages": [{"role": "user", "content": content}]}
        assert client.post(CHAT, json=large).status_code == 200
        assert queue.service()["anonymous"] - 2 * small == 7 * 256


def test_metrics_have_a_tenant_label(engine: FakeEngine, teams: Teams) -> None:
    teams.add("a")
    with serving(engine, teams) as gateway, gateway.client(teams.keys["a"]) as client:
        client.post(CHAT, json=WITH_FILM | {"stream": True})
        eventually(lambda: 'outcome="ok",tenant="a"} 1.0' in gateway.metrics())
        page = gateway.metrics()
    for line in (
        'pedcxr_tokens_total{kind="image",tenant="a"} 256.0',
        'pedcxr_tokens_total{kind="prompt",tenant="a"} 44.0',
        'pedcxr_tokens_total{kind="output",tenant="a"} 6.0',
        'pedcxr_queue_wait_seconds_count{tenant="a"} 1.0',
        'pedcxr_time_to_first_token_seconds_count{tenant="a"} 1.0',
        'pedcxr_time_per_output_token_seconds_count{tenant="a"} 1.0',
        'pedcxr_e2e_seconds_count{tenant="a"} 1.0',
        'pedcxr_tenant_service_cost_total{tenant="a"} 312.0',
        'pedcxr_writes_failed{file="audit"} 0.0',
        'pedcxr_tenant_waiting{tenant="a"} 0.0',
        'pedcxr_tenant_in_flight{tenant="a"} 0.0',
        "pedcxr_tenants_broken 0.0",
        *(
            f'pedcxr_stage_seconds_count{{stage="{stage}",tenant="a"}} 1.0'
            for stage in ("body", "policy", "queue", "engine", "stream")
        ),
    ):
        assert line in page, line


def test_edit_takes_effect_during_in_flight_requests(engine: FakeEngine, teams: Teams) -> None:
    edited = threading.Event()
    engine.reply(Answer(hold=edited))
    old = teams.add("a")
    with serving(engine, teams) as gateway, gateway.client(old) as client, ThreadPoolExecutor(1) as pool:
        running_request = pool.submit(client.post, CHAT, json=BODY)
        eventually(lambda: engine.chats)
        api_keys.revoke(teams.path, api_keys.table(teams.path).split()[6])
        new = api_keys.new(teams.path, "a")
        eventually(lambda: gateway.state.tenants.reloads)
        with gateway.client(old) as late:
            assert late.post(CHAT, json=BODY).status_code == 401
        with gateway.client(new) as late:
            assert late.post(CHAT, json=BODY).status_code == 200
        edited.set()
        assert running_request.result().status_code == 200
        teams.path.write_text("[tenant.")
        gateway.state.tenants.reload_if_changed()
        assert "pedcxr_tenants_broken 1.0" in gateway.metrics()
        with gateway.client(new) as late:
            assert late.post(CHAT, json=BODY).status_code == 200


def test_openai_sdk_works(engine: FakeEngine, teams: Teams) -> None:
    teams.add("a")
    with serving(engine, teams) as gateway:
        with openai.OpenAI(base_url=gateway.listeners.url, api_key=teams.keys["a"], max_retries=0) as client:
            whole = client.chat.completions.create(model="fake", messages=WITH_FILM["messages"], max_tokens=400)
            assert whole.choices[0].message.content == TEXT
            pieces = client.chat.completions.create(model="fake", messages=WITH_FILM["messages"], stream=True)
            assert "".join(chunk.choices[0].delta.content or "" for chunk in pieces if chunk.choices) == TEXT
        with (
            openai.OpenAI(base_url=gateway.listeners.url, api_key="wrong", max_retries=0) as client,
            pytest.raises(openai.AuthenticationError),
        ):
            client.models.list()


def test_no_identifying_text_is_stored(
    engine: FakeEngine, teams: Teams, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    key = teams.add("a")
    caplog.set_level(0)
    path = tmp_path / "audit.jsonl"
    log = audit.AuditLog(path, SECRET)
    metadata = {"X-Pedcxr-Prompt": "card/1:0123456789ab", "X-Pedcxr-Allow": "body-part,age"}
    names = {"X-Pedcxr-Prompt": "card/1:Jane Doe", "X-Pedcxr-Allow": "age,Jane Doe"}
    with serving(engine, teams, audit=log, revision="sha256:0123") as gateway, gateway.client(key) as client:
        client.post(CHAT, json=WITH_FILM | {"user": "Jane Doe"}, headers=metadata)
        client.post(CHAT, json=WITH_FILM | {"Jane Doe": 1}, headers=names)
        client.post(CHAT, content=b'{"Jane Doe": ')
        assert_openai_error(client.post(CHAT, json=WITH_FILM | {"model": "Jane Doe"}), 404, "model_not_found")
        client.post(CHAT, json=WITH_FILM, headers={"Authorization": "Bearer Jane Doe"})
        eventually(lambda: path.read_text().count("\n") == 4)
        stored = path.read_text() + gateway.metrics() + json.dumps(gateway.usage())
        stored += "".join(record.getMessage() for record in caplog.records if not record.name.startswith("http"))
    log.close()
    for planted in ("Jane", "Doe", "iVBORw0", TEXT[:9], key, "5-year-old"):
        assert planted not in stored
    (first,) = [entry for entry in map(json.loads, path.read_text().splitlines()) if entry["outcome"] == "ok"]
    assert first["tenant"] == "a" and len(first["film"]) == len(first["prompt"]) == 64
    assert (first["prompt_tokens"], first["output_tokens"], first["finish_reason"]) == (300, 6, "stop")
    assert (first["model"], first["revision"]) == ("fake", "sha256:0123")
    assert (first["prompt_profile"], first["overrides"]) == ("card/1:0123456789ab", ["body-part", "age"])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_requests_before_readiness_are_counted(engine: FakeEngine, teams: Teams) -> None:
    teams.add("a")
    with serving(engine, teams) as gateway, gateway.client(teams.keys["a"]) as client:
        gateway.state.set_ready(False, "loading weights")
        assert_openai_error(client.post(CHAT, json=BODY), 503, "not_ready")
        assert 'pedcxr_rejections_total{reason="not_ready",tenant="a"} 1.0' in gateway.metrics()


def test_state_follows_the_configuration(teams: Teams, tmp_path: Path) -> None:
    teams.add("a")
    flags = {
        "gateway.tenants": str(teams.path),
        "gateway.audit_log": str(tmp_path / "audit.jsonl"),
        "gateway.body_limit_mib": 3,
        "engine.max_new_tokens": 77,
        "served_name": "named",
    }
    settings = load.load(None, flags)

    def state_for(env: dict[str, str]) -> State:
        with open_state(settings, tmp_path / "s", slots=2, image_tokens=64, demo=True, env=env) as state:
            return state

    state = state_for({audit.KEY_VARIABLE: "k" * 32})
    assert (state.body_limit, state.rules.max_new_tokens, state.rules.model) == (3 << 20, 77, "named")
    assert set(state.tenants.current.all) == {"a"} and state.image_tokens == 64
    assert (tmp_path / "usage.sqlite").exists()
    (tmp_path / "state").mkdir()
    state_for({audit.KEY_VARIABLE: "k" * 32, "STATE_DIRECTORY": f"{tmp_path / 'state'}:/other"})
    assert (tmp_path / "state" / "usage.sqlite").exists()
    with pytest.raises(ConfigError, match="PEDCXR_AUDIT_KEY"):
        state_for({})
    teams.path.unlink()
    with pytest.raises(ConfigError, match=r"tenants\.toml"):
        state_for({audit.KEY_VARIABLE: "k" * 32})


@pytest.mark.parametrize(("multi_tenant", "at_start", "prepared", "started"), [(False, 32, 32, 32), (True, 2, 6, 30)])
def test_multi_tenant_mode_limits_starts_and_reserves_slots(
    teams: Teams, tmp_path: Path, multi_tenant: bool, at_start: int, prepared: int, started: int
) -> None:
    teams.add("a")
    settings = load.load(None, {"gateway.tenants": str(teams.path)} if multi_tenant else {})
    limits = {"slots": 32, "max_preparing": 2, "max_starting": 6}
    with open_state(settings, tmp_path / "s", **limits, image_tokens=64, demo=True, env={}) as state:
        queue, sent = state.scheduler.queue, []
        for _ in range(50):
            queue.enqueue(queue.open(Tenant("a"), 0), 300)
        while len(sent) < 50 and (ticket := queue.next(0)) is not None:
            sent.append(ticket)
        assert len(sent) == at_start
        for mark, expected in ((queue.mark_prepared, prepared), (queue.mark_started, started)):
            for ticket in sent:  # grows while it is iterated
                mark(ticket)
                while (another := queue.next(0)) is not None:
                    sent.append(another)
            assert len(sent) == expected
        queue.enqueue(queue.open(Tenant("b"), 0), 300)
        assert (queue.next(0) is not None) == multi_tenant
