"""Resolve models against a local server that returns the error responses of the Hugging Face hub."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pedcxr_serve.checkpoint import download
from pedcxr_serve.errors import ConfigError

SHA = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b"{}",
    "model.safetensors": b"weights",
    "optimizer.pt": b"not served",
    "README.md": b"not served",
}
ERROR_RESPONSES = {
    "gated/model": (403, "GatedRepo"),
    "absent/model": (401, "RepoNotFound"),
    "good/model/revision/nope": (404, "RevisionNotFound"),
    "broken/model": (500, None),
}


class Hub(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.answer()

    def do_HEAD(self) -> None:
        self.answer()

    def answer(self) -> None:
        for part, (status, code) in ERROR_RESPONSES.items():
            if part in self.path:
                return self.reply(status, b"{}", {"X-Error-Code": code} if code else {})
        if "/tree/" in self.path:
            entries = [{"type": "file", "path": k, "size": len(v), "oid": self.etag(v)} for k, v in FILES.items()]
            return self.reply(200, json.dumps(entries).encode(), {})
        if "/resolve/" in self.path:
            data = FILES[self.path.rpartition("/")[2]]
            return self.reply(200, data, {"ETag": f'"{self.etag(data)}"', "X-Repo-Commit": SHA})
        siblings = [{"rfilename": name} for name in FILES]
        body = {"id": "x/y", "sha": SHA, "siblings": siblings, "tags": [], "private": False, "downloads": 0}
        return self.reply(200, json.dumps(body).encode(), {})

    def etag(self, data: bytes) -> str:
        return hashlib.sha1(data).hexdigest()

    def reply(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


# huggingface_hub reads its environment at import, so each environment needs its own process.
SCRIPT = """
import json, sys
from pedcxr_serve.checkpoint import download
from pedcxr_serve.errors import ConfigError
answers = {}
for model, revision in json.loads(sys.argv[1]):
    try:
        answers[model] = str(download.resolve(model, revision))
    except ConfigError as error:
        answers[model] = f"{error.exit_code} {type(error.__cause__).__name__}: {error}"
print(json.dumps(answers))
"""


def answers(models: list[tuple[str, str | None]], cache: Path, **env: str) -> dict[str, str]:
    base = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    base |= {"HF_HOME": str(cache), "HF_HUB_DISABLE_PROGRESS_BARS": "1", "PYTHONPATH": os.pathsep.join(sys.path), **env}
    command = [sys.executable, "-c", SCRIPT, json.dumps(models)]
    process = subprocess.run(command, env=base, capture_output=True, text=True, check=True, cwd=cache)
    return dict(json.loads(process.stdout.splitlines()[-1]))


def test_errors_of_the_hub_have_helpful_messages(endpoint: str, tmp_path: Path) -> None:
    models = [("gated/model", None), ("absent/model", None), ("good/model", "nope"), ("broken/model", None)]
    messages = answers(models, tmp_path, HF_ENDPOINT=endpoint)

    assert messages["gated/model"].startswith("2 GatedRepoError: model = 'gated/model': the repository is gated")
    assert f"{endpoint}/gated/model" in messages["gated/model"]
    assert "HF_TOKEN" in messages["gated/model"]
    assert "no such repository" in messages["absent/model"]
    assert "no local folder of that name" in messages["absent/model"]
    assert "revision = 'nope': the repository has no such revision" in messages["good/model"]
    assert "the hub answered 500" in messages["broken/model"]


def test_download_contains_only_files_for_serving(endpoint: str, tmp_path: Path) -> None:
    folder = Path(answers([("good/model", None)], tmp_path, HF_ENDPOINT=endpoint)["good/model"])

    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        name: FILES[name] for name in ("config.json", "model.safetensors")
    }
    assert Path(answers([("good/model", None)], tmp_path, HF_HUB_OFFLINE="1")["good/model"]) == folder


def test_offline_mode_and_unreachable_hub_have_different_messages(tmp_path: Path) -> None:
    offline = answers([("some/model", None)], tmp_path, HF_HUB_OFFLINE="1")["some/model"]
    unreachable = answers([("some/model", None)], tmp_path, HF_ENDPOINT="http://127.0.0.1:9")["some/model"]

    assert "HF_HUB_OFFLINE is set" in offline
    assert "the hub is unreachable" in unreachable
    for message in (offline, unreachable):
        assert message.startswith("2 ")
        assert "hf download some/model" in message


@pytest.mark.parametrize("model", ["./absent", "/absent/folder", "~/absent", "a/b/c", "medgemma", "", "a b/c", "-x/y"])
def test_invalid_names_are_reported_as_missing_folders(model: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such folder|config\.json") as raised:
        download.resolve(model if model else str(tmp_path / "absent"))
    assert raised.value.exit_code == 2


def test_folder_resolves_to_itself_and_rejects_a_revision(tmp_path: Path) -> None:
    assert download.resolve(str(tmp_path)) == tmp_path.resolve()
    with pytest.raises(ConfigError, match="revision = 'main'"):
        download.resolve(str(tmp_path), "main")


def test_file_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ConfigError, match="Give the folder"):
        download.resolve(str(tmp_path / "model.safetensors"))
