"""The commands that `make demo` prints at its end."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from pedcxr_serve.demo import drawing, walkthrough
from pedcxr_serve.gateway.request.validation import Rules
from tests.support.servers.fake_engine import TEXT, FakeEngine
from tests.support.servers.gateway_server import running


@pytest.mark.parametrize("client", ["pedcxr", "curl", "python"])
def test_printed_commands_get_a_report(tmp_path: Path, client: str, monkeypatch: pytest.MonkeyPatch) -> None:
    film, case, *_ = walkthrough.FILMS[0]
    (tmp_path / film).write_bytes(drawing.encode_png(drawing.render(case, 1)))
    monkeypatch.setattr(sys, "argv", [str(Path(sys.executable).with_name("pedcxr-serve"))])
    text = walkthrough._next_steps(tmp_path)
    commands = {
        "pedcxr": re.search(r"^  (\S+/pedcxr report .*)$", text, re.MULTILINE),
        "curl": re.search(r"^  (\{ printf.*?-d @-)$", text, re.MULTILINE | re.DOTALL),
        "python": re.search(r"^  (\S+/python - <<'END'\n.*?\n  END)$", text, re.MULTILINE | re.DOTALL),
    }
    match = commands[client]
    assert match is not None
    command = re.sub(r"^  ", "", match[1], flags=re.MULTILINE)
    with (
        FakeEngine(uds=tmp_path / "engine.sock") as engine,
        running(engine, rules=Rules("pedcxr-demo", 500)) as gateway,
    ):
        engine.models = ("pedcxr-demo",)
        command = command.replace("http://127.0.0.1:8000", gateway.root)
        if client == "pedcxr":
            command += f" --url {shlex.quote(gateway.listeners.url)}"
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert TEXT.split("\n")[0] in done.stdout
    assert (
        engine.chats[0].json["messages"][0]["content"][0]["image_url"]["url"].startswith("data:image/png;base64,iVBOR")
    )
