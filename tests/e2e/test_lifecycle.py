"""Starts that must fail, ends that must be clean, and an engine that dies."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import httpx
import pytest

from pedcxr_serve.demo import CHECKPOINT
from pedcxr_serve.local import LocalServer, server

from .conftest import Study, reference, served, token_ids
from .flat import save_flat
from .support import COMMAND, alive, family, title
from .test_parity import other_ages

pytestmark = pytest.mark.slow


def leftovers() -> set[str]:
    """Names where a server could leave something behind."""
    return {path.name for folder in ("/tmp", "/dev/shm") for path in Path(folder).iterdir()}


def start(*flags: str, env: dict[str, str] | None = None, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, "start", "--port", "0", "--admin-port", "0", *flags],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, **(env or {})},
        check=False,
    )


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
    again = other_ages(phantoms)
    served(running.url, phantoms, 32)
    answers = served(running.url, again, 32)
    cached = {answer.usage.prompt_tokens_details.cached_tokens for answer in answers}  # type: ignore[union-attr]
    assert cached & {32, 64}, f"no prefix ended inside the image (tokens 8 to 71): {cached}"
    assert [token_ids(answer) for answer in answers] == reference(again)
    assert [token_ids(answer) for answer in served(running.url, again, 1)] == reference(again)


def test_an_engine_that_dies_takes_the_server_down() -> None:
    before = leftovers()
    with server() as running:
        pids = family(running.process.pid)
        [engine] = [pid for pid in pids if "EngineCore" in title(pid)]
        os.kill(engine, signal.SIGKILL)
        assert running.process.wait(60) == 4
        assert "the engine ended by itself" in running.log.read_text()
        assert "engine | " in running.log.read_text()
    assert alive(pids) == set()
    assert not [name for name in leftovers() - before if name.startswith("pedcxr-")]


def test_a_server_killed_outright_takes_its_engine_with_it() -> None:
    process = subprocess.Popen([COMMAND, "start", "--port", "0", "--admin-port", "0"], stderr=subprocess.DEVNULL)
    family: set[int] = set()
    end = time.monotonic() + 60
    running = LocalServer(process, "", "", Path())
    while len(family) < 2 and time.monotonic() < end:
        time.sleep(0.2)
        pids = family(running.process.pid)
    time.sleep(3)  # the child asks for the parent's death signal once Python runs in it
    process.kill()
    process.wait()
    while alive(pids) and time.monotonic() < end:
        time.sleep(0.2)
    assert alive(pids) == set()


def test_a_flag_that_vllm_does_not_know() -> None:
    done = start("--", "--no-such-flag", timeout=120)
    assert done.returncode == 4
    assert "--no-such-flag" in done.stderr
    assert "Traceback" not in done.stderr.rpartition("pedcxr-serve:")[2]


def test_stopping_while_it_loads() -> None:
    process = subprocess.Popen(
        [COMMAND, "start", "--port", "0", "--admin-port", "0"], stderr=subprocess.PIPE, text=True
    )
    time.sleep(4)
    pids = family(process.pid)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 0
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
    first = subprocess.Popen(
        [COMMAND, "start", "--port", "0", "--admin-port", "0", "--socket-dir", str(folder)], stderr=subprocess.DEVNULL
    )
    while not (folder / "lock").exists():
        time.sleep(0.05)
    second = start("--socket-dir", str(folder))
    first.terminate()
    assert first.wait(60) == 0
    assert (second.returncode, "held by a server" in second.stderr) == (2, True)


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


def test_clients_wait_while_it_loads(running: LocalServer) -> None:
    """A server that has just been started answers 503 and says what it is doing; it never refuses a connection."""
    process = subprocess.Popen([COMMAND, "start", "--port", "18431", "--admin-port", "0"], stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 20
        while time.monotonic() < end:
            try:
                answer = httpx.post("http://127.0.0.1:18431/v1/chat/completions", json={})
                break
            except httpx.ConnectError:
                time.sleep(0.1)
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "not_ready"
    finally:
        process.terminate()
        assert process.wait(60) == 0
