"""The commands of the README and the programs of docs/examples, run with only the port replaced."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pedcxr_serve.demo import expected_report, walkthrough
from tests.support.paths import ROOT
from tests.support.servers.local_server import LocalServer

pytestmark = pytest.mark.slow

README = (ROOT / "README.md").read_text()
EXAMPLES = ROOT / "docs/examples"
REPORT = expected_report.text(walkthrough.FILMS[0][1])


def shell_line(words: str) -> str:
    """The line of the README's shell blocks that holds these words."""
    blocks = re.findall(r"^```sh\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    [line] = [line for block in blocks for line in block.splitlines() if words in line]
    return line


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("newcomer")
    walkthrough.draw(folder / "demo-films")
    return folder


def run(command: list[str], text: str, folder: Path, running: LocalServer) -> str:
    """Run a program whose text is in a file; the file name is the last word of the command."""
    (folder / command[-1]).write_text(text.replace("http://127.0.0.1:8000", running.root))
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    completed = subprocess.run(
        command, capture_output=True, text=True, cwd=folder, env={**os.environ, "PATH": path}, check=False
    )
    assert completed.returncode == 0, completed.stderr
    return completed.stdout


def example(program: str, file: str, folder: Path, running: LocalServer) -> str:
    if shutil.which(program) is None:
        pytest.skip(f"no {program} here")
    return run([program, file], (EXAMPLES / file).read_text(), folder, running)


def test_curl_example(running: LocalServer, folder: Path) -> None:
    assert REPORT.replace("\n", "\\n") in example("bash", "report.sh", folder, running)


def test_openai_example(running: LocalServer, folder: Path) -> None:
    assert example(sys.executable, "report_openai.py", folder, running).strip() == REPORT


def test_client_example(running: LocalServer, folder: Path) -> None:
    assert "consolidation in the right lower zone" in example(sys.executable, "report_pedcxr.py", folder, running)


def test_javascript_example(running: LocalServer, folder: Path) -> None:
    assert example("node", "report.mjs", folder, running).strip() == REPORT


def test_java_example(running: LocalServer, folder: Path) -> None:
    assert REPORT.replace("\n", "\\n") in example("java", "Report.java", folder, running)


def test_first_report_command(running: LocalServer, folder: Path) -> None:
    line = shell_line("--stream").replace(".venv/bin/", "") + f" --url {running.url}"
    assert run(["bash", "command.sh"], line, folder, running).strip() == REPORT


def test_dry_run_commands(running: LocalServer, folder: Path) -> None:
    lines = shell_line("--dry-run").replace(" > ", f" --url {running.url} > ") + "\n" + shell_line("-d @request.json")
    assert REPORT.replace("\n", "\\n") in run(["bash", "command.sh"], lines, folder, running)
