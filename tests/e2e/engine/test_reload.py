"""An edit of tenants.toml followed by SIGHUP takes effect at once and loses no report."""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from pedcxr_serve.gateway.auth import tenants
from tests.e2e.conftest import Teams
from tests.support.films.phantom_films import CHAT, fresh
from tests.support.servers.gateway_server import assert_openai_error, eventually
from tests.support.servers.live_server import held_still

pytestmark = pytest.mark.slow

CONCURRENCY = 16


@pytest.fixture
def path(shared_by_two: Teams) -> Iterator[Path]:
    """Return the path of tenants.toml; its text is restored afterwards."""
    path = shared_by_two.folder / "tenants.toml"
    text = path.read_text()
    yield path
    path.write_text(text)
    send_sighup(shared_by_two)
    eventually(lambda: models_status(shared_by_two, shared_by_two.keys["ward"]) == 200 and not broken(shared_by_two))


def send_sighup(teams: Teams) -> None:
    teams.server.process.send_signal(signal.SIGHUP)


def models_status(teams: Teams, key: str) -> int:
    """Return the status of GET /v1/models with this key."""
    return httpx.get(teams.server.url + "/models", headers={"Authorization": f"Bearer {key}"}, timeout=60).status_code


def broken(teams: Teams) -> bool:
    return "pedcxr_tenants_broken 1.0" in teams.metrics()


def unnoticed_edit(path: Path, old: str, new: str) -> None:
    """Edit the file without changing its size or times, so that only the signal can cause a reload."""
    status, text = path.stat(), path.read_text()
    assert text.count(old) == 1 and len(old) == len(new)
    path.write_text(text.replace(old, new))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_key_is_replaced_under_load(shared_by_two: Teams, path: Path) -> None:
    old, new = shared_by_two.keys["ward"], "pcx-" + secrets.token_urlsafe(32)
    films = [fresh(kind) for kind in range(CONCURRENCY)]
    with ThreadPoolExecutor(CONCURRENCY) as pool, shared_by_two.client("ward") as client:
        with held_still(shared_by_two.server.process.pid):
            pending = [pool.submit(client.post, CHAT, json=film.body()) for film in films]
            eventually(lambda: f"pedcxr_requests_in_flight {CONCURRENCY}.0" in shared_by_two.metrics())
            unnoticed_edit(path, tenants.digest(old), tenants.digest(new))
            assert (models_status(shared_by_two, old), models_status(shared_by_two, new)) == (200, 401)
            send_sighup(shared_by_two)
            eventually(lambda: models_status(shared_by_two, new) == 200)
            assert models_status(shared_by_two, old) == 401
            assert not any(one.done() for one in pending)
        texts = [one.result().json()["choices"][0]["message"]["content"] for one in pending]
    assert texts == [film.report for film in films]


def test_a_broken_edit_changes_nothing(shared_by_two: Teams, path: Path) -> None:
    path.write_text(path.read_text().replace("[tenant.clinic]", "[tenant.clinic]\nweight = 'heavy'"))
    send_sighup(shared_by_two)
    eventually(lambda: broken(shared_by_two))

    def rejections() -> list[str]:
        return [line for line in shared_by_two.server.log.read_text().splitlines() if "tenants file rejected" in line]

    eventually(rejections)  # a thread writes the log
    last = rejections()[-1]
    assert str(path) in last and "clinic" in last and "weight" in last
    for tenant in ("ward", "clinic"):
        with shared_by_two.client(tenant) as client:
            film = fresh()
            answer = client.post(CHAT, json=film.body())
            assert answer.status_code == 200, answer.text
            assert answer.json()["choices"][0]["message"]["content"] == film.report
    assert_openai_error(httpx.get(shared_by_two.server.url + "/models", timeout=60), 401, "invalid_api_key")
