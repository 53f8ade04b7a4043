"""A folder of films with a manifest, an output file, and an engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.client.batch.helpers import write_films
from tests.support.servers.fake_engine import FakeEngine


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    """An engine for one test: a shared engine could still receive requests that an earlier test cancelled."""
    with FakeEngine() as engine:
        yield engine


@pytest.fixture
def films(tmp_path) -> Path:
    """A folder of 12 different films, with a manifest next to it."""
    folder = write_films(tmp_path / "films", 12, "Popescu-")
    rows = [f"films/Popescu-{number}.png,case {number},{number + 1}y,F" for number in range(12)]
    (tmp_path / "manifest.csv").write_text("\n".join(["path,id,age,sex", *rows]))
    return folder


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out.jsonl"
