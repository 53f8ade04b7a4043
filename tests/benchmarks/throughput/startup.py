"""Measure the time from start to ready, alternating pedcxr-serve and bare vLLM; part of ``make bench-overhead``."""

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
from tests.support.servers.local_server import server


def pairs(number: int, folder: Path, flags: Sequence[str]) -> list[tuple[float, float]]:
    """Return pairs of seconds from start to ready: pedcxr-serve, and bare vLLM with the same arguments."""
    results = []
    for _ in tqdm(range(number), desc="starts", unit="pair", disable=None):
        with server(*flags) as running:
            pedcxr_s = running.seconds
        results.append((pedcxr_s, _bare_start(folder, flags)))
    return results


def _bare_start(folder: Path, flags: Sequence[str]) -> float:
    """Return the seconds until bare vLLM answers /health, without plugin, supervisor, gateway and warm-up report."""
    socket = folder / "bare.sock"
    engine_plan = plan.make(
        inspect.inspect(CHECKPOINT),
        devices.detect(),
        cli.parse(["start", *flags]),
        model_dir=CHECKPOINT,
        socket=socket,
    )
    env = {**os.environ, **dict(engine_plan.env), "VLLM_PLUGINS": ""}
    del env["VLLM_MEDIA_CONNECTOR"]
    code = "import sys; from pedcxr_serve.engine.vllm_main import run_vllm; run_vllm(sys.argv[1:])"
    command = [sys.executable, "-c", code, *engine_plan.argv]
    start = time.perf_counter()
    with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            uvloop.run(_wait_until_healthy(socket))
            return time.perf_counter() - start
        finally:
            process.terminate()


async def _wait_until_healthy(socket: Path) -> None:
    async with aiohttp.ClientSession("http://engine", connector=aiohttp.UnixConnector(str(socket))) as session:
        while not await health.is_healthy(session):
            await asyncio.sleep(0.1)


def show(results: Sequence[tuple[float, float]], first: Sequence[float]) -> None:
    """Print ``first``, starts of pedcxr-serve alone, and then the results of `pairs`."""
    print("\nseconds from start to ready: pedcxr-serve (with warm-up report), bare vLLM (first /health)")
    for seconds in first:
        print(f"{seconds:>8.1f}        -")
    for pedcxr_s, bare in results:
        print(f"{pedcxr_s:>8.1f} {bare:>8.1f}")
