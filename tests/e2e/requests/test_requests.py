"""Valid and invalid requests to a real server over HTTP."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from pedcxr_client import Client
from pedcxr_client.films.age import Age
from pedcxr_serve.demo import drawing, expected_report
from pedcxr_serve.demo.findings import Case, Finding, Kind
from tests.e2e.served_reports import Study, served
from tests.serve.vllm_plugin.test_image_decoder import png_header
from tests.support.servers.local_server import LocalServer

pytestmark = pytest.mark.slow

CHAT = "/v1/chat/completions"
CASE = Case(Age(6, "Y"), "M", (Finding(Kind.CONSOLIDATION, "right", "lower"),))
PNG = drawing.encode_png(drawing.render(CASE, 11))
PROMPT = "Generate a radiology report for this chest X-ray of a 6-year-old male."


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64," + base64.b64encode(data).decode()


def image(url: str) -> dict[str, object]:
    return {"type": "image_url", "image_url": {"url": url}}


def body(*content: dict[str, object], text: str = PROMPT, **fields: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": [*content, {"type": "text", "text": text}]}], **fields}


def deep_png() -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((64, 64), 3000, np.uint16)).save(out, "PNG")
    return out.getvalue()


BAD: dict[str, tuple[dict[str, object], int, str]] = {
    "remote URL": (body(image("http://127.0.0.1:9/film.png")), 400, "data:"),
    "https URL": (body(image("https://example.org/film.png")), 400, "data:"),
    "file URL": (body(image("file:///etc/hostname")), 400, "data:"),
    "corrupt base64": (body(image("data:image/png;base64,@@@@")), 400, "base64"),
    "no base64": (body(image("data:image/png,abc")), 400, "base64"),
    "empty image": (body(image("data:image/png;base64,")), 400, "empty"),
    "not an image": (body(image(data_url(b"hello"))), 400, "PNG or JPEG"),
    "16-bit PNG": (body(image(data_url(deep_png()))), 400, "8 bits"),
    "30,000 x 30,000 header": (body(image(data_url(png_header(30_000, 30_000)))), 400, "too large"),
    "two images": (body(image(data_url(PNG)), image(data_url(PNG))), 400, "image"),
    "prompt over the context": (
        body(image(data_url(PNG)), text="chest " * 5000),
        400,
        "longer than the model's context",
    ),
    "unknown model": (body(image(data_url(PNG)), model="gpt-5"), 404, "/v1/models"),
    "no messages": ({}, 400, "messages"),
}


@pytest.fixture(scope="module")
def client(running: LocalServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=running.root, timeout=60) as client:
        yield client


@pytest.fixture(autouse=True)
def _other_requests_are_unaffected(client: httpx.Client) -> object:
    yield
    answer = client.post(CHAT, json=body(image(data_url(PNG))))
    assert answer.json()["choices"][0]["message"]["content"] == expected_report.text(CASE)


@pytest.mark.parametrize("name", BAD)
def test_bad_requests_get_an_openai_error(client: httpx.Client, name: str) -> None:
    payload, status, words = BAD[name]
    answer = client.post(CHAT, json=payload)
    error = answer.json()["error"]
    assert answer.status_code == status, error
    assert {"message", "type", "param", "code"} <= set(error)
    assert re.search(words, error["message"]), error
    assert answer.headers["x-request-id"]
    assert answer.elapsed.total_seconds() < 20, "no time limit ends it"


def test_invalid_json(client: httpx.Client) -> None:
    answer = client.post(CHAT, content=b'{"messages": [', headers={"Content-Type": "application/json"})
    assert (answer.status_code, "JSON" in answer.json()["error"]["message"]) == (400, True)


def test_a_body_of_40_mb(client: httpx.Client) -> None:
    answer = client.post(CHAT, json=body(image(data_url(bytes(30_000_000)))))
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")


def test_text_only_request(client: httpx.Client) -> None:
    """Only a connection test may have no film: the model would invent a report."""
    assert client.post(CHAT, json=body()).json()["error"]["code"] == "film_missing"
    answer = client.post(CHAT, json=body(text="hi", max_tokens=16))
    assert answer.json()["choices"][0]["message"]["role"] == "assistant"
    assert answer.headers["x-pedcxr-film"] == "none"


def test_text_before_the_film_gives_the_same_tokens(client: httpx.Client) -> None:
    """Most clients and load testers put the text first, the fine-tuning the film."""
    film_first = body(image(data_url(PNG)), return_token_ids=True)
    system = {"role": "system", "content": [{"type": "text", "text": "Report"}, {"type": "text", "text": "children."}]}
    [user] = film_first["messages"]  # type: ignore[misc]
    text_first = {**film_first, "messages": [{"role": "user", "content": user["content"][::-1]}]}
    first, second = (client.post(CHAT, json=each).json() for each in (film_first, text_first))
    assert first["prompt_token_ids"] == second["prompt_token_ids"]
    assert first["choices"][0]["token_ids"] == second["choices"][0]["token_ids"]
    joined = {"role": "system", "content": "Report\nchildren."}
    parts, whole = (
        client.post(CHAT, json={**film_first, "messages": [each, user]}).json() for each in (system, joined)
    )
    assert parts["prompt_token_ids"] == whole["prompt_token_ids"] != first["prompt_token_ids"]


def test_a_refused_film_is_not_logged(running: LocalServer, client: httpx.Client) -> None:
    client.post(CHAT, json=body(image("https://example.org/SURNAME-John.png")))
    client.post(CHAT, json=body(image(data_url(b"SURNAME"))), headers={"X-Request-Id": "SURNAME^John"})
    assert "SURNAME" not in running.log.read_text()


def test_demo_reports_are_marked(client: httpx.Client) -> None:
    answer = client.post(CHAT, json=body(image(data_url(PNG))))
    assert (answer.headers["x-pedcxr-demo"], answer.json()["model"]) == ("1", "pedcxr-demo")


def test_the_python_client(running: LocalServer, tmp_path: Path) -> None:
    film = tmp_path / "film.png"
    film.write_bytes(PNG)
    with Client(running.url) as client:
        report = client.report(film, age="6y", sex="M")
    assert (report.text, report.demo, report.finish_reason) == (expected_report.text(CASE), True, "stop")
    assert report.timing.ttft is not None
    assert report.impression == expected_report.text(CASE).rpartition("IMPRESSION: ")[2]


def test_the_report_command(running: LocalServer, tmp_path: Path) -> None:
    film = tmp_path / "film.png"
    film.write_bytes(PNG)
    command = [
        str(Path(sys.executable).parent / "pedcxr"),
        "report",
        str(film),
        "--age",
        "6y",
        "--sex",
        "M",
        "--url",
        running.url,
    ]
    completed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (completed.returncode, completed.stdout.strip()) == (0, expected_report.text(CASE))
    assert "synthetic" in completed.stderr


def test_openai_python_streams(running: LocalServer) -> None:
    with openai.OpenAI(base_url=running.url, api_key="none") as client:
        chunks = list(
            client.chat.completions.create(
                model="pedcxr-demo",
                messages=body(image(data_url(PNG)))["messages"],
                stream=True,
                stream_options={"include_usage": True},
            )
        )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == expected_report.text(CASE)
    assert len(chunks) > 10
    assert chunks[-1].usage is not None and not chunks[-1].choices
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_metrics_include_gateway_and_engine(running: LocalServer, client: httpx.Client) -> None:
    page = httpx.get(running.metrics_url, timeout=60).text
    assert "pedcxr_ready 1.0" in page
    assert 'vllm:num_requests_running{engine="0",model_name="pedcxr-demo"}' in page
    assert client.get("/metrics").status_code == 404


def test_raw_json_and_openai_python_agree(client: httpx.Client, running: LocalServer, tmp_path: Path) -> None:
    film = tmp_path / "film.png"
    film.write_bytes(PNG)
    raw = client.post(CHAT, content=json.dumps(body(image(data_url(PNG)))).encode()).json()
    [by_openai] = served(running.url, [Study(film, PROMPT)], 1)
    assert raw["choices"][0]["message"]["content"] == by_openai.choices[0].message.content
