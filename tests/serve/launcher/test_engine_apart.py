"""The engine without a gateway: its start, its restart, and its stop, with a fake engine in a process of its own."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import sys
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from pedcxr_serve import cli
from pedcxr_serve.config import load, secret_file
from pedcxr_serve.engine import access, address, description, process
from pedcxr_serve.engine.process import Engine
from pedcxr_serve.errors import ConfigError
from pedcxr_serve.launcher import engine as engine_launcher
from pedcxr_serve.launcher.console import Console
from pedcxr_serve.launcher.engine import EngineServer
from tests.support.paths import ROOT
from tests.support.servers.apart import DESCRIPTION
from tests.support.servers.gateway_server import BODY, CHAT


class Running:
    """An `EngineServer` in front of a fake engine whose reports take ``gap`` seconds per piece."""

    def __init__(self, folder: Path, gap: float = 0.0) -> None:
        folder.mkdir(mode=0o700)
        self.folder, self.socket = folder, folder / "engine.sock"
        variables = access.prepare(folder, DESCRIPTION, None)
        command = [sys.executable, "-m", "tests.support.servers.engine_process", str(self.socket)]
        command += [str(folder / "starts"), str(gap)]
        path = os.pathsep.join([str(ROOT), str(ROOT / "client"), str(ROOT / "serve")])
        self.engines: list[Engine] = []

        def launch() -> Engine:
            self.engines.append(Engine(command, {"PYTHONPATH": path} | variables, lambda _: None))
            return self.engines[-1]

        self.out = io.StringIO()
        settings = load.load(
            None, {"served_name": "fake", "gateway.restart_wait_s": 0, "engine.socket_dir": folder.name}
        )
        self.server = EngineServer(launch, self.socket, "", folder, settings, Console(0, self.out))
        self.task = asyncio.create_task(self.server.run())

    async def until(self, text: str) -> None:
        """Wait until the launcher has printed a text."""
        async with asyncio.timeout(60):
            while text not in self.out.getvalue():
                if self.task.done():
                    await self.task
                await asyncio.sleep(0.01)

    async def ask(self) -> aiohttp.ClientResponse:
        async with address.session(self.socket) as session, session.post(CHAT, json=BODY | {"stream": True}) as answer:
            await answer.read()
            return answer


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 300))


def test_first_signal_lets_requests_complete(tmp_path: Path) -> None:
    async def work() -> None:
        running = Running(tmp_path / "run", gap=1.0)  # the report outlasts the refusal below
        await running.until("engine ready after")
        assert f"model fake at unix:{running.socket}" in running.out.getvalue()
        async with address.session(running.socket) as session, session.get(description.PATH) as answer:
            assert msgspec.json.decode(await answer.read(), type=type(DESCRIPTION)) == DESCRIPTION
        request = BODY | {"stream": True}
        async with address.session(running.socket) as session, session.post(CHAT, json=request) as answer:
            assert await answer.content.readline()
            os.kill(os.getpid(), signal.SIGTERM)
            await running.until("stopping")
            assert (await running.ask()).status == 503
            assert (await answer.read()).endswith(b"data: [DONE]\n\n")
        await running.task
        assert running.engines[-1].status == 0

    run(work())


def test_second_signal_ends_requests(tmp_path: Path) -> None:
    async def work() -> None:
        running = Running(tmp_path / "run", gap=60)
        await running.until("engine ready after")
        request = BODY | {"stream": True}
        async with address.session(running.socket) as session, session.post(CHAT, json=request) as answer:
            os.kill(os.getpid(), signal.SIGTERM)
            await running.until("stopping")
            os.kill(os.getpid(), signal.SIGTERM)
            with pytest.raises(aiohttp.ClientError):
                await answer.read()
        await running.task

    run(work())


def test_killed_engine_is_replaced_and_keeps_its_description(tmp_path: Path) -> None:
    async def work() -> None:
        running = Running(tmp_path / "run")
        await running.until("engine ready after")
        assert running.engines[0].pid is not None
        os.kill(running.engines[0].pid, signal.SIGKILL)
        await running.until("ready again after")
        assert (await running.ask()).status == 200
        os.kill(os.getpid(), signal.SIGINT)
        await running.task

    run(work())


def test_command_and_environment_of_the_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a TCP address vLLM gets host and port, the middleware, and the path of the key, but never the key."""
    launched: list[tuple[tuple[str, ...], dict[str, str]]] = []

    async def record(server: EngineServer) -> None:
        engine = server.launch()
        launched.append((engine._command, engine._env))
        assert (server.folder / "engine.json").exists()

    monkeypatch.setattr(EngineServer, "run", record)
    monkeypatch.setenv("PEDCXR_AUDIT_KEY", "a" * 32)
    key_file = tmp_path / "engine.key"
    words = ["engine", "--listen", "127.0.0.1:8100", "--key-file", str(key_file)]
    with tempfile.TemporaryDirectory(prefix="pedcxr-", dir="/tmp") as short:  # the path of a Unix socket is short
        engine_launcher.serve(cli.parse([*words, "--socket-dir", f"{short}/run"]))
        assert not Path(short, "run").exists()
    [(command, env)] = launched
    key = secret_file.read(key_file)
    assert key_file.stat().st_mode & 0o777 == 0o600
    assert command[6:10] == ("--host", "127.0.0.1", "--port", "8100")
    assert "--uds" not in command and command[-2:] == ("--middleware", access.MIDDLEWARE)
    assert env["PEDCXR_ENGINE_KEY_FILE"] == str(key_file)
    assert "PEDCXR_AUDIT_KEY" not in env
    assert key not in " ".join([*command, *env.values()])
    assert process.vllm(("serve",)) == command[: len(process.vllm(("serve",)))]


@pytest.mark.parametrize(
    ("words", "text"), [((), "engine.socket_dir"), (("--listen", "here", "--key-file", "k"), "engine.listen = 'here'")]
)
def test_engine_that_no_gateway_could_find_does_not_start(words: tuple[str, ...], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        engine_launcher.serve(cli.parse(["engine", *words]))
