"""Client reports against a fake engine: request, result and timing."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import threading
from typing import Any

import pytest
from PIL import Image

from pedcxr_client import (
    DISCLAIMER,
    Age,
    AsyncClient,
    Client,
    ConfigurationError,
    InputError,
    NotReport,
    RequestError,
    ServerFailed,
    Timing,
)
from pedcxr_client.films.film import prepare
from pedcxr_client.films.geometry import Preparation
from pedcxr_client.request import payload
from tests.support.servers.fake_engine import REPORT, TEXT, Answer


def test_request_body_follows_the_model_card_with_the_image_first(engine, film, twin):
    twin.report(engine.url, film, age="5y", sex="M")
    body = engine.chats[0].json
    assert body == {
        "messages": [
            {
                "role": "user",
                "content": [
                    {
                        "type": "image_url",
                        "image_url": {"url": "data:image/png;base64," + base64.b64encode(film).decode()},
                    },
                    {
                        "type": "text",
                        "text": "Generate a radiology report for this chest X-ray of a 5-year-old male.",
                    },
                ],
            }
        ],
        "model": "fake",
        "max_tokens": 500,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert engine.chats[0].headers["content-type"] == "application/json"


def test_report_attributes(engine, film, twin):
    engine.answer = Answer(headers={"x-request-id": "req-7"})
    report = twin.report(engine.url, film, age=Age(7, "M"), max_tokens=64)
    assert report.text == TEXT
    assert (report.findings, report.impression) == ("The lungs are clear.", "Normal chest.")
    assert (report.finish_reason, report.model, report.request_id, report.attempts) == ("stop", "fake", "req-7", 1)
    assert (report.usage.prompt_tokens, report.usage.completion_tokens) == (300, len(REPORT))
    assert report.prompt == "Generate a radiology report for this chest X-ray of a 7-month-old child."
    assert report.prompt_profile == "card"
    assert report.model_revision == "rev-1"
    assert report.image_sha256 == hashlib.sha256(film).hexdigest()
    assert report.image_how == ("original bytes",)
    assert report.disclaimer == DISCLAIMER
    assert report.created.tzinfo is not None
    assert not report.demo
    assert report.as_dict()["parameters"] == {"temperature": 0, "max_tokens": 64}


def test_text_is_unchanged(engine, film, twin):
    pieces = ("  \u2028Lungs\r\n", "\x85clear \U0001fac1\u00e9.\n\n ", "\tdata: [DONE]\n\n")
    engine.answer = Answer(pieces=pieces)
    assert twin.report(engine.url, film).text == "".join(pieces)


def test_stream_yields_the_pieces_and_then_the_report(engine, film, twin):
    pieces, report = twin.stream(engine.url, film, age="5y")
    assert tuple(pieces) == REPORT
    assert report.text == TEXT


def test_timing_matches_the_engine(engine, film, twin):
    engine.answer = Answer(first=0.1, gap=0.5, completion_tokens=11)
    timing = twin.report(engine.url, film).timing
    assert timing.scheduled <= timing.encoded <= timing.sent < timing.first < timing.last <= timing.done
    # The upper bounds tell seconds from milliseconds. The lower ones need no margin for `ttft`, whose start the client
    # records before it sends; the five gaps last 2.5 s, less the time by which the first piece is read late.
    assert 0.6 <= timing.ttft < 60
    assert 0.25 <= timing.last - timing.first < 60
    assert timing.tpot == pytest.approx((timing.last - timing.first) / 10)
    assert timing.e2e == pytest.approx(timing.ttft + timing.tpot * 10)
    assert timing.e2e_user - timing.e2e == pytest.approx(timing.ttft_user - timing.ttft)


def test_unknown_timing_is_none():
    assert Timing(scheduled=1.0).as_dict().keys() >= {"ttft", "tpot", "e2e"}
    assert Timing(scheduled=1.0).ttft is None
    times = {"scheduled": 0.0, "sent": 1.0, "first": 2.0}
    assert Timing(**times, last=2.0, completion_tokens=1).tpot is None
    assert Timing(**times, last=2.0, completion_tokens=30).tpot is None, "one event is not enough for a rate"
    assert Timing(**times, last=3.0).tpot is None
    assert Timing(**times, last=3.0, completion_tokens=11).tpot == pytest.approx(0.1)


def test_usage_may_be_absent(engine, film, twin):
    engine.answer = Answer(usage=False)
    report = twin.report(engine.url, film)
    assert report.usage is None
    assert report.timing.tpot is None


def test_demo_header_sets_demo(engine, film, twin):
    engine.answer = Answer(headers={"x-pedcxr-demo": "1"})
    assert twin.report(engine.url, film).demo


def test_text_that_was_written_without_the_film_is_no_report(engine, film, twin):
    """A proxy may remove the image; the server then says that it received none."""
    engine.answer = Answer(headers={"x-pedcxr-film": "none"})
    with pytest.raises(NotReport, match="received no film"):
        twin.report(engine.url, film)


def test_closing_a_stream_early_closes_the_request(engine, film, twin):
    engine.answer = Answer(stall_after=2)
    pieces, _ = twin.stream(engine.url, film, stop_after=2)
    assert len(pieces) == 2
    assert engine.chats[0].disconnected.wait(30)


def test_cancelling_a_task_closes_the_request(engine, film):
    engine.answer = Answer(stall_after=1)

    async def run() -> None:
        async with AsyncClient(engine.url) as client, client.stream(film) as stream:
            await anext(stream)
            task = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(run())
    assert engine.chats[0].disconnected.wait(30)


def test_stream_requires_a_with_block_and_complete_reading(engine, film):
    with Client(engine.url) as client:
        stream = client.stream(film)
        with pytest.raises(RuntimeError, match="with statement"):
            next(stream)
        with stream:
            with pytest.raises(RuntimeError, match="not finished"):
                _ = stream.report
            list(stream)
            assert list(stream) == []
        assert stream.report.text == TEXT


@pytest.mark.parametrize("form", ["path", "str", "bytes", "pillow", "encoded"])
def test_film_may_be_a_path_bytes_or_an_image(engine, film, form, tmp_path):
    path = tmp_path / "film.png"
    path.write_bytes(film)
    pillow = Image.open(io.BytesIO(film))
    source = {"path": path, "str": str(path), "bytes": film, "pillow": pillow, "encoded": prepare(film)}[form]
    with Client(engine.url) as client:
        report = client.report(source)
    url = engine.chats[0].json["messages"][0]["content"][0]["image_url"]["url"]
    data = base64.b64decode(url.partition(",")[2])
    assert report.image_sha256 == hashlib.sha256(data).hexdigest()
    assert Image.open(io.BytesIO(data)).tobytes() == Image.open(io.BytesIO(film)).tobytes()


TRAINED = Preparation(profile="ped-train")
SQUARE = Preparation(pad_square=True, resize="model")


@pytest.mark.parametrize(
    ("of_the_image", "of_the_request", "profile"),
    [
        (None, SQUARE, "display+square+896x896"),
        (None, TRAINED, "ped-train"),
        (SQUARE, None, "display+square+896x896"),
        (TRAINED, None, "ped-train"),
        (TRAINED, TRAINED, "ped-train"),
        (SQUARE, SQUARE, "display+square+896x896"),
        (TRAINED, SQUARE, None),
        (Preparation(), TRAINED, None),
    ],
)
def test_image_profile_is_that_of_the_sent_image(engine, film, twin, of_the_image, of_the_request, profile):
    source = film if of_the_image is None else prepare(film, of_the_image)
    options = {} if of_the_request is None else {"preparation": of_the_request}
    if profile is None:
        with pytest.raises(InputError, match="preparation: the EncodedImage was prepared as"):
            twin.report(engine.url, source, **options)
        assert not engine.chats
    else:
        assert twin.report(engine.url, source, **options).image_profile == profile


def test_model_list_sets_demo(engine, film, twin):
    engine.details = {"demo": True, "revision": "rev-1"}
    assert twin.report(engine.url, film).demo


def test_film_is_read_off_the_event_loop(engine, path, monkeypatch):
    prepare, reading, loop_runs = payload.prepare, threading.Event(), threading.Event()

    def slow(*arguments: Any) -> payload.PreparedRequest:
        reading.set()
        assert loop_runs.wait(30), "the event loop stands still while the film is read"
        return prepare(*arguments)

    async def run() -> None:
        async with AsyncClient(engine.url, model="fake") as client:
            task = asyncio.ensure_future(client.report(path))
            while not reading.is_set() and not task.done():
                await asyncio.sleep(0.001)
            loop_runs.set()
            assert (await task).text == TEXT

    monkeypatch.setattr(payload, "prepare", slow)
    asyncio.run(run())


def test_model_list_is_requested_once(engine, film):
    with Client(engine.url) as client:
        client.report(film)
        client.report(film)
    assert [request.path for request in engine.requests].count("/v1/models") == 1


def test_model_list_is_not_requested_with_a_model_name(engine, film, twin):
    assert twin.report(engine.url, film, client={"model": "other"}).model == "other"
    assert [request.path for request in engine.requests] == ["/v1/chat/completions"]


@pytest.mark.parametrize("models", [("a", "b"), ()])
def test_model_name_is_required_without_exactly_one_model(engine, film, twin, models):
    engine.models = models
    with pytest.raises(ConfigurationError, match="name one") as caught:
        twin.report(engine.url, film)
    assert all(model in str(caught.value) for model in models)


@pytest.mark.parametrize("raw", [b"<html>", b'{"data": 7}', b"[]", b'{"data'])
def test_invalid_model_list_raises(engine, film, twin, raw):
    engine.models_answer = Answer(raw=raw, content_type="application/json")
    with pytest.raises(ServerFailed, match="usually ends in /v1"):
        twin.report(engine.url, film)


@pytest.mark.parametrize(
    "arguments", [{"age": "62"}, {"age": "0y"}, {"age": 5}, {"sex": "male"}, {"sex": "m"}, {"sex": ""}]
)
def test_invalid_age_or_sex_is_not_sent(engine, film, twin, arguments):
    with pytest.raises(InputError, match=r"age|sex"):
        twin.report(engine.url, film, **arguments)
    assert not engine.requests


def test_max_tokens_must_be_positive(engine, film, twin):
    with pytest.raises(ConfigurationError, match="max_tokens"):
        twin.report(engine.url, film, max_tokens=0)


def test_openai_client_is_available(engine):
    with Client(engine.url) as client:
        answer = client.openai.chat.completions.create(model="fake", messages=[{"role": "user", "content": "hi"}])
    assert answer.choices[0].message.content == TEXT


def test_api_key_is_sent_and_openai_environment_settings_are_not(engine, film, twin, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-not-yours")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-not-yours")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-not-yours")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "Authorization: Bearer not-yours")
    twin.report(engine.url, film, client={"api_key": "key-1"})
    twin.report(engine.url, film)
    assert engine.chats[0].headers["authorization"] == "Bearer key-1"
    assert not any("not-yours" in value for request in engine.requests for value in request.headers.values())


def test_loopback_requests_bypass_the_proxy(engine, film, twin, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    assert twin.report(engine.url, film).text == TEXT


def test_tasks_can_share_a_client(engine, film):
    engine.answer = Answer(gap=0.01)

    async def run() -> list[str]:
        async with AsyncClient(engine.url) as client:
            return [report.text for report in await asyncio.gather(*(client.report(film) for _ in range(16)))]

    assert asyncio.run(run()) == [TEXT] * 16


def test_pickled_error_keeps_its_attributes():
    import pickle

    error = pickle.loads(pickle.dumps(RequestError("broke", status_code=500, text="Lungs", request_id="r")))
    assert (str(error), error.status_code, error.text, error.request_id) == ("broke", 500, "Lungs", "r")
