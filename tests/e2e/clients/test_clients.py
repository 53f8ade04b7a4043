"""Packages that speak OpenAI's API, each in its own idiom: the report, the film that the engine gets, the errors."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.e2e.clients.conftest import ClientProcess
from tests.support.servers.fake_engine import TEXT, Answer
from tests.support.servers.gateway_server import Gateway, eventually, sent_messages

SCRIPTS = (
    "autogen_client.py",
    "langchain_client.py",
    "litellm_client.py",
    "llama_index_client.py",
    "openai_client.py",
    "pydantic_ai_client.py",
    "langchain_client.mjs",
    "openai_client.mjs",
    "vercel_client.mjs",
)
ENCODES_AGAIN = {"autogen_client.py"}  # its class Image holds pixels, not the file
pytestmark = [pytest.mark.slow, pytest.mark.parametrize("client", SCRIPTS, indirect=True)]


@pytest.fixture(autouse=True)
def idle(gateway: Gateway, client: ClientProcess) -> Any:
    """After each test the gateway must have no request in flight."""
    yield
    eventually(lambda: gateway.state.in_flight == 0)


def test_connection_test(gateway: Gateway, client: ClientProcess) -> None:
    assert client.run("connection") == {"returned": TEXT}
    assert gateway.engine.chats[0].json["max_tokens"] == 5


@pytest.mark.parametrize("scenario", ["whole", "stream"])
def test_report(gateway: Gateway, client: ClientProcess, film: Path, scenario: str) -> None:
    assert client.run(scenario) == {"returned": TEXT}
    (sent,) = gateway.engine.chats
    assert bool(sent.json.get("stream")) == (scenario == "stream")
    system, user = sent_messages(sent)
    assert system == {"role": "system", "content": "You are a radiologist."}
    assert_film_and_text(user, film, client.script)


def test_two_turns(gateway: Gateway, client: ClientProcess, film: Path) -> None:
    assert client.run("two_turns") == {"returned": [TEXT, TEXT]}
    _, sent = gateway.engine.chats
    _, user, assistant, question = sent_messages(sent)
    assert_film_and_text(user, film, client.script)
    assert assistant == {"role": "assistant", "content": TEXT}
    assert question == {"role": "user", "content": "Is there an effusion?"}


def test_request_without_a_film_raises(gateway: Gateway, client: ClientProcess) -> None:
    errors = client.run("no_film")["raised"]
    assert (400, "film_missing") in [(error["status"], error["code"]) for error in errors]
    assert gateway.engine.chats == []


@pytest.mark.parametrize("broken", [Answer(error_after=2), Answer(cut_after=2)], ids=["error event", "cut"])
def test_stream_that_breaks_raises(gateway: Gateway, client: ClientProcess, broken: Answer) -> None:
    gateway.engine.answer = broken
    errors = client.run("stream")["raised"]
    assert any("the engine stopped before the report was complete" in error["message"] for error in errors)


def assert_film_and_text(message: dict[str, Any], film: Path, script: str) -> None:
    """Check that the film is before the text: its bytes, or its pixels if the client encodes it again."""
    image, text = message["content"]
    assert text == {"type": "text", "text": "Generate a report."}
    kind, data = image["image_url"]["url"].split(",")
    assert kind == "data:image/png;base64"
    received = base64.b64decode(data)
    if script not in ENCODES_AGAIN:
        assert received == film.read_bytes()
    else:
        assert Image.open(io.BytesIO(received)).convert("L").tobytes() == Image.open(film).tobytes()
