"""The npm package `openai`, installed from a lock file beside a script, for tests of JavaScript clients."""

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
    """Install the package beside the script; skip the test if node, npm or the package is not available."""
    install(JS, folder, "client.mjs")
    return folder / "client.mjs"


def install(source: Path, folder: Path, *scripts: str) -> None:
    """Copy the scripts and install the locked packages; skip the test if node, npm or a package is not available."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not installed")
    for name in ("package.json", "package-lock.json", *scripts):
        shutil.copy(source / name, folder)
    command = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error", "--prefer-offline"]
    try:
        completed = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_INSTALL_S, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm ci took more than {_INSTALL_S} s")
    if completed.returncode != 0:
        lines = completed.stderr.strip().splitlines()
        if "EINTEGRITY" in completed.stderr or "EUSAGE" in completed.stderr:
            pytest.fail("\n".join(lines))
        pytest.skip(f"npm ci cannot install: {lines[0] if lines else 'no message'}")


def javascript(script: Path, scenario: str, url: str, key: str) -> Any:
    """Run a scenario of client.mjs and return the JSON that it prints."""
    completed = subprocess.run(
        ["node", script, scenario, url, key], capture_output=True, text=True, timeout=120, check=False
    )
    assert completed.returncode == 0, completed.stderr
    return json.loads(completed.stdout)
