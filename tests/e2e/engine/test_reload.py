"""An edit of tenants.toml and a SIGHUP to the launcher: in force at once, and nobody's report is lost by it."""

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
from tests.support.gateway_server import assert_openai_error, eventually
from tests.support.live_server import held_still
from tests.support.phantom_films import CHAT, fresh

pytestmark = pytest.mark.slow

AT_ONCE = 16


@pytest.fixture
def path(shared_by_two: Teams) -> Iterator[Path]:
    """tenants.toml, put back afterwards."""
    path = shared_by_two.folder / "tenants.toml"
    text = path.read_text()
    yield path
    path.write_text(text)
    hang_up(shared_by_two)
    eventually(lambda: listed(shared_by_two, shared_by_two.keys["ward"]) == 200 and not broken(shared_by_two))


def hang_up(teams: Teams) -> None:
    teams.server.process.send_signal(signal.SIGHUP)


def listed(teams: Teams, key: str) -> int:
    """The status that the key's owner gets."""
    return httpx.get(teams.server.url + "/models", headers={"Authorization": f"Bearer {key}"}).status_code


def broken(teams: Teams) -> bool:
    return "pedcxr_tenants_broken 1.0" in teams.metrics()


def unseen_edit(path: Path, old: str, new: str) -> None:
    """Of the same length and with the same times, so that nothing but the signal can be why the file is read again."""
    status, text = path.stat(), path.read_text()
    assert text.count(old) == 1 and len(old) == len(new)
    path.write_text(text.replace(old, new))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_key_is_exchanged_under_load(shared_by_two: Teams, path: Path) -> None:
    old, new = shared_by_two.keys["ward"], "pcx-" + secrets.token_urlsafe(32)
    films = [fresh(kind) for kind in range(AT_ONCE)]
    with ThreadPoolExecutor(AT_ONCE) as pool, shared_by_two.client("ward") as client:
        with held_still(shared_by_two.server.process.pid):
            pending = [pool.submit(client.post, CHAT, json=film.body()) for film in films]
            eventually(lambda: f"pedcxr_requests_in_flight {AT_ONCE}.0" in shared_by_two.metrics(), 30)
            unseen_edit(path, tenants.digest(old), tenants.digest(new))
            assert (listed(shared_by_two, old), listed(shared_by_two, new)) == (200, 401)
            hang_up(shared_by_two)
            eventually(lambda: listed(shared_by_two, new) == 200, 2)
            assert listed(shared_by_two, old) == 401
            assert not any(one.done() for one in pending)
        texts = [one.result().json()["choices"][0]["message"]["content"] for one in pending]
    assert texts == [film.report for film in films]


def test_a_broken_edit_changes_nothing(shared_by_two: Teams, path: Path) -> None:
    path.write_text(path.read_text().replace("[tenant.clinic]", "[tenant.clinic]\nweight = 'heavy'"))
    hang_up(shared_by_two)
    eventually(lambda: broken(shared_by_two), 2)
    lines = [line for line in shared_by_two.server.log.read_text().splitlines() if "tenants file rejected" in line]
    assert str(path) in lines[-1] and "clinic" in lines[-1] and "weight" in lines[-1]
    for tenant in ("ward", "clinic"):
        with shared_by_two.client(tenant) as client:
            film = fresh()
            assert client.post(CHAT, json=film.body()).json()["choices"][0]["message"]["content"] == film.report
    assert_openai_error(httpx.get(shared_by_two.server.url + "/models"), 401, "invalid_api_key")
