"""From a checked configuration to a running server: folder, checkpoint, plan, ports, engine."""

from __future__ import annotations

import contextlib
import ctypes
import os

import uvloop

from pedcxr_serve.checkpoint import download, inspect, revision
from pedcxr_serve.config import load
from pedcxr_serve.demo import walkthrough
from pedcxr_serve.engine.process import Engine, vllm
from pedcxr_serve.engine.socket_dir import socket_folder
from pedcxr_serve.errors import ConfigError
from pedcxr_serve.gateway import assemble
from pedcxr_serve.gateway.http.listeners import listen
from pedcxr_serve.launcher import console
from pedcxr_serve.launcher.server import Server
from pedcxr_serve.planner import devices, plan


def start(settings: load.ServeConfig, *, demo: bool = False) -> None:
    """Serve until SIGINT or SIGTERM, or, with ``demo``, until the demonstration is over.

    Raises:
        ServeError: see ``_errors``; nothing is left running.
    """
    load.reject_environment(os.environ)
    folder = download.resolve(settings.model, settings.revision)
    found = inspect.inspect(folder)
    inspect.require_ready(found)
    machine = devices.detect(settings.engine.device)
    _require_kind(machine)
    _require_libnuma(machine)
    terminal = console.Console(console.level(settings.engine.log_level))
    terminal.follow("pedcxr.gateway")
    with contextlib.ExitStack() as stack:
        listeners = stack.enter_context(listen(settings.gateway))
        socket = stack.enter_context(socket_folder(settings.engine.socket_dir))
        made = plan.make(found, machine, settings, model_dir=folder, socket=socket)
        # The processor's own size: `checkpoint` blocks one that is not the vision tower's.
        side = found.shape.vision.image_size if found.shape else 0
        state = stack.enter_context(
            assemble.state(
                settings,
                socket,
                slots=made.max_num_seqs,
                max_preparing=made.max_preparing,
                max_starting=made.max_starting,
                image_tokens=found.shape.image_tokens if found.shape else 0,
                demo=found.demo,
                env=os.environ,
                image_size=(side, side),
                revision=revision.of(folder),
            )
        )
        env = dict(made.env) | {"VLLM_RPC_BASE_PATH": str(socket.parent)}
        server = Server(
            lambda: Engine(vllm(made.argv), env, terminal.engine),
            state,
            listeners,
            settings.gateway,
            settings.served_name,
            terminal,
        )

        async def demonstration() -> None:
            await walkthrough.run(listeners.url)

        if not settings.gateway.tls_cert and not load.is_loopback(settings.gateway.host):
            terminal.say(
                "warning: keys and films cross the network in plain text; set gateway.tls_cert and gateway.tls_key, "
                "or put TLS in front"
            )
        terminal.say(f"pedcxr: starting {settings.served_name} on {machine.name}")
        uvloop.run(server.run(demonstration if demo else None))


def _require_kind(machine: devices.Device) -> None:
    """Refuse to start what was planned for a GPU on a CPU, or the reverse: the flags would not fit."""
    here = devices.detect("auto")
    if machine.kind != here.kind:
        raise ConfigError(
            f"engine.device = {machine.name}: this machine is {here.name}. Allowed to start is auto; "
            "`pedcxr-serve plan` prints what another machine would hold."
        )


def _require_libnuma(machine: devices.Device) -> None:
    """Tell in words what vLLM's CPU build (0.32) would tell as an import error from the middle of its start."""
    if machine.kind != "cpu":
        return
    try:
        ctypes.CDLL("libnuma.so.1")
    except OSError:
        raise ConfigError(
            "libnuma.so.1 is not on this machine, and vLLM's CPU build needs it; install it "
            "(Debian, Ubuntu: apt-get install libnuma1)"
        ) from None
