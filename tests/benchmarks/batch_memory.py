"""Measure the memory of `pedcxr batch` for increasing numbers of films, against a fake engine in its own process.

    python -m tests.benchmarks.batch_memory [FILMS ...]

Prints the maximum resident size of each run, films per second, and whether every film has one line and one report.
"""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any

from PIL import Image

from tests.support.servers.fake_engine import FakeEngine

FILES = 200  # on disk; a larger run lists each file several times, with different ids and ages
SIDE = 256


def serve(ready: Any) -> None:
    with FakeEngine() as engine:
        engine.requests = deque(maxlen=1)  # type: ignore[assignment]
        ready.send(engine.url)
        ready.recv()


def manifest(folder: Path, films: int) -> Path:
    path = folder / f"{films}.csv"
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("path", "id", "age", "sex", "assume_chest"))
        for number in range(films):
            rows.writerow((f"{number % FILES}.png", f"film-{number}", f"{number // FILES}d", "M", "yes"))
    return path


def run(folder: Path, url: str, films: int) -> str:
    out = folder / f"{films}.jsonl"
    command = [sys.executable, "-m", "pedcxr_client", "batch", str(manifest(folder, films)), "-o", str(out)]
    start = time.monotonic()
    process = subprocess.Popen([*command, "--url", url, "--concurrency", "16"], stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.monotonic() - start
    ids: set[str] = set()
    lines = reports = 0
    with out.open() as file:
        for line in file:
            entry = json.loads(line)
            lines, reports = lines + 1, reports + bool(entry.get("text"))
            ids.add(entry["id"])
    state = (
        "complete" if (len(ids), lines, reports) == (films, films, films) else f"BROKEN: {len(ids)} {lines} {reports}"
    )
    return f"{films:>8} {usage.ru_maxrss / 1024:>10.0f} MiB {films / seconds:>8.0f} {process.returncode:>5}  {state}"


def main() -> None:
    sizes = [int(word) for word in sys.argv[1:]] or [1_000, 10_000, 100_000]
    parent, child = multiprocessing.Pipe()
    engine = multiprocessing.get_context("spawn").Process(target=serve, args=(child,))
    engine.start()
    url = parent.recv()
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for number in range(FILES):
                Image.frombytes("L", (SIDE, SIDE), os.urandom(SIDE * SIDE)).save(folder / f"{number}.png")
            print(f"{'films':>8} {'largest':>14} {'films/s':>8} {'exit':>5}")
            for films in sizes:
                print(run(folder, url, films), flush=True)
    finally:
        parent.send(None)
        engine.join()


if __name__ == "__main__":
    main()
