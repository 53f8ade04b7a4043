"""From a checked configuration to a running server: folder, checkpoint, plan, ports, engine."""

from __future__ import annotations

import contextlib
import ctypes
import os

import uvloop

from . import checkpoint, config, console, device, hub, plan, revision
from ._errors import ConfigError
from .demo import show
from .engine import Engine, vllm
from .gateway import assemble
from .listeners import listen
from .runtime import socket_folder
from .server import Server


def start(settings: config.ServeConfig, *, demo: bool = False) -> None:
    """Serve until SIGINT or SIGTERM, or, with ``demo``, until the demonstration is over.

    Raises:
        ServeError: see ``_errors``; nothing is left running.
    """
    config.refuse_environment(os.environ)
    folder = hub.resolve(settings.model, settings.revision)
    found = checkpoint.inspect(folder)
    checkpoint.require_ready(found)
    machine = device.detect(settings.engine.device)
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
            await show.run(listeners.url)

        if not settings.gateway.tls_cert and not config.is_loopback(settings.gateway.host):
            terminal.say(
                "warning: keys and films cross the network in plain text; set gateway.tls_cert and gateway.tls_key, "
                "or put TLS in front"
            )
        terminal.say(f"pedcxr: starting {settings.served_name} on {machine.name}")
        uvloop.run(server.run(demonstration if demo else None))


def _require_kind(machine: device.Device) -> None:
    """Refuse to start what was planned for a GPU on a CPU, or the reverse: the flags would not fit."""
    here = device.detect("auto")
    if machine.kind != here.kind:
        raise ConfigError(
            f"engine.device = {machine.name}: this machine is {here.name}. Allowed to start is auto; "
            "`pedcxr-serve plan` prints what another machine would hold."
        )


def _require_libnuma(machine: device.Device) -> None:
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
