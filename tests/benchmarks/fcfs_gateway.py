"""A second gateway in front of an engine that runs: without tenants, so one line, first come first served."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvloop

from pedcxr_serve.config import load
from pedcxr_serve.gateway import app, assemble
from pedcxr_serve.gateway.http import server
from pedcxr_serve.gateway.http.listeners import listen


@contextmanager
def first_come(engine: Path, slots: int, model: str, folder: Path) -> Iterator[str]:
    """Run one in a process of its own until the end of the block; its address, without ``/v1``.

    Args:
        engine: the socket.
        slots: the engine's ``max-num-seqs``.
        model: its name.
        folder: for a file of the two.

    Raises:
        SystemExit: it ended by itself.
    """
    up = folder / "first-come"
    command = [sys.executable, "-m", __name__, str(engine), str(slots), model, str(up)]
    with subprocess.Popen(command) as process:
        try:
            while not up.exists():
                if process.poll() is not None:
                    raise SystemExit(f"the second gateway ended with status {process.returncode}")
                time.sleep(0.05)
            yield up.read_text()
        finally:
            process.terminate()


async def _main(engine: Path, slots: int, model: str, up: Path) -> None:
    settings = load.load(None, {"gateway.port": 0, "gateway.admin_port": 0, "served_name": model})
    with (
        assemble.state(settings, engine, slots=slots, image_tokens=0, demo=True, env={}) as state,
        listen(settings.gateway) as listeners,
    ):
        async with app.engine_session(state) as session, server.serving(state, session, listeners):
            state.set_ready(True, "ready")
            made = up.with_suffix(".made")
            made.write_text(listeners.url.removesuffix("/v1"))
            made.rename(up)
            await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(_main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4])))
