"""Which outcomes of a request make the gateway suspect the engine, so that the supervisor checks it without delay."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
import pytest

from tests.support.servers.fake_engine import Answer, FakeEngine
from tests.support.servers.gateway_server import BODY, CHAT, Gateway, assert_openai_error, running


def send(gateway: Gateway, *, stream: bool = False) -> httpx.Response:
    with gateway.client() as client:
        return client.post(CHAT, json=BODY | {"stream": stream})


def is_suspected(gateway: Gateway) -> bool:
    return gateway.state.heartbeat.suspicion.is_set()


def test_refused_connection_makes_the_engine_suspected(tmp_path: Path) -> None:
    with running(FakeEngine(uds=tmp_path / "engine.sock")) as gateway:  # the engine does not listen
        assert not is_suspected(gateway)
        response = send(gateway)
        assert_openai_error(response, 503, "engine_restarting")
        assert int(response.headers["retry-after"]) >= 1
        assert is_suspected(gateway)


def test_request_waits_for_the_check_after_a_refused_connection(tmp_path: Path) -> None:
    with running(FakeEngine(uds=tmp_path / "engine.sock")) as gateway:
        send(gateway)
        start = time.monotonic()
        assert_openai_error(send(gateway), 503, "engine_restarting")
        assert time.monotonic() - start >= 0.9  # no supervisor checks this engine, so the wait of 1 s expires


TRUNCATED = Answer(raw=b"{}", content_type="application/json", headers={"content-length": "999"})


@pytest.mark.parametrize(
    ("answer", "stream"),
    [
        (Answer(status=500), False),
        (TRUNCATED, False),
        (Answer(cut_after=2), True),
        (Answer(error_after=2), True),
        (Answer(done=False), True),
    ],
    ids=["status 500", "truncated response", "cut stream", "error event", "unfinished stream"],
)
def test_broken_response_makes_the_engine_suspected(tmp_path: Path, answer: Answer, stream: bool) -> None:
    with FakeEngine(uds=tmp_path / "engine.sock") as engine, running(engine) as gateway:
        engine.answer = answer
        response = send(gateway, stream=stream)
        assert "engine_lost" in response.text
        assert is_suspected(gateway)


@pytest.mark.parametrize(
    ("answer", "stream"),
    [
        (Answer(), False),
        (Answer(), True),
        (Answer(finish="length"), True),
        (Answer(finish="abort"), False),
        (Answer(status=400), False),
        (Answer(status=503), False),
    ],
    ids=["complete", "complete stream", "length", "aborted", "status 400", "status 503"],
)
def test_valid_response_does_not_make_the_engine_suspected(tmp_path: Path, answer: Answer, stream: bool) -> None:
    with FakeEngine(uds=tmp_path / "engine.sock") as engine, running(engine) as gateway:
        engine.answer = answer
        send(gateway, stream=stream)
        assert not is_suspected(gateway)
