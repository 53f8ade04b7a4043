"""The exact JSON of a request: from Python, from the shell, and as the programs of docs/examples send it.

``pedcxr report demo-films/pneumonia-6y.png --age 6y --sex M --model pedcxr-demo --dry-run`` wrote the golden file from
the film in it, which was drawn with Pillow.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pedcxr_client import BlockedFilm, InputError, Preparation
from pedcxr_client.cli.main import main
from tests.support.paths import ROOT
from tests.support.servers.fake_engine import TEXT

GOLDEN = (Path(__file__).parent / "golden/payload.json").read_bytes()
EXAMPLES = ROOT / "docs/examples"
README = (ROOT / "README.md").read_text()


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


@pytest.mark.parametrize(
    ("file", "command"),
    [
        pytest.param("report.sh", ["bash"], id="curl"),
        pytest.param("report.mjs", ["node"], id="javascript"),
        pytest.param("report_openai.py", [sys.executable], id="openai"),
        pytest.param("Report.java", ["java"], id="java"),
    ],
)
def test_example_programs_send_the_golden_file(engine, folder, file, command):
    if shutil.which(command[0]) is None:
        pytest.skip(f"no {command[0]} here")
    program = folder / file
    program.write_text((EXAMPLES / file).read_text().replace("http://127.0.0.1:8000/v1", engine.url))
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    completed = subprocess.run(
        [*command, program], capture_output=True, text=True, cwd=folder, env=environment, check=False, timeout=60
    )
    assert completed.returncode == 0, completed.stderr
    assert TEXT.splitlines()[0] in completed.stdout
    assert engine.chats[0].json == json.loads(GOLDEN)


def test_a_dry_run_can_be_posted_as_it_is(engine, folder, capsys, monkeypatch):
    """The README posts the output of --dry-run with curl."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    (folder / "request.json").write_bytes(GOLDEN)
    [line] = [line for line in README.splitlines() if line.endswith("-d @request.json")]
    line = line.replace("http://127.0.0.1:8000/v1", engine.url)
    process = subprocess.run(["bash", "-c", line], capture_output=True, text=True, cwd=folder, check=True)
    assert json.loads(process.stdout)["choices"][0]["message"]["content"] == TEXT
    assert engine.chats[0].json == json.loads(GOLDEN)
