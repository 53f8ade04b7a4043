"""Start a server, or its gateway alone, from a checked configuration."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Awaitable, Callable, Iterator

import aiohttp
import uvloop

from pedcxr_serve.config import load, paths, secret_file
from pedcxr_serve.config.settings import ServeConfig
from pedcxr_serve.engine import address
from pedcxr_serve.engine.address import EngineAddress
from pedcxr_serve.engine.process import Engine, vllm
from pedcxr_serve.engine.remote import RemoteEngine
from pedcxr_serve.engine.socket_dir import engine_socket, remove_stale_folders, socket_folder
from pedcxr_serve.engine.supervisor import Supervisor
from pedcxr_serve.errors import ConfigError
from pedcxr_serve.gateway.http.listeners import Listeners, listen
from pedcxr_serve.gateway.state import open_state
from pedcxr_serve.launcher import console
from pedcxr_serve.launcher.console import Console
from pedcxr_serve.launcher.preparation import prepare
from pedcxr_serve.launcher.server import EngineKeeper, Server
from pedcxr_serve.vllm_plugin import sandbox


def start(settings: ServeConfig, *, work: Callable[[str], Awaitable[None]] | None = None) -> None:
    """Serve until SIGINT or SIGTERM or, with ``work``, until it has completed.

    Args:
        settings: the checked configuration.
        work: called with the base URL of the API when the server is ready.

    Raises:
        ServeError: see `pedcxr_serve.errors`; no process is left running.
    """
    sandbox.hide_process()  # the audit key is in its environment
    preparation = prepare(settings)
    with contextlib.ExitStack() as stack:
        terminal = stack.enter_context(gateway_console(settings))
        for line in preparation.warnings():
            terminal.print_line(line)
        listeners = stack.enter_context(listen(settings.gateway))
        remove_stale_folders()
        socket = stack.enter_context(socket_folder(settings.engine.socket_dir))
        engine_plan = preparation.plan(socket)
        engine = preparation.describe(engine_plan)
        share = engine.share(settings.gateway)
        state = stack.enter_context(
            open_state(
                settings,
                socket,
                slots=share.slots,
                max_preparing=share.max_preparing,
                max_starting=share.max_starting,
                image_tokens=engine.image_tokens,
                demo=engine.demo,
                env=os.environ,
                image_size=engine.image_size,
                revision=engine.revision,
                adapters=engine.adapters,
            )
        )
        env = dict(engine_plan.env) | {"VLLM_RPC_BASE_PATH": str(socket.parent)}

        def launch() -> Engine:
            preparation.require_unchanged()
            return Engine(vllm(engine_plan.argv), env, terminal.print_engine_line)

        def attach(session: aiohttp.ClientSession) -> EngineKeeper:
            return Supervisor(
                launch, state, session, settings.gateway, settings.served_name, terminal, adapters=engine.adapters
            )

        terminal.print_line(f"pedcxr: starting {settings.served_name} on {preparation.machine.name}")
        server = Server(attach, state, listeners, settings.gateway, terminal)
        uvloop.run(server.run(None if work is None else lambda: work(listeners.url)))


def gateway(settings: ServeConfig, work: Callable[[Listeners], Awaitable[None]] | None = None) -> None:
    """Serve in front of an engine that another process runs, until SIGINT or SIGTERM, or until ``work`` has completed.

    Raises:
        ServeError: see `pedcxr_serve.errors`.
    """
    where = engine_address(settings)
    sandbox.hide_process()  # the audit key is in its environment
    with contextlib.ExitStack() as stack:
        terminal = stack.enter_context(gateway_console(settings))
        listeners = stack.enter_context(listen(settings.gateway))
        # The engine tells its slots and its model when it answers; until then the gateway answers 503.
        state = stack.enter_context(
            open_state(settings, where, slots=1, image_tokens=0, demo=False, env=os.environ, adapters=None)
        )
        if settings.engine.key_file:
            state.engine_key = secret_file.read(paths.expand(settings.engine.key_file))

        def attach(session: aiohttp.ClientSession) -> EngineKeeper:
            return RemoteEngine(state, session, settings, terminal.print_line)

        if not settings.gateway.cache_secret_file:
            terminal.print_line(
                "note: without gateway.cache_secret_file the engine's caches are cold for each gateway and after each "
                "restart"
            )
        terminal.print_line(f"pedcxr: gateway of the engine at {address.describe(where)}")
        server = Server(attach, state, listeners, settings.gateway, terminal)
        uvloop.run(server.run(functools.partial(work, listeners) if work else None))


def engine_address(settings: ServeConfig) -> EngineAddress:
    """Return where a gateway finds its engine.

    Raises:
        ConfigError: no setting says so.
    """
    if settings.gateway.engine:
        return address.parse(settings.gateway.engine)
    if settings.engine.listen:
        return address.listener(settings.engine.listen)
    if settings.engine.socket_dir:
        return engine_socket(settings.engine.socket_dir)
    raise ConfigError(
        "gateway.engine: required for `pedcxr-serve gateway`; use --engine unix:/PATH or http://HOST:PORT, or the "
        "engine.socket_dir or engine.listen of `pedcxr-serve engine`"
    )


@contextlib.contextmanager
def gateway_console(settings: ServeConfig) -> Iterator[Console]:
    """Yield a console that prints the gateway's log too; warn if keys and films would cross the network unencrypted."""
    engine_level, gateway_level = console.level(settings.engine.log_level), settings.gateway.log_level
    terminal = console.Console(engine_level, json_lines=settings.gateway.log_format == "json")
    level = console.level(gateway_level) if gateway_level else min(engine_level, logging.WARNING)
    with terminal.attached("pedcxr.gateway", level):
        if not settings.gateway.tls_cert and not load.is_loopback(settings.gateway.host):
            terminal.print_line(
                "warning: API keys and films cross the network unencrypted; set gateway.tls_cert and gateway.tls_key, "
                "or terminate TLS in a reverse proxy"
            )
        yield terminal
