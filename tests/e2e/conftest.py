"""Fixtures of the end-to-end tests: servers on the demo checkpoint, and films."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from pedcxr_client.films.age import Age
from pedcxr_client.request import prompts
from pedcxr_serve.gateway.accounting import audit
from pedcxr_serve.gateway.auth import api_keys
from tests.e2e.served_reports import UNSEEN, Study, draw
from tests.support.servers.live_server import FILMS, family, title
from tests.support.servers.local_server import LocalServer, server
from tests.support.servers.otlp_receiver import Received, otlp_receiver

PHANTOMS = 100


@pytest.fixture(scope="session")
def running() -> Iterator[LocalServer]:
    """Return the server that most tests share."""
    with server() as ready:
        yield ready


TEAMS = """
[tenant.ward]
[tenant.clinic]
may_sample = true
may_omit_film = true
[tenant.narrow]
models = ["another"]
[tenant.small]
tokens_per_day = 100
"""


@dataclass(frozen=True)
class Teams:
    """A server with tenants that logs at DEBUG and sends traces, and its files.

    Attributes:
        collector: has the spans of gateway and engine, which send them every few seconds.
        keys: API keys by tenant.
        folder: Holds tenants.toml, usage.sqlite and audit.jsonl.
    """

    server: LocalServer
    keys: dict[str, str]
    folder: Path
    audit_key: str
    collector: Received = field(default_factory=lambda: Received(""))

    def client(self, tenant: str) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.keys[tenant]}"}
        return httpx.Client(base_url=self.server.root, headers=headers, timeout=120, verify=False, trust_env=False)

    def metrics(self) -> str:
        return httpx.get(self.server.metrics_url, timeout=30).text


@pytest.fixture(scope="session")
def shared_by_two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Teams]:
    """Return the server of all tenant tests; its KV blocks hold 32 tokens, so that one film and prompt fill several."""
    folder = tmp_path_factory.mktemp("teams")
    path = folder / "tenants.toml"
    path.write_text(TEAMS)
    tenant_keys = {name: api_keys.new(path, name) for name in ("ward", "clinic", "narrow", "small")}
    secret = os.urandom(32).hex()
    flags = ("--tenants", str(path), "--audit-log", str(folder / "audit.jsonl"), "--log-level", "debug")
    with otlp_receiver() as collector:
        flags += ("--otlp-endpoint", collector.url)
        with server(*flags, "--block-size", "32", env={audit.KEY_VARIABLE: secret}) as ready:
            yield Teams(ready, tenant_keys, folder, secret, collector)


@pytest.fixture(scope="session")
def engine(shared_by_two: Teams) -> Iterator[httpx.Client]:
    """Return a client of the engine's private socket, which bypasses the gateway."""
    [path] = {
        words[words.index("--uds") + 1]
        for pid in family(shared_by_two.server.process.pid)
        if "--uds" in (words := title(pid).split("\0"))
    }
    assert Path(path).is_socket()
    assert Path(path).parent.stat().st_mode & 0o777 == 0o700
    with httpx.Client(transport=httpx.HTTPTransport(uds=path), base_url="http://engine", timeout=120) as client:
        yield client


@pytest.fixture
def ending(shared_by_two: Teams) -> Teams:
    """Return the same server to tests that stop it; they run last."""
    return shared_by_two


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run tenant tests last, and the ones that stop the server at the very end: at most two engines run at once."""
    items.sort(key=lambda item: sum(name in getattr(item, "fixturenames", ()) for name in ("shared_by_two", "ending")))


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> list[Study]:
    """Return phantoms that are not in the training set."""
    return draw(tmp_path_factory.mktemp("phantoms"), range(UNSEEN, UNSEEN + PHANTOMS))


@pytest.fixture(scope="session")
def children() -> list[Study]:
    """Return the real films of children, each opaque and 8-bit."""
    if not FILMS.is_dir():
        pytest.skip(f"real films not found ({FILMS})")
    # One prompt for all: this data set tests parity with transformers, not medicine.
    words = prompts.card(Age(9, "Y"), "F")
    return [Study(film, words) for film in sorted(FILMS.glob("*.png"))]
