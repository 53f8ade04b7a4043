"""Start a server from a checked configuration: model folder, checkpoint, plan, ports, engine."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
from collections.abc import Awaitable, Callable

import uvloop

from pedcxr_serve.checkpoint import download, inspect, revision
from pedcxr_serve.config import load
from pedcxr_serve.config.settings import ServeConfig
from pedcxr_serve.engine.process import Engine, vllm
from pedcxr_serve.engine.socket_dir import remove_stale_folders, socket_folder
from pedcxr_serve.errors import ConfigError
from pedcxr_serve.gateway.auth.models import ServedAdapter
from pedcxr_serve.gateway.http.listeners import listen
from pedcxr_serve.gateway.state import open_state
from pedcxr_serve.launcher import console
from pedcxr_serve.launcher.server import Server
from pedcxr_serve.planner import adapters, devices, plan
from pedcxr_serve.vllm_plugin import sandbox


def start(settings: ServeConfig, *, work: Callable[[str], Awaitable[None]] | None = None) -> None:
    """Serve until SIGINT or SIGTERM or, with ``work``, until it has completed.

    Args:
        settings: the checked configuration.
        work: called with the base URL of the API when the server is ready.

    Raises:
        ServeError: see `pedcxr_serve.errors`; no process is left running.
    """
    load.reject_environment(os.environ)
    sandbox.hide_process()  # the audit key is in its environment
    folder = download.resolve(settings.model, settings.revision)
    checkpoint = inspect.inspect(folder)
    inspect.require_ready(checkpoint)
    loaded = adapters.inspect(settings, checkpoint)
    adapters.require_ready(loaded)
    machine = devices.detect(settings.engine.device)
    _require_kind(machine)
    _require_libnuma(machine)
    engine_level = console.level(settings.engine.log_level)
    gateway_level = settings.gateway.log_level
    terminal = console.Console(engine_level, json_lines=settings.gateway.log_format == "json")
    for name, one in loaded.items():
        for problem in one.problems:
            terminal.print_line(f"warning: adapter {name}: {problem.where} {problem.what}: {problem.remedy}")
    with contextlib.ExitStack() as stack:
        level = console.level(gateway_level) if gateway_level else min(engine_level, logging.WARNING)
        stack.enter_context(terminal.attached("pedcxr.gateway", level))
        listeners = stack.enter_context(listen(settings.gateway))
        remove_stale_folders()
        socket = stack.enter_context(socket_folder(settings.engine.socket_dir))
        engine_plan = plan.make(checkpoint, machine, settings, model_dir=folder, socket=socket, served_adapters=loaded)
        # The processor uses the same size: `inspect` refuses a checkpoint in which the two differ.
        side = checkpoint.shape.vision.image_size if checkpoint.shape else 0
        state = stack.enter_context(
            open_state(
                settings,
                socket,
                slots=engine_plan.max_num_seqs,
                max_preparing=engine_plan.max_preparing,
                max_starting=engine_plan.max_starting,
                image_tokens=checkpoint.shape.image_tokens if checkpoint.shape else 0,
                demo=checkpoint.demo,
                env=os.environ,
                image_size=(side, side),
                revision=revision.of(folder),
                adapters={
                    name: ServedAdapter(one.revision, frozenset(settings.adapters[name].tenants))
                    for name, one in loaded.items()
                },
            )
        )
        env = dict(engine_plan.env) | {"VLLM_RPC_BASE_PATH": str(socket.parent)}

        def launch() -> Engine:
            adapters.require_unchanged(loaded)
            return Engine(vllm(engine_plan.argv), env, terminal.print_engine_line)

        server = Server(
            launch,
            state,
            listeners,
            settings.gateway,
            settings.served_name,
            terminal,
        )

        if not settings.gateway.tls_cert and not load.is_loopback(settings.gateway.host):
            terminal.print_line(
                "warning: API keys and films cross the network unencrypted; set gateway.tls_cert and gateway.tls_key, "
                "or terminate TLS in a reverse proxy"
            )
        terminal.print_line(f"pedcxr: starting {settings.served_name} on {machine.name}")
        uvloop.run(server.run(None if work is None else lambda: work(listeners.url)))


def _require_kind(machine: devices.Device) -> None:
    """Refuse to start on a CPU with a plan for a GPU, or the reverse: the flags would not match."""
    local = devices.detect("auto")
    if machine.kind != local.kind:
        raise ConfigError(
            f"engine.device = {machine.name}: this machine is {local.name}; start with engine.device = auto, "
            "or use `pedcxr-serve plan` to plan for another machine"
        )


def _require_libnuma(machine: devices.Device) -> None:
    """Check for libnuma before vLLM's CPU build (0.32) fails with an import error during its start."""
    if machine.kind != "cpu":
        return
    try:
        ctypes.CDLL("libnuma.so.1")
    except OSError:
        raise ConfigError(
            "libnuma.so.1 is not installed, and vLLM's CPU build needs it; install it "
            "(Debian, Ubuntu: apt-get install libnuma1)"
        ) from None
