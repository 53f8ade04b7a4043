"""``pedcxr-serve demo``, which ``make demo`` runs."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from pedcxr_serve.demo import walkthrough
from tests.support.servers.live_server import COMMAND

pytestmark = pytest.mark.slow


def test_demo(tmp_path: Path) -> None:
    command = [COMMAND, "demo", "--port", "0", "--admin-port", "0"]
    completed = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300, check=False)
    assert completed.returncode == 0, completed.stderr
    print(completed.stdout)
    for name, _, _ in walkthrough.FILMS:
        assert (tmp_path / "demo-films" / name).is_file()
        assert name in completed.stdout
    assert completed.stdout.count("-> as drawn") == len(walkthrough.FILMS)
    assert "NOT as drawn" not in completed.stdout
    assert "normal thymus" in completed.stdout
    rows = re.findall(r"^ +(\d+) +(\d+) .* (\d+) of (\d+)$", completed.stdout, re.MULTILINE)
    assert [(int(row[0]), int(row[1])) for row in rows] == list(walkthrough.LOADS)
    assert all(int(right) >= 0.9 * int(count) for *_, right, count in rows)
    assert "pedcxr-serve start" in completed.stdout
    assert "curl" in completed.stdout
    assert "no medical use" in completed.stderr
