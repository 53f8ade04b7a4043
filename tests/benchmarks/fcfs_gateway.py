"""A second gateway without tenants in front of a running engine: one queue, first come, first served."""

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
from pedcxr_serve.gateway import app
from pedcxr_serve.gateway.http import server
from pedcxr_serve.gateway.http.listeners import listen
from pedcxr_serve.gateway.state import open_state


@contextmanager
def fcfs_gateway(engine: Path, slots: int, model: str, folder: Path) -> Iterator[str]:
    """Run the gateway in another process until the end of the block; yield its address without ``/v1``.

    Args:
        engine: the engine's socket.
        slots: the engine's ``max-num-seqs``.
        model: the engine's model name.
        folder: for the file with the address.

    Raises:
        SystemExit: the gateway exited before it was ready.
    """
    address_file = folder / "fcfs-gateway"
    command = [sys.executable, "-m", __name__, str(engine), str(slots), model, str(address_file)]
    with subprocess.Popen(command) as process:
        try:
            while not address_file.exists():
                if process.poll() is not None:
                    raise SystemExit(f"the second gateway exited with status {process.returncode}")
                time.sleep(0.05)
            yield address_file.read_text()
        finally:
            process.terminate()


async def _main(engine: Path, slots: int, model: str, address_file: Path) -> None:
    settings = load.load(None, {"gateway.port": 0, "gateway.admin_port": 0, "served_name": model})
    with (
        open_state(settings, engine, slots=slots, image_tokens=0, demo=True, env={}) as state,
        listen(settings.gateway) as listeners,
    ):
        async with app.engine_session(state) as session, server.serving(state, session, listeners):
            state.set_ready(True, "ready")
            new = address_file.with_suffix(".new")
            new.write_text(listeners.url.removesuffix("/v1"))
            new.rename(address_file)
            await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(_main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4])))
