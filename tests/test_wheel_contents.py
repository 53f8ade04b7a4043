"""The wheel holds the two packages and nothing that only the repository needs."""

from __future__ import annotations

import os
import re
import zipfile
from pathlib import Path

import pytest

import pedcxr_client
import pedcxr_serve
from tests.support import installed_wheel
from tests.support.paths import ROOT

MAX_PYTHON_LINES = 34_500  # `pedcxr bench` 2,900, gateway and engine apart 1,400, fine-tuning 1,300, adapters 1,000
DATA = {
    "pedcxr_client/py.typed",
    "pedcxr_client/evaluation/lexicon.toml",
    "pedcxr_serve/py.typed",
    *(f"pedcxr_serve/demo/checkpoint/{path.name}" for path in (ROOT / "serve/pedcxr_serve/demo/checkpoint").iterdir()),
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    if not installed_wheel.UV.exists():
        pytest.skip("uv not found beside this Python; `make setup` installs it into .venv")
    return zipfile.ZipFile(installed_wheel.build(tmp_path_factory.mktemp("wheel")))


@pytest.mark.slow
def test_the_wheel_contains_only_the_packages(wheel: zipfile.ZipFile) -> None:
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    sources = {
        str(path.relative_to(root))
        for root in (ROOT / "client", ROOT / "serve")
        for path in root.glob("pedcxr_*/**/*.py")
    }
    assert names == sources | DATA
    assert not [name for name in names if re.search(r"benchmarks|demo_training|tests?/", name)]


@pytest.mark.slow
def test_the_wheel_is_small(wheel: zipfile.ZipFile) -> None:
    lines = sum(wheel.read(name).count(b"\n") for name in wheel.namelist() if name.endswith(".py"))
    print(f"\nPython lines in the wheel: {lines:,}")
    assert lines < MAX_PYTHON_LINES


@pytest.mark.skipif("PEDCXR_TEST_WHEEL" not in os.environ, reason="only in `make test-wheel`")
def test_the_packages_under_test_are_those_of_the_wheel() -> None:
    for package in (pedcxr_client, pedcxr_serve):
        assert ROOT not in Path(package.__file__ or "").parents
