"""npm's `openai`, installed from the lock beside its script, for the tests that talk JavaScript."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import ROOT

JS = ROOT / "tests/e2e/js"
JAVA = ROOT / "tests/e2e/java/Client.java"
_INSTALL_S = 120


def installed(folder: Path) -> Path:
    """The script with its package beside it; skips where neither can be had."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not here")
    for name in ("package.json", "package-lock.json", "client.mjs"):
        shutil.copy(JS / name, folder)
    command = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_INSTALL_S, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm ci took more than {_INSTALL_S} s")
    if done.returncode != 0:
        words = done.stderr.strip().splitlines()
        if "EINTEGRITY" in done.stderr or "EUSAGE" in done.stderr:
            pytest.fail("\n".join(words))
        pytest.skip(f"npm ci cannot install: {words[0] if words else 'no words'}")
    return folder / "client.mjs"


def javascript(script: Path, scenario: str, url: str, key: str) -> Any:
    """What a scenario of client.mjs prints."""
    done = subprocess.run(
        ["node", script, scenario, url, key], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
