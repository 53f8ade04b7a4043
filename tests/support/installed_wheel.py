"""Run tests against the built wheel instead of the checkout's sources.

python -m tests.support.installed_wheel suite          # the tests without vLLM, on this interpreter
python -m tests.support.installed_wheel interpreters   # the client's tests, on Python 3.12 and 3.13 where present
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from tests.support.paths import ROOT

UV = Path(sys.executable).with_name("uv")
OTHER_VERSIONS = ("3.12", "3.13")
CLIENT_EXTRAS = "bench,dicom,eval,serve"  # the fake engine of the client's tests runs on uvicorn
TEST_TOOLS = ("fhir.resources", "httpx", "hypothesis", "pytest", "pytest-timeout", "pytest-xdist", "pyyaml", "scipy")

PARALLEL = ("-n", "3", "--dist", "loadfile")


def build(folder: Path) -> Path:
    """Build the wheel into a folder and return its path."""
    _run(UV, "build", "--quiet", "--wheel", "--out-dir", folder, ROOT)
    return next(folder.glob("*.whl"))


def pins(folder: Path) -> Path:
    """Write the locked versions, without hashes, as constraints: a wheel that was just built has no hash."""
    path = folder / "pins.txt"
    text = "".join((ROOT / f"locks/{name}.txt").read_text() for name in ("cpu", "dev"))
    path.write_text("\n".join(dict.fromkeys(re.findall(r"^\S+==\S+", text, re.MULTILINE))))
    return path


def suite(folder: Path) -> int:
    """Run the tests without vLLM on the wheel; every other package comes from the environment of this interpreter."""
    python = _environment(sys.executable, folder / "suite")
    site = Path(_output(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"))
    # A path file inside a folder that is added by a path file is not read: the editable install stays out.
    (site / "shared_packages.pth").write_text(sysconfig.get_path("purelib") + "\n")
    _run(UV, "pip", "install", "--quiet", "--python", python, "--no-deps", build(folder))
    # These import demo_training, which the wheel leaves out.
    training = [f"--ignore=tests/{path}" for path in ("serve/demo/test_checkpoint.py", "e2e/finetune")]
    return _pytest(python, "tests", "--ignore=tests/client/test_wheel.py", *training)


def interpreters(folder: Path) -> int:
    """Run the client's tests on the other supported interpreters; skip the ones that this machine lacks."""
    wheel, constraints, status = build(folder), pins(folder), 0
    for version in OTHER_VERSIONS:
        interpreter = _interpreter(version)
        if interpreter is None:
            print(f"Python {version}: not found, skipped", flush=True)
            continue
        python = _environment(interpreter, folder / version)
        packages = (f"{wheel}[{CLIENT_EXTRAS}]", *TEST_TOOLS)
        _run(UV, "pip", "install", "--quiet", "--python", python, "-c", constraints, *packages)
        print(f"Python {version}: tests/client", flush=True)
        status |= _pytest(python, "tests/client", "--ignore=tests/client/test_wheel.py")
    return status


def _interpreter(version: str) -> str | None:
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    candidates = [shutil.which(f"python{version}"), *map(str, sorted(pyenv.glob(f"versions/{version}.*/bin/python")))]
    for candidate in filter(None, candidates):
        if subprocess.run([candidate, "-c", "import venv"], capture_output=True, check=False).returncode == 0:
            return candidate
    return None


def _environment(interpreter: str, folder: Path) -> Path:
    _run(UV, "venv", "--quiet", "--no-python-downloads", "--python", interpreter, folder)
    return folder / "bin/python"


def _pytest(python: Path, *arguments: str) -> int:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["PEDCXR_TEST_WHEEL"] = "1"
    command = [python, "-m", "pytest", "-q", "-m", "not slow", *PARALLEL, "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


def _run(*command: str | Path) -> None:
    subprocess.run([str(part) for part in command], check=True)


def _output(*command: str | Path) -> str:
    return subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout.strip()


def main() -> int:
    """Run one of the two commands; return pytest's exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.installed_wheel", description=__doc__)
    parser.add_argument("command", choices=("suite", "interpreters"))
    command = {"suite": suite, "interpreters": interpreters}[parser.parse_args().command]
    with tempfile.TemporaryDirectory(prefix="pedcxr-wheel-") as folder:
        return command(Path(folder))


if __name__ == "__main__":
    sys.exit(main())
