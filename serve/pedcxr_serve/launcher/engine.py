"""Run an engine apart from its gateways: a supervised vLLM on a Unix socket, or on a TCP address with a key."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import uvloop

from pedcxr_serve.config import paths, secret_file
from pedcxr_serve.config.settings import ServeConfig
from pedcxr_serve.engine import access, address
from pedcxr_serve.engine.address import EngineAddress
from pedcxr_serve.engine.process import Engine, vllm
from pedcxr_serve.engine.socket_dir import remove_stale_folders, socket_folder
from pedcxr_serve.engine.status import StandaloneStatus
from pedcxr_serve.engine.supervisor import Supervisor
from pedcxr_serve.errors import ConfigError
from pedcxr_serve.launcher import console
from pedcxr_serve.launcher.console import Console
from pedcxr_serve.launcher.preparation import prepare
from pedcxr_serve.launcher.server import first, signal_handlers


def serve(settings: ServeConfig) -> None:
    """Run the engine until SIGINT or SIGTERM.

    Raises:
        ServeError: see `pedcxr_serve.errors`; no process is left running.
    """
    listen, key_file = _listen(settings), _key_file(settings)
    preparation = prepare(settings)
    key = secret_file.read_or_create(key_file) if key_file else ""
    json_lines = settings.gateway.log_format == "json"
    terminal = console.Console(console.level(settings.engine.log_level), json_lines=json_lines)
    with contextlib.ExitStack() as stack:
        stack.callback(terminal.close)
        remove_stale_folders()
        socket = stack.enter_context(socket_folder(settings.engine.socket_dir))
        folder, where = socket.parent, listen or socket
        engine_plan = preparation.plan(where)
        description = preparation.describe(engine_plan)
        variables = access.prepare(folder, description, key_file)
        stack.callback(access.remove, folder)
        env = dict(engine_plan.env) | {"VLLM_RPC_BASE_PATH": str(folder)} | variables
        command = vllm((*engine_plan.argv, "--middleware", access.MIDDLEWARE))

        def launch() -> Engine:
            preparation.require_unchanged()
            return Engine(command, env, terminal.print_engine_line)

        for line in preparation.warnings():
            terminal.print_line(line)
        terminal.print_line(f"pedcxr: starting the engine of {settings.served_name} on {preparation.machine.name}")
        uvloop.run(EngineServer(launch, where, key, folder, settings, terminal, tuple(description.adapters)).run())


@dataclass(frozen=True, slots=True)
class EngineServer:
    """A supervised engine without a gateway.

    Attributes:
        launch: creates the next engine process without starting it.
        folder: with the files of `pedcxr_serve.engine.access`.
    """

    launch: Callable[[], Engine]
    where: EngineAddress
    key: str
    folder: Path
    settings: ServeConfig
    console: Console
    adapters: tuple[str, ...] = ()

    async def run(self) -> None:
        """Run until SIGINT or SIGTERM, then let requests in flight complete. A second signal ends them.

        Raises:
            EngineNotReady, EngineDied: the first start failed, or ``gateway.restarts`` consecutive restarts failed.
        """
        started, config = time.monotonic(), self.settings.gateway
        stop, urgent = asyncio.Event(), asyncio.Event()
        status = StandaloneStatus(self.where)
        with signal_handlers(stop, urgent, lambda: None):
            async with address.session(self.where, self.key) as session:
                name = self.settings.served_name
                engine = Supervisor(self.launch, status, session, config, name, self.console, adapters=self.adapters)
                try:
                    if await first(engine.start(), stop.wait()):
                        seconds, where = time.monotonic() - started, address.describe(self.where)
                        self.console.print_line(f"engine ready after {seconds:.1f} s: model {name} at {where}")
                        await first(engine.keep(), stop.wait())
                        self.console.print_line("stopping; waiting for requests in flight (Ctrl-C again aborts them)")
                        await first(access.drain(self.folder), asyncio.sleep(config.drain_s), urgent.wait())
                finally:
                    await engine.stop(urgent)


def _listen(settings: ServeConfig) -> EngineAddress | None:
    if settings.engine.listen:
        return address.listener(settings.engine.listen)
    if not settings.engine.socket_dir:
        raise ConfigError(
            "engine.socket_dir: required for `pedcxr-serve engine`, so that gateways find the socket in it; or set "
            "engine.listen and engine.key_file for gateways on other machines"
        )
    return None


def _key_file(settings: ServeConfig) -> Path | None:
    return paths.expand(settings.engine.key_file).absolute() if settings.engine.listen else None
