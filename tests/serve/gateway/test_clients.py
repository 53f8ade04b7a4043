"""What clients of other kinds rely on: modalities, CORS, comments while waiting, closed connections, HTTP/1.0."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from pedcxr_serve.gateway.auth import api_keys
from pedcxr_serve.gateway.auth.tenant_store import TenantStore
from pedcxr_serve.gateway.scheduler import FairQueue, FairScheduler
from tests.support.servers.fake_engine import TEXT, Answer, FakeEngine
from tests.support.servers.gateway_server import BODY, CHAT, LIMIT, Gateway, assert_openai_error, eventually, running

WORDS = {"messages": [{"role": "user", "content": "Generate a report of this chest X-ray."}]}
STREAM = BODY | {"stream": True}
ORIGIN = "https://reading.example"


def test_request_without_a_film_is_refused_except_for_a_connection_test(gateway: Gateway) -> None:
    with gateway.client() as client:
        refusal = client.post(CHAT, json=WORDS)
        assert_openai_error(refusal, 400, "film_missing")
        assert "image_url" in refusal.json()["error"]["message"]
        assert gateway.engine.chats == []
        answer = client.post(CHAT, json=WORDS | {"max_tokens": 5})
        assert (answer.status_code, answer.headers["x-pedcxr-film"]) == (200, "none")
        assert "x-pedcxr-film" not in client.post(CHAT, json=BODY).headers


@pytest.mark.parametrize("stream", [True, False])
def test_ignored_fields_are_named_in_a_header(gateway: Gateway, stream: bool) -> None:
    with gateway.client() as client:
        answer = client.post(CHAT, json=BODY | {"stream": stream, "metadata": {"a": "b"}, "store": True})
        assert answer.headers["x-pedcxr-ignored"] == "metadata, store"
        assert "x-pedcxr-ignored" not in client.post(CHAT, json=BODY).headers


def test_models_state_that_they_see(gateway: Gateway) -> None:
    """Clients remove images for a model that does not."""
    with gateway.client() as client:
        (model,) = client.get("/v1/models").json()["data"]
        assert model["architecture"]["input_modalities"] == ["text", "image"]
        assert model["capabilities"] == {"vision": True}
        assert client.get(f"/v1/models/{model['id']}").json() == model
        assert_openai_error(client.get("/v1/models/other"), 404, "model_not_found")
    with openai.OpenAI(base_url=gateway.listeners.url, api_key="none", max_retries=0) as sdk:
        assert sdk.models.retrieve(model["id"]).id == model["id"]


@pytest.mark.parametrize("body", [b"not JSON", b'{"data": 1}', b"{}"])
def test_engine_that_lists_no_models_is_a_502(gateway: Gateway, body: bytes) -> None:
    gateway.engine.models_answer = Answer(raw=body, content_type="application/json")
    with gateway.client() as client:
        assert_openai_error(client.get("/v1/models"), 502, "engine_lost")
        gateway.engine.models_answer = Answer(status=500)
        assert_openai_error(client.get("/v1/models"), 502, "engine_lost")


def test_web_pages_of_allowed_origins_may_call(engine: FakeEngine) -> None:
    preflight = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization",
    }
    with running(engine, allowed_origins=(ORIGIN,)) as gateway, gateway.client() as client:
        answer = client.options(CHAT, headers=preflight)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, ORIGIN)
        assert "authorization" in answer.headers["access-control-allow-headers"].lower()
        assert client.options(CHAT, headers=preflight | {"Origin": "https://other.example"}).status_code == 400
        for stream in (True, False):
            answer = client.post(CHAT, json=BODY | {"stream": stream}, headers={"Origin": ORIGIN})
            assert answer.headers["access-control-allow-origin"] == ORIGIN
            assert "x-pedcxr-ignored" in answer.headers["access-control-expose-headers"]
    with running(engine) as gateway, gateway.client() as client:
        assert_openai_error(client.options(CHAT, headers=preflight), 403, "foreign_host")
        assert "access-control-allow-origin" not in client.post(CHAT, json=BODY, headers={"Origin": ORIGIN}).headers


@pytest.fixture
def narrow(engine: FakeEngine) -> Iterator[Gateway]:
    """A gateway with one slot, which sends comments at once to streams that wait."""
    scheduler = FairScheduler(FairQueue(1, max_waiting=2, max_wait_s=1000))
    with running(engine, scheduler=scheduler, comment_after_s=0.01, comment_every_s=0.01) as gateway:
        yield gateway


def test_stream_that_waits_gets_headers_and_comments(narrow: Gateway) -> None:
    narrow.engine.reply(Answer(stall_after=1))
    with narrow.client() as client, narrow.client() as other, client.stream("POST", CHAT, json=STREAM) as first:
        beginning = first.iter_lines()
        next(beginning)
        with other.stream("POST", CHAT, json=BODY | {"stream": True, "store": True}) as second:
            assert (second.status_code, second.headers["x-pedcxr-ignored"]) == (200, "store")
            lines = second.iter_lines()
            assert [next(lines) for _ in range(4)] == [": waiting", "", ": waiting", ""]
            first.close()  # gives its slot to the second
            events = [line for line in lines if line.startswith("data: ")]
    assert "".join(_pieces(events)) == TEXT
    assert events[-1] == "data: [DONE]"


def test_refusal_after_comments_is_an_error_event(narrow: Gateway) -> None:
    narrow.engine.reply(Answer(stall_after=1))
    with narrow.client() as client, narrow.client() as other, client.stream("POST", CHAT, json=STREAM) as first:
        beginning = first.iter_lines()
        next(beginning)
        with other.stream("POST", CHAT, json=STREAM) as second:
            lines = second.iter_lines()
            assert next(lines) == ": waiting"
            narrow.state.engine_up = False
            first.close()
            events = [line for line in lines if line.startswith("data: ")]
    assert [json.loads(event[6:])["error"]["code"] for event in events] == ["engine_restarting"]


def test_unstreamed_request_that_waits_keeps_its_status(narrow: Gateway) -> None:
    narrow.engine.reply(Answer(stall_after=1), Answer(status=503))
    with narrow.client() as client, narrow.client() as other:
        answers: list[httpx.Response] = []
        with client.stream("POST", CHAT, json=BODY | {"stream": True}) as first:
            beginning = first.iter_lines()
            next(beginning)
            thread = threading.Thread(target=lambda: answers.append(other.post(CHAT, json=BODY)))
            thread.start()
            eventually(lambda: narrow.state.scheduler.queue.waiting == 1)
        thread.join(60)
    assert answers[0].status_code == 503


def _pieces(events: list[str]) -> Iterator[str]:
    for event in events:
        if event != "data: [DONE]":
            for choice in json.loads(event[6:])["choices"]:
                yield choice["delta"].get("content") or ""


def test_connections_close_while_the_server_stops(gateway: Gateway) -> None:
    with gateway.client() as client:
        assert "connection" not in client.post(CHAT, json=BODY).headers
        gateway.state.set_ready(True, "stopping")  # as for `gateway.lame_duck_s`
        assert client.get("/health/ready").status_code == 503
        answers = [client.post(CHAT, json=BODY), client.get("/v1/models")]
        gateway.state.set_ready(False, "stopping")
        answers += [client.post(CHAT, json=BODY), client.get("/health/live")]
    assert [answer.status_code for answer in answers] == [200, 200, 503, 200]
    assert [answer.headers["connection"] for answer in answers] == ["close"] * 4


def exchange(gateway: Gateway, request: bytes) -> tuple[bytes, bytes]:
    """Return the head and the body of the answer; the server must close the connection."""
    with socket.create_connection(gateway.address, timeout=60) as plug:
        plug.sendall(request)
        answer = b"".join(iter(lambda: plug.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    return head.lower(), body


@pytest.mark.parametrize("stream", [True, False])
def test_http_1_0_gets_no_chunks(gateway: Gateway, stream: bool) -> None:
    data = json.dumps(BODY | {"stream": stream}).encode()
    head, body = exchange(
        gateway, b"POST %b HTTP/1.0\r\nContent-Length: %d\r\n\r\n%b" % (CHAT.encode(), len(data), data)
    )
    assert b"transfer-encoding" not in head and b"content-length: %d" % len(body) in head
    assert (
        body.endswith(b"data: [DONE]\n\n") if stream else json.loads(body)["choices"][0]["message"]["content"] == TEXT
    )


def test_too_large_body_is_refused_before_it_is_sent(gateway: Gateway) -> None:
    head, body = exchange(
        gateway,
        b"POST %b HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
        % (CHAT.encode(), LIMIT + 1),
    )
    assert head.startswith(b"http/1.1 413 ") and b"connection: close" in head
    assert json.loads(body)["error"]["code"] == "body_too_large"


@pytest.mark.parametrize(
    ("words", "status", "code"),
    [
        (
            "This model's maximum context length is 4096 tokens. However, you requested Jane Doe",
            400,
            "context_length_exceeded",
        ),
        ("Conversation roles must alternate user/assistant: Jane Doe", 400, "engine_refused"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_words_of_the_engine_are_not_passed_on(
    gateway: Gateway, words: str, status: int, code: str, stream: bool
) -> None:
    gateway.engine.answer = Answer(status=status, error={"message": words, "type": "BadRequestError", "code": 400})
    with gateway.client() as client:
        answer = client.post(CHAT, json=BODY | {"stream": stream})
    assert_openai_error(answer, status, code)
    assert "Jane" not in answer.text


def test_empty_fields_of_the_engine_are_removed(gateway: Gateway) -> None:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": "é",
        "refusal": None,
        "reasoning": None,
        "tool_calls": [],
    }
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop", "routed_experts": None}
    completion = {"id": "c", "choices": [choice], "usage": None, "kv_transfer_params": None, "prompt_logprobs": None}
    gateway.engine.answer = Answer(raw=json.dumps(completion).encode(), content_type="application/json")
    with gateway.client() as client:
        answer = client.post(CHAT, json=BODY).json()
    kept = {"role": "assistant", "content": "é", "refusal": None, "tool_calls": []}
    assert answer == {
        "id": "c",
        "choices": [{"index": 0, "message": kept, "logprobs": None, "finish_reason": "stop"}],
        "usage": None,
    }
    with gateway.client() as client:
        turns = [*BODY["messages"], message, {"role": "user", "content": "Which side?"}]
        assert client.post(CHAT, json={"messages": turns}).status_code == 200, "an answer may be sent back"


def test_retry_advice_is_in_the_message_too(engine: FakeEngine) -> None:
    scheduler = FairScheduler(FairQueue(1, max_waiting=0, max_wait_s=1000))
    with running(engine, scheduler=scheduler) as gateway, gateway.client() as client:
        engine.answer = Answer(gap=0.05)
        answer = client.post(CHAT, json=BODY)
        assert_openai_error(answer, 503, "queue_full")
        assert f"retry after {answer.headers['retry-after']} s" in answer.json()["error"]["message"]


def test_limits_of_the_tenant_are_in_the_headers(engine: FakeEngine, tmp_path: Path) -> None:
    path = tmp_path / "tenants.toml"
    path.write_text("[tenant.a]\nrequests_per_minute = 3\ntokens_per_day = 600\n\n[tenant.free]\n")
    keys = {name: api_keys.new(path, name) for name in ("a", "free")}
    with running(engine, tenants=TenantStore(path)) as gateway:
        with gateway.client(keys["free"]) as client:
            assert not [name for name in client.post(CHAT, json=BODY).headers if name.startswith("x-ratelimit")]
        with gateway.client(keys["a"]) as client:
            left = []
            for number, stream in enumerate((True, False), 1):
                left.append(client.post(CHAT, json=BODY | {"stream": stream}).headers)
                eventually(lambda done=number: [day["a"]["requests"] for day in gateway.usage().values()] == [done])
            assert [headers["x-ratelimit-remaining-requests"] for headers in left] == ["2", "1"]
            assert (left[0]["x-ratelimit-limit-requests"], left[0]["x-ratelimit-limit-tokens"]) == ("3", "600")
            assert int(left[1]["x-ratelimit-remaining-tokens"]) < int(left[0]["x-ratelimit-remaining-tokens"]) == 600
            spent = client.post(CHAT, json=BODY)
    assert_openai_error(spent, 429, "budget_spent")
    assert spent.headers["x-should-retry"] == ("true" if int(spent.headers["retry-after"]) <= 60 else "false")


@pytest.mark.parametrize("stream", [True, False])
def test_failure_of_the_engine_forbids_a_retry(gateway: Gateway, stream: bool) -> None:
    """The film may be the cause, and each retry would stop the engine again."""
    gateway.engine.answer = Answer(status=500)
    sdk = openai.OpenAI(base_url=gateway.listeners.url, api_key="none", max_retries=2)
    with sdk, pytest.raises(openai.InternalServerError):
        sdk.chat.completions.create(model="pedcxr-demo", messages=BODY["messages"], stream=stream)
    assert len(gateway.engine.chats) == 1


def test_memory_of_a_body_is_free_while_the_report_is_written(gateway: Gateway) -> None:
    gateway.engine.answer = Answer(first=60)
    data = json.dumps(BODY).encode()
    with socket.create_connection(gateway.address, timeout=60) as plug:
        plug.sendall(
            b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (CHAT.encode(), len(data), data)
        )
        eventually(lambda: len(gateway.engine.chats) == 1)
        eventually(lambda: gateway.state.bodies.in_use == 0)
        assert not gateway.engine.chats[0].answered.is_set()
    eventually(lambda: gateway.state.in_flight == 0)
