"""Starts that must fail, ends that must be clean, and an engine that dies."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from pedcxr_serve.demo import CHECKPOINT
from tests.benchmarks import kill_drill
from tests.benchmarks.local_server import LocalServer, server
from tests.e2e.conftest import Study, reference, served, token_ids
from tests.e2e.engine.test_parity import other_ages
from tests.support.flat_checkpoint import save_flat
from tests.support.live_server import COMMAND, alive, family, title

pytestmark = pytest.mark.slow

PREFIXED = 40


OURS = re.compile(r"pedcxr-|vllm|torch|psm_|sem\.|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")
"""How the files begin that a server, vLLM or torch may make in /tmp and /dev/shm; others belong to other programs."""


def leftovers() -> set[str]:
    """Names where a server could leave something behind."""
    return {path.name for folder in ("/tmp", "/dev/shm") for path in Path(folder).iterdir() if OURS.match(path.name)}


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
    """A server that has been started, ready or not; killed at the end if the test did not end it."""
    command = [COMMAND, "start", "--port", "0", "--admin-port", "0", *flags]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.1)


def reachable(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_sigint_ends_everything_and_leaves_nothing(phantoms: list[Study], tmp_path: Path) -> None:
    """On a flat-named copy of the checkpoint and blocks of 32, so that cached prefixes end inside images."""
    folder = save_flat(tmp_path / "flat")
    before = leftovers()
    with server("--model", str(folder), "--served-name", "pedcxr-demo", "--block-size", "32") as running:
        pids = family(running.process.pid)
        assert len(pids) > 2
        _cached_prefix_inside_the_image(running, phantoms)
        assert running.stop(signal.SIGINT) == 0
    assert alive(pids) == set()
    assert leftovers() - before == set()


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


def test_an_engine_that_dies_is_started_again() -> None:
    """And, once no restart is left, takes the server down. `make drill` does it ten times."""
    before = leftovers()
    with server("--restart-wait-s", "1") as running:
        [one] = kill_drill.rounds(running, 1)
        print(one.row(1))
        assert one.failures == []
        metrics = httpx.get(running.metrics_url).text
        assert 'pedcxr_engine_restarts_total{reason="ended"} 1.0' in metrics
        pids = family(running.process.pid)
        assert running.stop(signal.SIGTERM) == 0
    assert alive(pids) == set()
    assert leftovers() - before == set()


def test_an_engine_that_dies_takes_the_server_down_if_so_wanted() -> None:
    before = leftovers()
    with server("--restarts", "0") as running:
        pids = family(running.process.pid)
        [engine] = [pid for pid in pids if "EngineCore" in title(pid)]
        os.kill(engine, signal.SIGKILL)
        assert running.process.wait(60) == 4
        assert "engine exited unexpectedly" in running.log.read_text()
        assert "engine | " in running.log.read_text()
    assert alive(pids) == set()
    assert leftovers() - before == set()


def test_a_server_killed_outright_takes_its_engine_with_it() -> None:
    with launched() as process:
        until(lambda: len(family(process.pid)) > 1)
        time.sleep(3)  # the child asks for the parent's death signal once Python runs in it
        pids = family(process.pid)
        process.kill()
        process.wait()
        until(lambda: not alive(pids))


def test_a_flag_that_vllm_does_not_know() -> None:
    done = start("--", "--no-such-flag", timeout=120)
    assert done.returncode == 4
    assert "--no-such-flag" in done.stderr
    assert "Traceback" not in done.stderr.rpartition("pedcxr-serve:")[2]


def test_stopping_while_it_loads() -> None:
    with launched() as process:
        until(lambda: len(family(process.pid)) > 1)
        pids = family(process.pid)
        process.terminate()
        assert process.wait(60) == 0
    assert alive(pids) == set()


def test_ports_in_use_are_told_at_once(running: LocalServer) -> None:
    port = running.root.rpartition(":")[2]
    for flags in (("--port", port), ("--port", "0", "--admin-port", port)):
        begun = time.monotonic()
        done = subprocess.run([COMMAND, "start", *flags], capture_output=True, text=True, timeout=30, check=False)
        assert (done.returncode, port in done.stderr) == (2, True)
        assert time.monotonic() - begun < 5


def test_a_second_start_on_the_same_socket_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
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
def test_wrong_settings_are_told_at_once(flags: tuple[str, ...], env: dict[str, str], words: str) -> None:
    done = start(*flags, env=env)
    assert (done.returncode, words in done.stderr) == (2, True), done.stderr
    assert "Traceback" not in done.stderr


def test_a_checkpoint_that_cannot_be_served(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(CHECKPOINT, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    done = start("--model", str(folder))
    assert (done.returncode, "model.safetensors" in done.stderr) == (3, True)
    check = subprocess.run([COMMAND, "check", "--model", str(folder)], capture_output=True, text=True, check=False)
    assert (check.returncode, "model.safetensors" in check.stdout) == (3, True)


def test_clients_wait_while_it_loads() -> None:
    """A server that loads answers 503 and says what it is doing; it never refuses a connection."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with launched("--port", str(port)) as process:
        until(lambda: reachable(port))
        answer = httpx.post(f"http://127.0.0.1:{port}/v1/chat/completions", json={})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")
        assert httpx.get(f"http://127.0.0.1:{port}/health/live").status_code == 200
        process.terminate()
        assert process.wait(60) == 0
