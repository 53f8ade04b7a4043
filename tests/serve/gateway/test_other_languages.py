"""Common clients at a gateway with tenants: openai-python, curl, openai for Node.js, and Java's HTTP client."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from pedcxr_serve.gateway.auth import api_keys
from pedcxr_serve.gateway.auth.tenant_store import TenantStore
from pedcxr_serve.gateway.request.validation import Rules
from tests.support.languages import JAVA, installed, javascript
from tests.support.servers.fake_engine import TEXT, Answer, FakeEngine
from tests.support.servers.gateway_server import BODY, CHAT, Gateway, eventually, running

MODEL = "pedcxr-demo"
LIMIT = 2  # requests per minute


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("languages")


@pytest.fixture(scope="module")
def keys(folder: Path) -> dict[str, str]:
    """Keys by tenant."""
    path = folder / "tenants.toml"
    path.write_text(
        f"[tenant.one]\n\n[tenant.limited]\nrequests_per_minute = {LIMIT}\n\n[tenant.narrow]\nmax_concurrent = 1\n"
    )
    return {name: api_keys.new(path, name) for name in ("one", "limited", "narrow")}


@pytest.fixture(scope="module")
def shared(folder: Path, keys: dict[str, str]) -> Iterator[Gateway]:
    tenants = TenantStore(folder / "tenants.toml")
    with (
        FakeEngine(uds=folder / "engine.sock") as engine,
        running(engine, tenants=tenants, rules=Rules(MODEL, 500)) as gateway,
    ):
        yield gateway


@pytest.fixture
def gateway(shared: Gateway) -> Iterator[Gateway]:
    """After each test the gateway must have no request in flight."""
    shared.engine.reset()
    yield shared
    queue = shared.state.scheduler.queue
    eventually(lambda: (shared.state.in_flight, queue.running, queue.waiting) == (0, 0, 0))


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return installed(tmp_path_factory.mktemp("js"))


def python(gateway: Gateway, key: str, retries: int = 0) -> openai.OpenAI:
    return openai.OpenAI(base_url=gateway.root + "/v1", api_key=key, max_retries=retries, timeout=60)


def test_python(gateway: Gateway, keys: dict[str, str]) -> None:
    with python(gateway, keys["one"]) as client:
        answer = client.chat.completions.create(model=MODEL, messages=BODY["messages"])
        assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (TEXT, "stop")
        options = {"include_usage": True}
        stream = client.chat.completions.create(
            model=MODEL, messages=BODY["messages"], stream=True, stream_options=options
        )
        chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == TEXT
    assert chunks[-1].usage is not None


def test_python_closes_a_stream(gateway: Gateway, keys: dict[str, str]) -> None:
    """Closing a stream stops the engine's request and frees the tenant's only slot."""
    gateway.engine.reply(Answer(stall_after=2))
    with python(gateway, keys["narrow"]) as client:
        stream = client.chat.completions.create(model=MODEL, messages=BODY["messages"], stream=True)
        assert next(iter(stream)).choices
        with pytest.raises(openai.RateLimitError) as refused:
            client.chat.completions.create(model=MODEL, messages=BODY["messages"])
        assert refused.value.code == "too_many_concurrent" and refused.value.request_id
        stream.close()
        assert gateway.engine.chats[0].disconnected.wait(30)
        eventually(lambda: gateway.state.in_flight == 0)
        assert client.chat.completions.create(model=MODEL, messages=BODY["messages"]).choices[0].message.content == TEXT


def test_python_raises_the_error_event_of_a_stream(gateway: Gateway, keys: dict[str, str]) -> None:
    gateway.engine.answer = Answer(error_after=2)
    with python(gateway, keys["one"]) as client:
        stream = client.chat.completions.create(model=MODEL, messages=BODY["messages"], stream=True)
        with pytest.raises(openai.APIError) as failed:
            list(stream)
    assert failed.value.code == "engine_lost"


def test_error_event_has_a_name(gateway: Gateway, keys: dict[str, str]) -> None:
    """Clients that parse no JSON of an error, such as aiperf, recognise it by the name."""
    gateway.engine.answer = Answer(error_after=2)
    with gateway.client(keys["one"]) as client:
        *_, end = client.post(CHAT, json=BODY | {"stream": True}).text.strip().split("\n\n")
    name, data = end.split("\n")
    assert name == "event: error"
    assert json.loads(data.removeprefix("data: "))["error"]["code"] == "engine_lost"


def test_python_errors(gateway: Gateway) -> None:
    with python(gateway, "wrong") as client, pytest.raises(openai.AuthenticationError) as refused:
        client.chat.completions.create(model=MODEL, messages=BODY["messages"])
    assert (refused.value.code, refused.value.status_code) == ("invalid_api_key", 401)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_streams_until_ctrl_c(gateway: Gateway, keys: dict[str, str]) -> None:
    gateway.engine.answer = Answer(stall_after=2)
    command = ["curl", "-sN", gateway.root + CHAT, "-H", f"Authorization: Bearer {keys['one']}"]
    command += ["-H", "Content-Type: application/json", "-d", json.dumps(BODY | {"stream": True})]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as curl:
        assert curl.stdout is not None
        assert curl.stdout.readline().startswith("data: {"), "the first event arrives before the next one is written"
        assert gateway.state.in_flight == 1
        curl.send_signal(signal.SIGINT)
    assert gateway.engine.chats[0].disconnected.wait(30)


def test_javascript(gateway: Gateway, keys: dict[str, str], script: Path) -> None:
    url = gateway.root + "/v1"
    assert javascript(script, "sync", url, keys["one"]) == {"text": TEXT, "finish": "stop"}
    streamed = javascript(script, "stream", url, keys["one"])
    assert (streamed["text"], streamed["finish"]) == (TEXT, "stop")
    assert streamed["events"] > 5 and streamed["usage"]["completion_tokens"]


def test_javascript_aborts(gateway: Gateway, keys: dict[str, str], script: Path) -> None:
    gateway.engine.answer = Answer(stall_after=1)
    result = javascript(script, "abort", gateway.root + "/v1", keys["one"])
    assert result["aborted"] and TEXT.startswith(result["text"])
    assert gateway.engine.chats[0].disconnected.wait(30)


def test_javascript_errors(gateway: Gateway, script: Path) -> None:
    refused = javascript(script, "refused", gateway.root + "/v1", "wrong")
    assert (refused["name"], refused["api"], refused["status"]) == ("AuthenticationError", True, 401)
    assert refused["code"] == "invalid_api_key" and refused["requestID"]


def test_javascript_honours_retry_after(gateway: Gateway, keys: dict[str, str], script: Path) -> None:
    """One retry is enough, since the client honours Retry-After; its own back-off would be 0.5 s."""
    url = gateway.root + "/v1"
    with gateway.client(keys["limited"]) as client:
        began = time.monotonic()
        while client.post(CHAT, json=BODY).status_code == 200:
            assert time.monotonic() - began < 20
    refused = javascript(script, "refused", url, keys["limited"])
    assert (refused["name"], refused["status"], refused["code"]) == ("RateLimitError", 429, "rate_limited")
    assert 1 <= int(refused["retryAfter"]) <= 60
    gateway.engine.reply(Answer(status=429, headers={"retry-after": "2"}))
    patient = javascript(script, "patient", url, keys["one"])
    assert patient["text"] == TEXT and patient["seconds"] >= 2
    assert len(gateway.engine.chats) == LIMIT + 2


@pytest.mark.skipif(shutil.which("java") is None, reason="java is not installed")
def test_java(gateway: Gateway, keys: dict[str, str]) -> None:
    process = subprocess.run(
        ["java", JAVA, gateway.root + "/v1", keys["one"]], capture_output=True, text=True, timeout=240, check=False
    )
    answers = process.stdout.splitlines()
    assert [line[:4] for line in answers] == ["200 ", "200 "], process.stdout + process.stderr
    assert json.loads(answers[0][4:])["choices"][0]["message"]["content"] == TEXT
