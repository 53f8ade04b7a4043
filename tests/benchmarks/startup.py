"""Seconds from start to ready, pedcxr-serve and bare vLLM in turns; a part of ``make bench``."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import aiohttp
import uvloop
from tqdm import tqdm

from pedcxr_serve import cli
from pedcxr_serve.checkpoint import inspect
from pedcxr_serve.demo import CHECKPOINT
from pedcxr_serve.engine import health
from pedcxr_serve.planner import devices, plan
from tests.benchmarks.local_server import server


def pairs(number: int, folder: Path, flags: Sequence[str]) -> list[tuple[float, float]]:
    """Seconds from start to ready, of pedcxr-serve and of bare vLLM with the same arguments, in turns."""
    found = []
    for _ in tqdm(range(number), desc="starts", unit="pair", disable=None):
        with server(*flags) as running:
            ours = running.seconds
        found.append((ours, _bare_start(folder, flags)))
    return found


def _bare_start(folder: Path, flags: Sequence[str]) -> float:
    """Seconds until stock vLLM answers /health: no plugin, no supervisor, no gateway, no warm-up report."""
    socket = folder / "bare.sock"
    made = plan.make(
        inspect.inspect(CHECKPOINT),
        devices.detect(),
        cli.parse(["start", *flags]),
        model_dir=CHECKPOINT,
        socket=socket,
    )
    env = {**os.environ, **dict(made.env), "VLLM_PLUGINS": ""}
    del env["VLLM_MEDIA_CONNECTOR"]
    code = "import sys; from pedcxr_serve.engine.vllm_main import run_vllm; run_vllm(sys.argv[1:])"
    command = [sys.executable, "-c", code, *made.argv]
    start = time.perf_counter()
    with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            uvloop.run(_answers(socket))
            return time.perf_counter() - start
        finally:
            process.terminate()


async def _answers(socket: Path) -> None:
    async with aiohttp.ClientSession("http://engine", connector=aiohttp.UnixConnector(str(socket))) as session:
        while not await health.is_healthy(session):
            await asyncio.sleep(0.1)


def show(found: Sequence[tuple[float, float]], first: Sequence[float]) -> None:
    """Print `pairs`, and before them starts of pedcxr-serve alone."""
    print("\nseconds from start to ready: pedcxr-serve, with a warm-up report; bare vLLM, to its first /health")
    for seconds in first:
        print(f"{seconds:>8.1f}        -")
    for ours, bare in found:
        print(f"{ours:>8.1f} {bare:>8.1f}")
