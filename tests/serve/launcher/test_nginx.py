"""The nginx configuration of docs/operations.md in front of two gateways of one engine."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.drills.rolling_restart import START_S, Load, is_ready, running
from tests.support.http_server import reserved_port
from tests.support.paths import ROOT
from tests.support.servers.apart import engine_apart, reports
from tests.support.servers.fake_engine import Answer
from tests.support.servers.gateway_server import BODY, eventually
from tests.support.servers.local_server import LocalServer, server

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
CLIENTS = 6


@contextmanager
def nginx(folder: Path, ports: dict[str, int]) -> Iterator[str]:
    """Run nginx with the snippet of the page on free ports; yield its root."""
    [snippet] = re.findall(r"```nginx\n(.*?)```", (ROOT / "docs/operations.md").read_text(), re.DOTALL)
    for written, port in ports.items():
        snippet, count = re.subn(rf"\b{written}\b", str(port), snippet)
        assert count == 1, written
    temporary = "".join(
        f"{name}_temp_path {folder}/{name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = folder / "nginx.conf"
    config.write_text(
        f"daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;\n"
        f"events {{}}\nhttp {{ access_log off;\n{temporary}{snippet}}}\n"
    )
    with subprocess.Popen([str(NGINX), "-e", f"{folder}/error.log", "-c", config]) as process:
        try:
            yield f"http://127.0.0.1:{ports['8080']}"
        finally:
            process.terminate()


@pytest.mark.skipif(NGINX is None, reason="nginx not found; install the Debian package nginx")
def test_rolling_restart_behind_nginx_loses_no_report(tmp_path: Path) -> None:
    """nginx sends what a stopping gateway refuses to the other one, so that clients see no refusal at all."""
    folder = tmp_path / "run"
    with engine_apart(folder) as engine, ExitStack() as stack:
        engine.answer = Answer(gap=0.05)

        def start(port: int) -> LocalServer:
            flags = ("--engine", f"unix:{folder}/engine.sock", "--slots", "16", "--port", str(port))
            return stack.enter_context(server(*flags, command="gateway"))

        *ports, front = [stack.enter_context(reserved_port()) for _ in range(3)]
        servers = [start(port) for port in ports]
        written = ("8000", "8010", "8080")
        root = stack.enter_context(nginx(tmp_path, dict(zip(written, [*ports, front], strict=True))))
        eventually(lambda: is_ready(root))
        load = Load([root], lambda number: BODY | {"stream": bool(number % 2)})
        with running(load, CLIENTS):
            for port, old in zip(ports, servers, strict=True):
                finished = load.finished
                eventually(lambda finished=finished: load.finished >= finished + CLIENTS, START_S)  # type: ignore[misc]
                assert old.stop(signal.SIGTERM) == 0
                start(port)
            finished = load.finished
            eventually(lambda: load.finished >= finished + CLIENTS, START_S)
    print(f"\n{load.finished} reports")
    assert {*load.outcomes} == {"complete"}, (tmp_path / "error.log").read_text()
    assert load.resent == 0
    assert len(reports(engine)) == load.finished
