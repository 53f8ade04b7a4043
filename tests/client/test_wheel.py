"""The built wheel without extras in a new environment: the client and its dependencies only."""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

UV = Path(sys.executable).with_name("uv")
NOT_INSTALLED = ("torch", "vllm", "transformers", "starlette", "numpy")


def run(*command: str | Path, **options: object) -> str:
    process = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **options)
    assert process.returncode == 0, process.stderr[-2000:]
    return process.stdout


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the Python of a new environment with the wheel and its locked dependencies."""
    if not UV.exists():
        pytest.skip("uv is not installed beside this Python; `make setup` installs it into .venv")
    folder = tmp_path_factory.mktemp("wheel")
    run(UV, "build", "--wheel", "--out-dir", folder, ROOT)
    run(UV, "venv", "--python", sys.executable, folder / "venv")
    python = folder / "venv/bin/python"
    # pip checks either all hashes or none, and the new wheel has none, so the lock's hashes are removed.
    pins = re.findall(r"^\S+==\S+", (ROOT / "locks/cpu.txt").read_text(), re.MULTILINE)
    (folder / "pins.txt").write_text("\n".join(pins))
    run(UV, "pip", "install", "--python", python, "-c", folder / "pins.txt", next(folder.glob("*.whl")))
    return python


@pytest.mark.slow
def test_wheel_installs_only_the_client(fresh, film, engine, tmp_path):
    installed = {entry["name"] for entry in json.loads(run(UV, "pip", "list", "--python", fresh, "--format", "json"))}
    assert not installed & set(NOT_INSTALLED)
    path = tmp_path / "film.png"
    path.write_bytes(film)
    command = fresh.with_name("pedcxr")
    assert run(command, "--version").startswith("pedcxr ")
    assert json.loads(run(command, "report", path, "--url", engine.url, "--json"))["findings"]


@pytest.mark.slow
def test_wheel_imports_quickly(fresh, capsys):
    code = "import time; t = time.process_time(); import pedcxr_client; print(time.process_time() - t)"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    # Processor time: on a busy machine the process waits for others.
    seconds = [float(run(fresh, "-c", code, env=environment)) for _ in range(6)][1:]
    with capsys.disabled():
        print(f"\nimport pedcxr_client from the wheel: {statistics.median(seconds) * 1000:.0f} ms (median of 5)")
    assert statistics.median(seconds) < 1
    heavy = run(fresh, "-c", f"import importlib.util as u; print([m for m in {NOT_INSTALLED} if u.find_spec(m)])")
    assert heavy.strip() == "[]"
