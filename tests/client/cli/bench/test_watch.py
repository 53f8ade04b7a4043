"""The processes of a server on the same machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pedcxr_client.bench import watch

PROGRAM = "import sys; sys.stdin.read()"


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["-P", "-W", "ignore", "-m", "tokenize"], "tokenize"),
        (["-B", "reader.py"], "reader.py"),
        (["-c", PROGRAM], "python"),
    ],
)
def test_a_process_is_named_after_its_module_or_script(tmp_path: Path, words: list[str], name: str) -> None:
    (tmp_path / "reader.py").write_text(PROGRAM)
    with subprocess.Popen([sys.executable, *words], stdin=subprocess.PIPE, cwd=tmp_path) as process:
        (shown,) = watch.processes(process.pid)
        process.communicate(b"")
    assert shown.name.startswith(name)
    assert (shown.pid, process.returncode) == (process.pid, 0)
    assert watch.processes(process.pid) == []
