"""Inspect the processes of a running server."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.paths import REAL_FILMS

COMMAND = str(Path(sys.executable).parent / "pedcxr-serve")
FILMS = REAL_FILMS / "pediatric_png"


def family(pid: int) -> set[int]:
    """Return the process ids of a server and its descendants."""
    pids: set[int] = set()
    frontier = {pid}
    while frontier:
        pids |= frontier
        frontier = {child for child, parent in _parents().items() if parent in frontier} - pids
    return pids


def alive(pids: set[int]) -> set[int]:
    """Return the processes that are still running; a zombie is not."""
    return {pid for pid in pids if _state(pid) not in ("", "Z")}


def title(pid: int) -> str:
    """Return the command line of a process, or its title if it has set one; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


@contextmanager
def held_still(pid: int) -> Iterator[None]:
    """Suspend the engine of a server with SIGSTOP during the block, so that no request in flight can complete."""
    [core] = [child for child in family(pid) if "EngineCore" in title(child)]
    os.kill(core, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):  # the block may end the engine
            os.kill(core, signal.SIGCONT)


def shared_memory(pids: set[int]) -> set[Path]:
    """Return the files in /dev/shm that any of the processes has mapped."""
    paths = set()
    for pid in pids:
        try:
            maps = Path(f"/proc/{pid}/maps").read_text()
        except OSError:
            continue
        paths |= {Path(line.split(maxsplit=5)[5]) for line in maps.splitlines() if " /dev/shm/" in line}
    return {path for path in paths if path.exists()}


def listening(pids: set[int]) -> list[str]:
    """Return the addresses on which any of the processes listens, as written in /proc/net/tcp."""
    sockets = set()
    for pid in pids:
        for fd in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                sockets.add(fd.readlink().name)
            except OSError:
                continue
    lines = [
        line.split() for table in ("tcp", "tcp6") for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
    ]
    return [line[1] for line in lines if line[3] == "0A" and f"socket:[{line[9]}]" in sockets]


def _parents() -> dict[int, int]:
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue
    return parents


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""
