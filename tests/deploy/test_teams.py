"""serve-teams.toml as a service runs it: an unprivileged user, umask 0077, and an /etc/pedcxr that it cannot write."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pedcxr_serve.gateway.accounting import audit
from pedcxr_serve.gateway.auth import api_keys
from tests.support.certificates import make_certificate
from tests.support.paths import ROOT

SECRET = "k" * 32
NOBODY = 65534
_SERVICE = """
import asyncio, encodings.idna, json, os, ssl, sys, urllib.request
from pathlib import Path
from pedcxr_serve.config import load
from pedcxr_serve.gateway import app
from pedcxr_serve.gateway.http.listeners import listen
from pedcxr_serve.gateway.http.server import serving
from pedcxr_serve.gateway.state import open_state
from tests.support.servers.fake_engine import FakeEngine
from tests.support.servers.gateway_server import BODY

os.umask(0o077)
if sys.argv[3:]:  # after the imports: another user may not be able to read this Python
    os.setgroups([]), os.setgid(int(sys.argv[3])), os.setuid(int(sys.argv[3]))
settings = load.load(Path(sys.argv[1]), {"gateway.port": 0, "gateway.admin_port": 0, "gateway.host": "127.0.0.1"})
socket = Path("engine.sock").absolute()

def ask(url):
    request = urllib.request.Request(url + "/chat/completions", json.dumps(BODY).encode())
    request.add_header("Authorization", "Bearer " + sys.argv[2])
    context = ssl.create_default_context(cafile=settings.gateway.tls_cert)
    return urllib.request.urlopen(request, context=context, timeout=60).status

async def main():
    with open_state(settings, socket, slots=2, image_tokens=256, demo=True, env=os.environ) as state:
        state.set_ready(True, "ready")
        with listen(settings.gateway) as listeners:
            async with app.engine_session(state) as session, serving(state, session, listeners):
                print(await asyncio.to_thread(ask, listeners.url))

with FakeEngine(uds=socket):
    asyncio.run(main())
"""


@pytest.fixture
def host() -> Iterator[Path]:
    """A short path, for sockets, that another user may enter."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def install(host: Path) -> tuple[Path, Path, str]:
    """Install the files as deploy/README.md says; return the folders of configuration and state, and a key."""
    etc, state = host / "etc", host / "lib"
    group = NOBODY if os.getuid() == 0 else os.getgid()
    for folder in (etc, state):
        folder.mkdir()
    text = (ROOT / "deploy" / "serve-teams.toml").read_text()
    (etc / "serve-teams.toml").write_text(text.replace("/etc/pedcxr", str(etc)).replace("/var/lib/pedcxr", str(state)))
    files = make_certificate(etc)
    tenants = etc / "tenants.toml"
    tenants.touch()
    for path in (files.certificate, files.key, tenants):
        os.chown(path, -1, group)
        path.chmod(0o640)
    key = api_keys.new(tenants, "radiology")
    assert stat.S_IMODE(tenants.stat().st_mode) == 0o640 and tenants.stat().st_gid == group
    state.chmod(0o700)
    if os.getuid() == 0:
        os.chown(state, NOBODY, NOBODY)
        etc.chmod(0o755)
    else:
        etc.chmod(0o555)
    return etc, state, key


def test_service_for_teams_runs_without_writing_its_configuration(host: Path) -> None:
    etc, state, key = install(host)
    before = {path.name: path.stat().st_mtime_ns for path in etc.iterdir()}
    environment = {"PATH": os.environ["PATH"], "HOME": str(state), audit.KEY_VARIABLE: SECRET}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, (ROOT, ROOT / "client", ROOT / "serve")))
    user = [str(NOBODY)] if os.getuid() == 0 else []
    command = [sys.executable, "-c", _SERVICE, str(etc / "serve-teams.toml"), key, *user]
    done = subprocess.run(command, cwd=state, env=environment, capture_output=True, text=True, timeout=120)
    etc.chmod(0o755)
    assert (done.returncode, done.stdout) == (0, "200\n"), done.stderr
    assert {path.name: path.stat().st_mtime_ns for path in etc.iterdir()} == before
    assert "lines 0 to 0 are intact" in audit.verify(state / "audit.jsonl", SECRET.encode())
    assert {stat.S_IMODE(path.stat().st_mode) for path in state.iterdir() if path.is_file()} == {0o600}
    assert (state / "usage.sqlite").exists()


def test_service_for_teams_needs_the_audit_key(host: Path) -> None:
    etc, state, key = install(host)
    environment = {"PATH": os.environ["PATH"], "HOME": str(state)}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, (ROOT, ROOT / "client", ROOT / "serve")))
    command = [sys.executable, "-c", _SERVICE, str(etc / "serve-teams.toml"), key]
    done = subprocess.run(command, cwd=state, env=environment, capture_output=True, text=True, timeout=120)
    etc.chmod(0o755)
    assert done.returncode != 0 and audit.KEY_VARIABLE in done.stderr
