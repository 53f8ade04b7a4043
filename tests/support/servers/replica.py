"""A replica for fleet tests in its own process: the real launcher and gateway, before a fake engine in a child process.

    python -m tests.support.servers.replica start --port P --admin-port P ... [-- --gap 0.02 --pieces 20 --slots 8]

The options before ``--`` are those of ``pedcxr-serve start``. The engine answers 500 to a request that contains the
word ``poison``, and waits for 3 s before it answers one that contains the word ``slow``. Its page of metrics counts the
reports that it began (``fake_chat_requests_total``).
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

import aiohttp
import uvloop

from pedcxr_serve import cli
from pedcxr_serve.engine.process import Engine
from pedcxr_serve.engine.socket_dir import socket_folder
from pedcxr_serve.engine.supervisor import Supervisor
from pedcxr_serve.engine.vllm_main import die_with_parent
from pedcxr_serve.gateway.http.listeners import listen
from pedcxr_serve.gateway.state import open_state
from pedcxr_serve.launcher.console import Console
from pedcxr_serve.launcher.server import EngineKeeper, Server
from pedcxr_serve.vllm_plugin import refusals
from tests.support.paths import ROOT
from tests.support.servers.fake_engine import Answer, FakeEngine, RecordedRequest

POISON, SLOW = "poison", "slow"
NAME = "pedcxr-demo"


class PoisonableEngine(FakeEngine):
    """Fails on a request that contains `POISON`, as an engine does that a film breaks; see also `SLOW`."""

    async def _chat(self, request: RecordedRequest, reply: Any) -> None:
        if POISON.encode() in request.body:
            self._answers.appendleft(Answer(status=500))
        elif SLOW.encode() in request.body:
            self._answers.appendleft(Answer(first=3))
        await super()._chat(request, reply)


def serve(words: list[str]) -> None:
    """Run a replica until SIGTERM."""
    words, engine_words = cli.split(words)
    settings = cli.parse(words)
    options = _parser().parse_args(engine_words)
    console = Console(0)
    python_path = os.pathsep.join([str(ROOT), str(ROOT / "client"), str(ROOT / "serve")])
    with (
        contextlib.closing(console),
        console.attached("pedcxr.gateway", logging.WARNING),
        listen(settings.gateway) as listeners,
        socket_folder("") as socket,
        open_state(settings, socket, slots=options.slots, image_tokens=256, demo=True, env=os.environ) as state,
    ):
        command = [sys.executable, "-m", __spec__.name, "engine", str(socket), *engine_words]

        def launch() -> Engine:
            return Engine(command, {"PYTHONPATH": python_path}, console.print_engine_line)

        def attach(session: aiohttp.ClientSession) -> EngineKeeper:
            return Supervisor(launch, state, session, settings.gateway, NAME, console)

        server = Server(attach, state, listeners, settings.gateway, console)
        uvloop.run(server.run())


def engine(words: list[str]) -> None:
    """Run a fake engine on a Unix socket until SIGTERM, or until its parent ends."""
    die_with_parent()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    options = _parser().parse_args(words[1:])
    with PoisonableEngine(uds=Path(words[0])) as fake:
        fake.models = (NAME,)
        refusal = {"message": refusals.mark("film_refused", "has 16 bits"), "type": "X", "param": None, "code": 400}
        fake.reply(Answer(), Answer(status=400, error=refusal))  # the warm-up report, and the film to refuse
        fake.answer = Answer(pieces=tuple(f" word{n}" for n in range(options.pieces)), gap=options.gap)
        signal.sigwait({signal.SIGTERM})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("replica")
    parser.add_argument("--gap", type=float, default=0.01, help="seconds before each piece of a report")
    parser.add_argument("--pieces", type=int, default=20)
    parser.add_argument("--slots", type=int, default=8)
    return parser


if __name__ == "__main__":
    role, *rest = sys.argv[1:]
    engine(rest) if role == "engine" else serve([role, *rest])
