"""The script deploy/fleet/local_fleet.py in a process of its own: signals, ports and errors."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.deploy.test_fleet import FLEET, REPLICA, local_fleet, need
from tests.support.http_server import reserved_port
from tests.support.servers.fleet_load import body
from tests.support.servers.gateway_server import CHAT, eventually
from tests.support.servers.live_server import alive, family
from tests.support.servers.replica import SLOW

SCRIPT = [sys.executable, str(FLEET / "local_fleet.py")]
PROXY = "http://127.0.0.1:9"
WAIT_S = 300


@dataclass
class Script:
    """A fleet that is ready.

    Attributes:
        folder: ``TMPDIR`` of the fleet.
        metrics: URLs of the replicas.
        family: ids of its processes.
    """

    process: subprocess.Popen[str]
    folder: Path
    url: str
    metrics: list[str]
    family: set[int]

    def in_flight(self) -> bool:
        pages = [httpx.get(url, timeout=60, trust_env=False).text for url in self.metrics]
        return sum(int(re.findall(r"^fake_chat_requests_total (\d+)", page, re.MULTILINE)[0]) for page in pages) > 0

    def post(self) -> int:
        """Return the status of a request for a slow report; 0 if the connection breaks."""
        try:
            return httpx.post(self.url + CHAT, content=body(text=SLOW), timeout=WAIT_S, trust_env=False).status_code
        except httpx.TransportError:
            return 0


def environment(folder: Path) -> dict[str, str]:
    """Return an environment with a proxy that does not answer, and without exceptions from it."""
    rest = {name: value for name, value in os.environ.items() if name.lower() != "no_proxy"}
    return rest | {"TMPDIR": str(folder), "http_proxy": PROXY, "HTTP_PROXY": PROXY}


@contextmanager
def script(*engine_words: str) -> Iterator[Script]:
    """Run a fleet as a shell in a terminal does: in a process group of its own. No process is left at the end."""
    need("haproxy")
    with (
        reserved_port() as port,
        tempfile.TemporaryDirectory() as name,  # of pytest's, the path would be too long for a Unix socket
        subprocess.Popen(
            [*SCRIPT, "--port", str(port), "--", *REPLICA, "--", *engine_words],
            env=environment(Path(name)), stdout=subprocess.PIPE, text=True, start_new_session=True,
        ) as process,
    ):  # fmt: skip
        started = {process.pid}
        try:
            assert process.stdout is not None
            url, _, *metrics = (process.stdout.readline().split()[-1] for _ in range(4))
            started = family(process.pid)
            yield Script(process, Path(name), url.removesuffix("/v1"), metrics, started)
        finally:
            for pid in alive(started | family(process.pid)):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_signal_lets_reports_complete_and_leaves_nothing(name: str) -> None:
    """Ctrl-C reaches the whole process group; a terminal that is closed sends SIGHUP to it."""
    with script() as fleet, ThreadPoolExecutor() as pool:
        answer = pool.submit(fleet.post)
        eventually(fleet.in_flight)
        os.killpg(fleet.process.pid, getattr(signal, name))
        assert answer.result() == 200
        assert fleet.process.wait(WAIT_S) == 0
        eventually(lambda: not alive(fleet.family))
        assert list(fleet.folder.iterdir()) == []


def test_second_ctrl_c_ends_the_replicas_at_once() -> None:
    with script("--gap", "600") as fleet, ThreadPoolExecutor() as pool:
        answer = pool.submit(fleet.post)
        eventually(fleet.in_flight)
        os.killpg(fleet.process.pid, signal.SIGINT)
        eventually(lambda: httpx.get(fleet.url + "/health/ready", timeout=60, trust_env=False).status_code == 503)
        os.killpg(fleet.process.pid, signal.SIGINT)
        assert fleet.process.wait(WAIT_S) == 0
        assert answer.result() != 200
        eventually(lambda: not alive(fleet.family))
        assert list(fleet.folder.iterdir()) == []


def test_third_signal_kills_replicas_that_do_not_stop(tmp_path: Path) -> None:
    need("haproxy")
    replica = ["sh", "-c", f"trap '' TERM; touch {tmp_path}/started$$; while :; do sleep 1; done"]
    with reserved_port() as port:
        words = [*SCRIPT, "--port", str(port), "--", *replica]
        process = subprocess.Popen(words, env=environment(tmp_path), start_new_session=True)
    started = {process.pid}
    try:
        eventually(lambda: len(list(tmp_path.glob("started*"))) == 2)
        started = family(process.pid)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # equal ones could arrive as one
            os.kill(process.pid, number)
        assert process.wait(WAIT_S) == 0
        eventually(lambda: not alive(started))
    finally:
        for pid in alive(started):
            os.kill(pid, signal.SIGKILL)


def refusal(folder: Path, *words: str) -> tuple[int, str]:
    """Return status and message of a call whose replicas would write a file ``started``, which must be absent."""
    need("haproxy")
    replica = ["sh", "-c", f"touch {folder}/started; echo no model; exit 3"]
    completed = subprocess.run(
        [*SCRIPT, *words, *([] if "--" in words else ["--", *replica])], env=environment(folder),
        capture_output=True, text=True, timeout=WAIT_S,
    )  # fmt: skip
    assert "Traceback" not in completed.stderr
    return completed.returncode, completed.stderr


@pytest.mark.parametrize("option", [socket.SO_REUSEADDR, socket.SO_REUSEPORT], ids=["program", "balancer"])
def test_port_in_use_is_an_error_before_any_replica_starts(option: int, tmp_path: Path) -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, option, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        status, message = refusal(tmp_path, "--port", str(port))
    assert status == 2
    assert message.startswith(f"port {port} of 127.0.0.1: Address already in use; ")
    assert not (tmp_path / "started").exists()


def test_port_of_a_fleet_that_still_loads_is_an_error(tmp_path: Path) -> None:
    port = local_fleet.free_port()  # reserved by this process, and nothing listens yet
    status, message = refusal(tmp_path, "--port", str(port))
    assert (status, "stop the program" in message) == (2, True)
    assert not (tmp_path / "started").exists()


def test_ports_of_other_fleets_and_of_the_balancer_are_not_chosen() -> None:
    with reserved_port() as port:
        chosen = local_fleet.free_port()
        with pytest.raises(OSError, match=f"^port {chosen} of 127.0.0.1: Address already in use; "):
            local_fleet.reserve(chosen)
        local_fleet.reserve(port)  # a second port, to show that the first error is not of every port
    assert local_fleet.free_port() not in (chosen, port)


@pytest.mark.parametrize("number", ["0", "65536", "-1"])
def test_impossible_port_is_an_error(number: str, tmp_path: Path) -> None:
    status, message = refusal(tmp_path, f"--port={number}")
    assert (status, message.splitlines()[-1].partition(": error: ")[2]) == (2, "--port: must be between 1 and 65,535")


def test_absent_command_is_an_error(tmp_path: Path) -> None:
    with reserved_port() as port:
        status, message = refusal(tmp_path, "--port", str(port), "--", "pedcxr-serve-absent", "start")
    assert status == 2
    assert message.startswith("pedcxr-serve-absent: command not found; ")


def test_replica_that_ends_is_an_error_with_its_last_lines(tmp_path: Path) -> None:
    with reserved_port() as port:
        status, message = refusal(tmp_path, "--port", str(port))
    assert status == 1
    assert re.match(r"the fleet does not start: .*replica0\.log: the replica ended with status 3\nno model$", message)
