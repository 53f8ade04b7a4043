"""The gateway in front of a fake engine, over real sockets."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from pedcxr_serve.engine.served_models import ServedModels
from pedcxr_serve.gateway.request import validation
from pedcxr_serve.gateway.request.validation import AcceptedRequest
from pedcxr_serve.gateway.scheduler import OUTPUT_COST
from tests.support.servers.fake_engine import REPORT, TEXT, Answer, FakeEngine
from tests.support.servers.gateway_server import (
    BODY,
    BODY_TOKENS,
    CHAT,
    LIMIT,
    Gateway,
    assert_openai_error,
    eventually,
    raw_post,
    running,
    sent_messages,
)


def test_report_is_forwarded(gateway: Gateway) -> None:
    with gateway.client() as client:
        answer = client.post(CHAT, json=BODY)
    assert answer.json()["choices"][0]["message"]["content"] == TEXT
    assert answer.headers["x-pedcxr-demo"] == "1"
    assert sent_messages(gateway.engine.chats[0]) == BODY["messages"]


def test_only_the_demo_is_marked(engine: FakeEngine) -> None:
    with running(engine, demo=False) as gateway, gateway.client() as client:
        assert "x-pedcxr-demo" not in client.post(CHAT, json=BODY).headers


def test_stream_arrives_event_by_event(gateway: Gateway) -> None:
    for count in range(1, len(REPORT)):
        gateway.engine.answer = Answer(stall_after=count)  # nothing more is written until the client leaves
        with gateway.client() as client, client.stream("POST", CHAT, json=BODY | {"stream": True}) as answer:
            events = (line for line in answer.iter_lines() if line.startswith("data: {"))
            for piece in REPORT[:count]:
                assert json.loads(next(events)[6:])["choices"][0]["delta"]["content"] == piece


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", CHAT),
        ("POST", "/v1/models"),
        ("POST", "/v1/completions"),
        ("POST", "/tokenize"),
        ("GET", "/metrics"),
        ("GET", "/docs"),
        ("GET", "/"),
        ("PUT", "/health/live"),
        ("GET", "//v1/models"),
    ],
)
def test_other_routes_are_404(gateway: Gateway, method: str, path: str) -> None:
    with gateway.client() as client:
        assert_openai_error(client.request(method, path), 404, "not_found")
    assert gateway.engine.requests == []


def test_health_routes(gateway: Gateway) -> None:
    with gateway.client() as client:
        assert [client.get(f"/health{path}").status_code for path in ("", "/live", "/ready")] == [200, 200, 200]
        gateway.state.set_ready(False, "loading weights")
        assert [client.get(f"/health{path}").status_code for path in ("", "/live", "/ready")] == [503, 200, 503]
        ready = client.get("/health/ready")
        assert ready.json() == {"status": "not ready", "stage": "loading weights"}
        assert ready.headers["retry-after"]


def test_503_with_the_stage_until_ready(gateway: Gateway) -> None:
    gateway.state.set_ready(False, "loading weights")
    with gateway.client() as client:
        for answer in (client.post(CHAT, json=BODY), client.get("/v1/models")):
            assert_openai_error(answer, 503, "not_ready")
            assert "loading weights" in answer.text
            assert answer.headers["retry-after"]


def test_models_do_not_show_the_checkpoint_folder(gateway: Gateway) -> None:
    gateway.engine.models_answer = Answer(
        raw=json.dumps({"data": [{"id": "m", "object": "model", "root": "/secret", "permission": []}]}).encode(),
        content_type="application/json",
    )
    with gateway.client() as client:
        (model,) = client.get("/v1/models").json()["data"]
    assert set(model) == {"id", "object", "owned_by", "architecture", "capabilities", "pedcxr"}


def test_models_have_the_image_size_and_the_revision(engine: FakeEngine) -> None:
    with running(engine, demo=False, image_size=(224, 336), revision="sha256:0") as gateway, gateway.client() as client:
        (model,) = client.get("/v1/models").json()["data"]
        extension = {
            "image_size": [224, 336],
            "revision": "sha256:0",
            "adapter": False,
            "default": False,
            "demo": False,
        }
        assert model["pedcxr"] == extension
        with openai.OpenAI(base_url=gateway.listeners.url, api_key="none", max_retries=0) as sdk:
            (parsed,) = sdk.models.list().data
    assert parsed.id == "fake" and parsed.to_dict()["pedcxr"] == extension


@pytest.mark.parametrize("announced", [True, False])
def test_body_over_the_limit_is_413(gateway: Gateway, announced: bool) -> None:
    body = b"x" * (3 * LIMIT)
    with gateway.client() as client:
        answer = client.post(CHAT, content=body if announced else iter([body]))
        assert_openai_error(answer, 413, "body_too_large")
        assert client.post(CHAT, json=BODY).status_code == 200
    assert len(gateway.engine.chats) == 1


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("stream", [True, False])
def test_refusal_of_the_engine_gets_a_retry_after(gateway: Gateway, status: int, stream: bool) -> None:
    gateway.engine.answer = Answer(status=status)
    with gateway.client() as client:
        answer = client.post(CHAT, json=BODY | {"stream": stream})
    assert (answer.status_code, answer.headers["retry-after"]) == (status, "2")


def test_unstreamed_report_is_charged_before_its_answer(gateway: Gateway) -> None:
    """First half of `max_tokens`, later the tenant's mean output; the engine's count corrects both."""
    queue = gateway.state.scheduler.queue
    prompt = BODY_TOKENS
    actual = 300 + OUTPUT_COST * len(REPORT)
    with gateway.client() as client, ThreadPoolExecutor(1) as pool:
        for before, expected_output in ((0.0, 50), (actual, len(REPORT))):
            answered = threading.Event()
            gateway.engine.reply(Answer(hold=answered))
            chats = len(gateway.engine.chats)
            request = pool.submit(client.post, CHAT, json=BODY | {"max_tokens": 100})
            eventually(lambda chats=chats: len(gateway.engine.chats) > chats)
            charged = queue.service()["anonymous"] - before
            answered.set()
            assert charged == pytest.approx(prompt + OUTPUT_COST * expected_output)
            assert request.result().status_code == 200
            eventually(lambda: gateway.state.in_flight == 0)
            assert queue.service()["anonymous"] - before == pytest.approx(actual)


def test_valid_request_id_is_kept(gateway: Gateway) -> None:
    with gateway.client() as client:
        valid = client.get("/health/live", headers={"X-Request-Id": "my-id.1"})
        forged = client.get("/health/live", headers={"X-Request-Id": "a b\tc"})
        client.post(CHAT, json=BODY, headers={"X-Request-Id": "my-id.2"})
    assert valid.headers["x-request-id"] == "my-id.1"
    assert forged.headers["x-request-id"] != "a b\tc"
    assert gateway.engine.chats[0].headers["x-request-id"] == "my-id.2"


@pytest.mark.parametrize("stream", [True, False])
def test_disconnect_of_the_client_ends_its_request(gateway: Gateway, stream: bool) -> None:
    gateway.engine.answer = Answer(first=300)
    with socket.create_connection(gateway.address, timeout=60) as plug:
        plug.sendall(raw_post(BODY | {"stream": stream}))
        eventually(lambda: gateway.engine.chats)
    assert gateway.engine.chats[0].disconnected.wait(30)
    eventually(lambda: gateway.state.in_flight == 0)


def test_an_engine_lost_before_it_answered(gateway: Gateway) -> None:
    gateway.engine.__exit__()
    with gateway.client() as client:
        answer = client.post(CHAT, json=BODY)
        assert_openai_error(answer, 503, "engine_restarting")  # never seen by the engine, so safe to send again
        assert answer.headers["retry-after"]
        assert_openai_error(client.get("/v1/models"), 502, "engine_lost")
    gateway.engine.__enter__()


def test_engine_lost_during_a_stream_is_an_error_event(gateway: Gateway) -> None:
    gateway.engine.answer = Answer(cut_after=3)
    with gateway.client() as client, client.stream("POST", CHAT, json=BODY | {"stream": True}) as answer:
        events = [line for line in answer.iter_lines() if line.startswith("data: ")]
    assert answer.status_code == 200
    assert json.loads(events[-1].removeprefix("data: "))["error"]["code"] == "engine_lost"
    assert "[DONE]" not in events[-1]


def test_metrics_are_only_on_the_admin_port(gateway: Gateway) -> None:
    with gateway.client() as client:
        client.post(CHAT, json=BODY)
        client.get("/made/up/path")
    page = gateway.metrics()
    assert 'pedcxr_requests_total{route="/v1/chat/completions",status="200"} 1.0' in page
    assert 'pedcxr_requests_total{route="other",status="404"} 1.0' in page
    assert "fake_chat_requests_total 1" in page
    assert httpx.get(gateway.listeners.metrics_url.removesuffix("metrics")).status_code == 404


def test_metrics_without_an_engine(gateway: Gateway) -> None:
    gateway.engine.__exit__()
    assert "pedcxr_ready 1.0" in gateway.metrics()
    gateway.engine.__enter__()


def test_engine_is_asked_for_its_models_once(gateway: Gateway) -> None:
    with gateway.client() as client:
        assert {client.get("/v1/models").status_code for _ in range(50)} == {200}
    assert len(gateway.engine.requests) == 1


def test_usage_since_a_day_that_is_none(gateway: Gateway) -> None:
    url = gateway.listeners.metrics_url.replace("metrics", "usage")
    assert httpx.get(url, params={"since": "2026-11-27"}).status_code == 200
    for wrong in ("yesterday", "2026-1-1", "2026-11-27T00:00"):
        assert httpx.get(url, params={"since": wrong}).status_code == 400


def test_internal_error_is_logged_by_request_id_and_place(engine: FakeEngine, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "pedcxr.gateway")
    # A string has none of the attributes of Rules.
    with running(engine, rules="Jane Doe") as gateway, gateway.client() as client:
        assert_openai_error(client.post(CHAT, json=BODY, headers={"X-Request-Id": "r-1"}), 500, "internal")
        assert client.get("/health/live", headers={"X-Request-Id": "r-2"}).status_code == 200
    lines = [record.getMessage() for record in caplog.records if record.name == "pedcxr.gateway"]
    assert lines[0].startswith("request r-1: internal error: AttributeError at validation.py:")
    assert lines[1].startswith(f"request r-1: POST {CHAT}, anonymous, 500 after ")
    assert lines[2].startswith("request r-2: GET /health/live, no tenant, 200 after ")
    assert len(lines) == 3 and "Doe" not in caplog.text


def test_models_are_answered_from_memory(engine: FakeEngine) -> None:
    with running(engine, models=ServedModels(clock=lambda: 0.0)) as gateway, gateway.client() as client:
        answers = {client.get("/v1/models").text for _ in range(50)}
    assert len(answers) == 1
    assert [request.path for request in engine.requests].count("/v1/models") == 1


@pytest.mark.parametrize(("size", "in_a_thread"), [(1_000, False), (500_000, True)])
def test_large_film_is_hashed_off_the_event_loop(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, size: int, in_a_thread: bool
) -> None:
    running_loops: list[bool] = []
    apply = validation.apply

    def observed(*args: Any) -> AcceptedRequest:
        try:
            running_loops.append(asyncio.get_running_loop() is not None)
        except RuntimeError:
            running_loops.append(False)
        return apply(*args)

    monkeypatch.setattr(validation, "apply", observed)
    film = "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(size)).decode()
    content = [{"type": "image_url", "image_url": {"url": film}}]
    with gateway.client() as client:
        assert client.post(CHAT, json={"messages": [{"role": "user", "content": content}]}).status_code == 200
    assert running_loops == [not in_a_thread]
