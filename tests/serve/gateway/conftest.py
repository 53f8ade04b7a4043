"""A gateway in front of a fake engine, new for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.servers.fake_engine import FakeEngine
from tests.support.servers.gateway_server import Gateway, running


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[FakeEngine]:
    with FakeEngine(uds=tmp_path / "engine.sock") as engine:
        yield engine


@pytest.fixture
def gateway(engine: FakeEngine) -> Iterator[Gateway]:
    with running(engine) as gateway:
        yield gateway
