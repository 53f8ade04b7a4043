"""The exact JSON of a request from Python, from the command line and from the README's examples.

``pedcxr report demo-films/pneumonia-6y.png --age 6y --sex M --model pedcxr-demo --dry-run`` wrote the golden file from
the film in it, which was drawn with Pillow.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pedcxr_client import BlockedFilm, InputError, Preparation
from pedcxr_client.cli.main import main
from tests.support.fake_engine import TEXT
from tests.support.paths import ROOT

GOLDEN = (Path(__file__).parent / "golden/payload.json").read_bytes()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)


def block(language: str, words: str) -> str:
    [text] = [text for name, text in BLOCKS if name == language and words in text]
    return text


@pytest.fixture
def tiny() -> bytes:
    """The film in the golden file."""
    url = json.loads(GOLDEN)["messages"][0]["content"][0]["image_url"]["url"]
    return base64.b64decode(url.removeprefix("data:image/png;base64,"))


@pytest.fixture
def folder(tmp_path, tiny) -> Path:
    (tmp_path / "demo-films").mkdir()
    (tmp_path / "demo-films/pneumonia-6y.png").write_bytes(tiny)
    return tmp_path


def test_payload_equals_the_body_that_report_sends(engine, film, twin):
    options = {
        "age": "5y",
        "sex": "F",
        "max_tokens": 77,
        "preparation": Preparation(resize="model", model_size=(64, 64)),
    }
    payload = twin.payload(engine.url, film, **options)
    assert [request.path for request in engine.requests] == ["/v1/models"]
    twin.report(engine.url, film, **options)
    assert engine.chats[0].body == payload


def test_payload_with_a_model_name_sends_no_request(engine, film, twin):
    payload = json.loads(twin.payload(engine.url, film, client={"model": "x"}, stream=False))
    assert payload["model"] == "x"
    assert not {"stream", "stream_options"} & payload.keys()
    assert not engine.requests


def test_payload_raises_for_invalid_and_blocked_films(engine, film, twin):
    with pytest.raises(InputError, match="age"):
        twin.payload(engine.url, film, age="62")
    with pytest.raises(BlockedFilm):
        twin.payload(engine.url, film, age="30y")
    assert "/v1/chat/completions" not in {request.path for request in engine.requests}


def test_dry_run_prints_the_golden_file(folder, tiny, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    line = ["report", "demo-films/pneumonia-6y.png", "--age", "6y", "--sex", "M", "--model", "pedcxr-demo", "--dry-run"]
    assert main(line) == 0
    assert capsys.readouterr().out.encode() == GOLDEN
    assert main([*line, "--stream"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(GOLDEN) | {
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert main([*line, "--json"]) == 2


def example(language: str, words: str, command: list[str], folder: Path, url: str) -> str:
    text = block(language, words).replace("http://127.0.0.1:8000/v1", url)
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    process = subprocess.run(
        command, input=text, capture_output=True, text=True, cwd=folder, env=environment, check=False, timeout=60
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.mark.parametrize(
    ("language", "words", "command"),
    [
        pytest.param("sh", "# curl", ["bash"], id="curl"),
        pytest.param("javascript", "fetch(", ["node", "--input-type=module", "-"], id="javascript"),
        pytest.param("python", "import base64, openai", [sys.executable, "-"], id="openai"),
    ],
)
def test_readme_examples_send_the_golden_file(engine, folder, language, words, command):
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    output = example(language, words, command, folder, engine.url)
    assert TEXT.splitlines()[0] in output
    assert engine.chats[0].json == json.loads(GOLDEN)


def test_dry_run_output_can_be_posted_with_curl(engine, folder, capsys, monkeypatch):
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    (folder / "request.json").write_bytes(GOLDEN)
    line = next(line for line in block("sh", "> request.json").splitlines() if line.startswith("curl"))
    line = line.replace("http://127.0.0.1:8000/v1", engine.url)
    process = subprocess.run(["bash", "-c", line], capture_output=True, text=True, cwd=folder, check=True)
    assert json.loads(process.stdout)["choices"][0]["message"]["content"] == TEXT
    assert engine.chats[0].json == json.loads(GOLDEN)
