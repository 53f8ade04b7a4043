"""Starts that must fail, stops that must leave nothing behind, and engines that die."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from pedcxr_serve.demo import CHECKPOINT
from tests.drills import kill_engine
from tests.e2e.engine.test_parity import other_ages
from tests.e2e.served_reports import Study, reference, served, token_ids
from tests.support.flat_checkpoint import save_flat
from tests.support.http_server import reserved_port
from tests.support.servers.live_server import COMMAND, alive, family, shared_memory, title
from tests.support.servers.local_server import LocalServer, server

pytestmark = pytest.mark.slow

PREFIXED = 40


@dataclass(frozen=True)
class Traces:
    """The processes, temporary files and shared memory of a running server."""

    pids: set[int]
    shared_memory: set[Path]
    temporary: Path

    @classmethod
    def of(cls, running: LocalServer) -> Traces:
        pids = family(running.process.pid)
        return cls(pids, shared_memory(pids), running.temporary)

    def left(self) -> list[object]:
        """Return what remains after the server has stopped; its TMPDIR belongs to it alone."""
        files = [*self.temporary.iterdir(), *(path for path in self.shared_memory if path.exists())]
        return [*alive(self.pids), *files]


def start(*flags: str, env: dict[str, str] | None = None, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, "start", "--port", "0", "--admin-port", "0", *flags],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, **(env or {})},
        check=False,
    )


@contextmanager
def launched(*flags: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start a server without waiting until it is ready; kill it at the end if it still runs."""
    command = [COMMAND, "start", "--port", "0", "--admin-port", "0", *flags]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"condition not met within {seconds:g} s"
        time.sleep(0.1)


def reachable(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_sigint_leaves_nothing_behind(phantoms: list[Study], tmp_path: Path) -> None:
    """Uses a flat-named copy of the checkpoint and blocks of 32 tokens, so that cached prefixes end inside images."""
    folder = save_flat(tmp_path / "flat")
    with server("--model", str(folder), "--served-name", "pedcxr-demo", "--block-size", "32") as running:
        _cached_prefix_inside_the_image(running, phantoms)
        traces = Traces.of(running)
        assert len(traces.pids) > 2 and traces.shared_memory and [*traces.temporary.iterdir()]
        assert running.stop(signal.SIGINT) == 0
        assert traces.left() == []


def _cached_prefix_inside_the_image(running: LocalServer, phantoms: list[Study]) -> None:
    phantoms = phantoms[:PREFIXED]
    again = other_ages(phantoms)
    served(running.url, phantoms, 32)
    answers = served(running.url, again, 32)
    cached = {answer.usage.prompt_tokens_details.cached_tokens for answer in answers}  # type: ignore[union-attr]
    assert cached & {32, 64}, f"no prefix ended inside the image (tokens 8 to 71): {cached}"
    expected = reference(again)
    assert [token_ids(answer) for answer in answers] == expected
    assert [token_ids(answer) for answer in served(running.url, again, 1)] == expected


@pytest.mark.timeout(1800)  # two starts of vLLM, each within 600 s
def test_a_dead_engine_is_restarted() -> None:
    """`make drill` does this ten times, and holds the server to 2 s."""
    with server("--restart-wait-s", "1", "--probe-every-s", "60") as running:
        [result] = kill_engine.rounds(running, 1)
        print(result.row(1))
        # 10 s separates closed connections, which tell the gateway at once, from 60 s of silence or the new engine.
        assert result.failures(typed_s=10) == []
        metrics = httpx.get(running.metrics_url, timeout=60).text
        assert 'pedcxr_engine_restarts_total{reason="ended"} 1.0' in metrics
        traces = Traces.of(running)
        assert running.stop(signal.SIGTERM) == 0
        assert traces.left() == []


def test_without_restarts_a_dead_engine_stops_the_server() -> None:
    with server("--restarts", "0") as running:
        traces = Traces.of(running)
        [engine] = [pid for pid in traces.pids if "EngineCore" in title(pid)]
        os.kill(engine, signal.SIGKILL)
        assert running.process.wait(60) == 4
        assert "engine exited unexpectedly" in running.log.read_text()
        assert "engine | " in running.log.read_text()
        assert traces.left() == []


def test_the_engine_dies_with_a_killed_server() -> None:
    with launched() as process:
        until(lambda: len(family(process.pid)) > 1)
        time.sleep(3)  # the child requests the parent-death signal (prctl) once Python runs in it
        pids = family(process.pid)
        process.kill()
        process.wait()
        until(lambda: not alive(pids))


def test_a_flag_unknown_to_vllm() -> None:
    completed = start("--", "--no-such-flag", timeout=120)
    assert completed.returncode == 4
    assert "--no-such-flag" in completed.stderr
    assert "Traceback" not in completed.stderr.rpartition("pedcxr-serve:")[2]


def test_sigterm_during_start_up() -> None:
    with launched() as process:
        until(lambda: len(family(process.pid)) > 1)
        pids = family(process.pid)
        process.terminate()
        assert process.wait(60) == 0
    assert alive(pids) == set()


def test_a_port_in_use_fails_immediately(running: LocalServer) -> None:
    port = running.root.rpartition(":")[2]
    for flags in (("--port", port), ("--port", "0", "--admin-port", port)):
        start_time = time.monotonic()
        completed = subprocess.run([COMMAND, "start", *flags], capture_output=True, text=True, timeout=120, check=False)
        assert (completed.returncode, port in completed.stderr) == (2, True)
        assert time.monotonic() - start_time < 20, "before the engine starts, which takes longer"


def test_a_second_server_on_the_same_socket_folder_fails() -> None:
    with tempfile.TemporaryDirectory(prefix="run-") as short:  # the path of a socket has at most 107 bytes
        folder = Path(short, "run")
        with launched("--socket-dir", str(folder)) as first:
            until(lambda: (folder / "lock").exists())
            second = start("--socket-dir", str(folder))
            assert (second.returncode, "in use by a running server" in second.stderr) == (2, True)
            first.terminate()
            assert first.wait(60) == 0
        assert not folder.exists()


@pytest.mark.parametrize(
    ("flags", "env", "words"),
    [
        (("--host", "0.0.0.0"), {}, "loopback"),
        (("--model", "/no/such/folder"), {}, "no such folder"),
        ((), {"VLLM_USE_RUST_FRONTEND": "1"}, "VLLM_USE_RUST_FRONTEND"),
        (("--port", "99999"), {}, "65,535"),
        (("--config", "/no/such/file.toml"), {}, "cannot be read"),
    ],
)
def test_invalid_settings_fail_immediately(flags: tuple[str, ...], env: dict[str, str], words: str) -> None:
    completed = start(*flags, env=env)
    assert (completed.returncode, words in completed.stderr) == (2, True), completed.stderr
    assert "Traceback" not in completed.stderr


def test_a_truncated_checkpoint_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(CHECKPOINT, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    completed = start("--model", str(folder))
    assert (completed.returncode, "model.safetensors" in completed.stderr) == (3, True)
    check = subprocess.run([COMMAND, "check", "--model", str(folder)], capture_output=True, text=True, check=False)
    assert (check.returncode, "model.safetensors" in check.stdout) == (3, True)


def test_clients_get_503_during_start_up() -> None:
    """A server that is starting answers 503 with its stage and never refuses a connection."""
    with reserved_port() as port, launched("--port", str(port)) as process:
        until(lambda: reachable(port))
        answer = httpx.post(f"http://127.0.0.1:{port}/v1/chat/completions", json={}, timeout=60)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")
        assert httpx.get(f"http://127.0.0.1:{port}/health/live", timeout=60).status_code == 200
        process.terminate()
        assert process.wait(60) == 0
