"""Fixtures of the tests of other clients: each in a process of its own, with its own packages, at a real gateway."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest

from pedcxr_serve.demo import drawing
from pedcxr_serve.demo.findings import sample
from pedcxr_serve.gateway.auth import api_keys
from pedcxr_serve.gateway.auth.tenant_store import TenantStore
from pedcxr_serve.gateway.request.validation import Rules
from tests.support import languages
from tests.support.paths import ROOT
from tests.support.servers.fake_engine import FakeEngine
from tests.support.servers.gateway_server import Gateway, running

HERE = Path(__file__).parent
PYTHON = ROOT / ".venv/clients/bin/python"
MODEL = "pedcxr-demo"


@dataclass
class ClientProcess:
    """A client's script, which runs one scenario at a time."""

    script: str
    process: subprocess.Popen[str]
    log: Path

    def run(self, scenario: str) -> dict[str, Any]:
        """Return ``{"returned": ...}`` or ``{"raised": [the exception, its cause, ...]}``."""
        assert self.process.stdin is not None
        self.process.stdin.write(scenario + "\n")
        self.process.stdin.flush()
        result: dict[str, Any] = self.read()
        return result

    def read(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the client ended:\n{self.log.read_text()[-3000:]}"
        return json.loads(line)

    @classmethod
    @contextmanager
    def started(cls, command: list[str | Path], log: Path) -> Iterator[Self]:
        with (
            log.open("w") as stderr,
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True, cwd=log.parent
            ) as process,
        ):
            try:
                client = cls(Path(command[1]).name, process, log)
                assert client.read() == "ready"
                yield client
            finally:
                process.kill()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clients")


@pytest.fixture(scope="session")
def film(folder: Path) -> Path:
    """A PNG of a phantom, 8-bit grey."""
    path = folder / "film.png"
    path.write_bytes(drawing.encode_png(drawing.render(sample(1), 1)))
    return path


@pytest.fixture(scope="session")
def key(folder: Path) -> str:
    (folder / "tenants.toml").write_text("[tenant.ward]\n")
    return api_keys.new(folder / "tenants.toml", "ward")


@pytest.fixture(scope="session")
def shared(folder: Path, key: str) -> Iterator[Gateway]:
    with (
        FakeEngine(uds=folder / "engine.sock") as engine,
        running(engine, tenants=TenantStore(folder / "tenants.toml"), rules=Rules(MODEL, 500)) as gateway,
    ):
        yield gateway


@pytest.fixture
def gateway(shared: Gateway) -> Gateway:
    shared.engine.reset()
    shared.engine.models = (MODEL,)
    return shared


@pytest.fixture(scope="session")
def node_packages(folder: Path) -> Path:
    """The folder of the scripts with their npm packages."""
    packages = folder / "js"
    packages.mkdir()
    scripts = [path.name for path in (HERE / "js").glob("*.mjs")]
    languages.install(HERE / "js", packages, *scripts)
    return packages


@pytest.fixture(scope="module")
def client(
    request: pytest.FixtureRequest, shared: Gateway, key: str, film: Path, folder: Path
) -> Iterator[ClientProcess]:
    """The client whose script is the parameter; all its tests share the process."""
    script = request.param
    if script.endswith(".py"):
        assert PYTHON.exists(), "run `make .venv/clients/.ready` first"
        command: list[str | Path] = [PYTHON, HERE / "python" / script]
    else:
        command = ["node", request.getfixturevalue("node_packages") / script]
    with ClientProcess.started([*command, shared.listeners.url, key, film], folder / f"{script}.log") as process:
        yield process
