"""The middleware of an engine that runs apart: its key, its description, and its orderly stop."""

from __future__ import annotations

import asyncio
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import msgspec
import pytest

from pedcxr_serve.config import secret_file
from pedcxr_serve.engine import access
from pedcxr_serve.engine.access import RequireBearer
from pedcxr_serve.engine.description import PATH, EngineDescription
from tests.support.servers.apart import DESCRIPTION, engine_apart
from tests.support.servers.fake_engine import Answer, FakeEngine
from tests.support.servers.gateway_server import BODY, CHAT, eventually


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    secret_file.read_or_create(tmp_path / "engine.key")
    return tmp_path / "engine.key"


@pytest.fixture
def engine(tmp_path: Path, key_file: Path) -> Iterator[FakeEngine]:
    with engine_apart(tmp_path / "run", key_file=key_file, tcp=True) as engine:
        yield engine


def client(engine: FakeEngine, key: str = "") -> httpx.Client:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.Client(base_url=engine.url.removesuffix("/v1"), headers=headers, timeout=60, trust_env=False)


def test_every_route_but_health_needs_the_key(engine: FakeEngine, key_file: Path) -> None:
    key = secret_file.read(key_file)
    for wrong in ("", "x", key[:-1], key + "x"):
        with client(engine, wrong) as asking:
            for path in ("/v1/models", "/metrics", "/version", PATH, "/health/", "//health"):
                assert asking.get(path).status_code == 401, path
            assert asking.post(CHAT, json=BODY).status_code == 401
            assert asking.post("/health", json={}).status_code != 200
            assert asking.get("/health").status_code == 200
    assert engine.chats == []
    with client(engine, key) as asking:
        assert asking.get("/v1/models").status_code == 200
        assert asking.post(CHAT, json=BODY).status_code == 200


@pytest.mark.parametrize("header", ["Basic KEY", "Bearer", "bearerKEY", "KEY"])
def test_other_forms_of_authorization_are_refused(engine: FakeEngine, key_file: Path, header: str) -> None:
    value = header.replace("KEY", secret_file.read(key_file))
    with client(engine) as asking:
        assert asking.get("/v1/models", headers={"Authorization": value}).status_code == 401


def test_two_authorization_headers_are_refused(engine: FakeEngine, key_file: Path) -> None:
    key = secret_file.read(key_file)
    with client(engine) as asking:
        two = [("Authorization", f"Bearer {key}"), ("Authorization", f"Bearer {key}")]
        assert asking.get("/v1/models", headers=two).status_code == 401


def test_websocket_without_the_key_is_closed() -> None:
    sent: list[object] = []

    async def send(message: object) -> None:
        sent.append(message)

    async def unreachable(*_: object) -> None:
        raise AssertionError

    app = RequireBearer(unreachable, "k" * 32)
    asyncio.run(app({"type": "websocket", "path": "/v1/realtime", "headers": []}, unreachable, send))  # type: ignore[arg-type]
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_description_is_what_the_engine_wrote(engine: FakeEngine, key_file: Path) -> None:
    with client(engine, secret_file.read(key_file)) as asking:
        assert msgspec.json.decode(asking.get(PATH).content, type=EngineDescription) == DESCRIPTION


def test_stopping_engine_completes_its_requests_and_refuses_others(
    tmp_path: Path, engine: FakeEngine, key_file: Path
) -> None:
    refusals_seen, drained = threading.Event(), threading.Event()
    engine.answer = Answer(hold=refusals_seen)

    def drain() -> None:
        asyncio.run(access.drain(tmp_path / "run"))
        drained.set()

    with ThreadPoolExecutor() as pool, client(engine, secret_file.read(key_file)) as asking:
        report = pool.submit(asking.post, CHAT, json=BODY | {"stream": True})
        eventually(lambda: engine.chats)
        pool.submit(drain)
        eventually((tmp_path / "run/stopping").exists)
        refused = asking.post(CHAT, json=BODY)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_stopping")
        assert refused.headers["retry-after"] == "2"
        assert asking.get("/health").status_code == 503
        assert not drained.is_set(), "a request is in flight"
        refusals_seen.set()
        assert report.result().text.endswith("data: [DONE]\n\n")
        assert drained.wait(30)
        assert asking.post(CHAT, json=BODY).status_code == 503
    assert len(engine.chats) == 1


def test_engine_that_starts_again_accepts_requests(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with engine_apart(folder, tcp=True) as first:
        asyncio.run(access.drain(folder))
        with client(first) as asking:
            assert asking.post(CHAT, json=BODY).status_code == 503
    with engine_apart(folder, tcp=True) as second, client(second) as asking:
        assert asking.post(CHAT, json=BODY).status_code == 200
    access.remove(folder)
    assert [*folder.iterdir()] == []


def test_created_secret_is_private_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "key"
    with ThreadPoolExecutor() as pool:
        secrets = {*pool.map(lambda _: secret_file.read_or_create(path), range(8))}
    assert len(secrets) == 1 and len(*secrets) == 64
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [*tmp_path.iterdir()] == [path]
