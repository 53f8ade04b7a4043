"""The README's examples, run as they stand but for the port."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pedcxr_serve.demo import expected_report, walkthrough
from tests.benchmarks.local_server import LocalServer
from tests.support.paths import ROOT

pytestmark = pytest.mark.slow

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
RIGHT = expected_report.text(walkthrough.FILMS[0][1])


def block(language: str, words: str) -> str:
    [found] = [text for name, text in BLOCKS if name == language and words in text]
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("newcomer")
    walkthrough.draw(folder / "demo-films")
    return folder


def run(command: list[str], text: str, folder: Path, running: LocalServer) -> str:
    text = text.replace("http://127.0.0.1:8000", running.root)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        command, input=text, capture_output=True, text=True, cwd=folder, env={**os.environ, "PATH": path}, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_curl(running: LocalServer, folder: Path) -> None:
    assert RIGHT.replace("\n", "\\n") in run(["bash"], block("sh", "# curl"), folder, running)


def test_plain_openai(running: LocalServer, folder: Path) -> None:
    assert run([sys.executable, "-"], block("python", "import base64, openai"), folder, running).strip() == RIGHT


def test_our_client(running: LocalServer, folder: Path) -> None:
    printed = run([sys.executable, "-"], block("python", "pedcxr_client"), folder, running)
    assert "consolidation in the right lower zone" in printed


@pytest.mark.skipif(shutil.which("node") is None, reason="no node here")
def test_javascript(running: LocalServer, folder: Path) -> None:
    command = ["node", "--input-type=module", "-"]
    assert run(command, block("javascript", "fetch("), folder, running).strip() == RIGHT


def test_the_command(running: LocalServer, folder: Path) -> None:
    line = next(line for line in block("sh", "pedcxr-serve start\n").splitlines() if "pedcxr report" in line)
    line = line.replace(".venv/bin/", "") + f" --url {running.url}"
    assert run(["bash"], line, folder, running).strip() == RIGHT


def test_a_first_report_within_thirty_lines() -> None:
    head = README.splitlines()[:30]
    assert any("make demo" in line for line in head)
    assert any("pedcxr report" in line for line in head)
