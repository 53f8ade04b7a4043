"""The gateway, or `bench_engine`, in a process of its own, with keys for it and what the system says of it."""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvloop

from pedcxr_serve.config import load
from pedcxr_serve.gateway.auth import api_keys
from tests.benchmarks import instant_engine

ENGINE_SOCKET = "engine.sock"
SLOTS = 1024
"""Requests in work at once."""
_TICKS = os.sysconf("SC_CLK_TCK")
_START_S = 60.0


@dataclass(frozen=True, slots=True)
class Gateway:
    """One that answers.

    Attributes:
        url: base URL for OpenAI clients, ending in ``/v1``.
        keys: by tenant; each may open as many requests as there are slots.
    """

    pid: int
    url: str
    keys: Mapping[str, str]

    def processor_s(self) -> float:
        """Processor time it took so far."""
        return processor_s(self.pid)

    def memory_mib(self) -> float:
        """Resident now."""
        return self._status("VmRSS")

    def peak_mib(self) -> float:
        """Resident at most, since the start or `forget_peak`."""
        return self._status("VmHWM")

    def forget_peak(self) -> None:
        """Measure `peak_mib` anew from here."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def open_files(self) -> int:
        """Descriptors, of sockets too."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def _status(self, name: str) -> float:
        return int(Path(f"/proc/{self.pid}/status").read_text().partition(f"{name}:")[2].split()[0]) / 1024


def processor_s(pid: int) -> float:
    """Processor time that a process took so far, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


@contextmanager
def gateway(folder: Path, *names: str) -> Iterator[Gateway]:
    """A gateway with everything on, for tenants of these names, before what listens on ``folder/ENGINE_SOCKET``."""
    tenants = folder / "tenants.toml"
    tenants.write_text("".join(f"[tenant.{name}]\nmax_concurrent = {SLOTS}\n\n" for name in names))
    made = {name: api_keys.new(tenants, name) for name in names}
    with _child("gateway", folder, folder / "url") as pid:
        yield Gateway(pid, (folder / "url").read_text(), made)


@contextmanager
def engine(folder: Path) -> Iterator[None]:
    """`bench_engine` on ``folder / ENGINE_SOCKET``."""
    with _child("engine", folder, (folder / ENGINE_SOCKET).with_suffix(".up")):
        yield


@contextmanager
def _child(role: str, folder: Path, mark: Path) -> Iterator[int]:
    command = [sys.executable, "-m", "tests.benchmarks.processes", role, str(folder)]
    with subprocess.Popen(command) as process:
        try:
            end = time.monotonic() + _START_S
            while not mark.exists():
                if process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"the {role} of the benchmark did not start")
                time.sleep(0.05)
            yield process.pid
        finally:
            process.terminate()


async def _gateway(folder: Path) -> None:
    from pedcxr_serve.gateway import app, assemble
    from pedcxr_serve.gateway.http import server
    from pedcxr_serve.gateway.http.listeners import listen

    flags = {"gateway.tenants": str(folder / "tenants.toml"), "gateway.audit_log": str(folder / "audit.jsonl")}
    settings = load.load(None, flags | {"gateway.port": 0, "gateway.admin_port": 0, "served_name": "bench"})
    env = {"PEDCXR_AUDIT_KEY": "bench" * 10}
    made = assemble.state(settings, folder / ENGINE_SOCKET, slots=SLOTS, image_tokens=256, demo=False, env=env)
    with made as state, listen(settings.gateway) as listeners:
        async with app.engine_session(state) as session, server.serving(state, session, listeners):
            state.set_ready(True, "ready")
            (folder / "url.new").write_text(listeners.url)
            (folder / "url.new").rename(folder / "url")
            await asyncio.Event().wait()


def main() -> None:
    """Be one of the two, until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.processes", description=__doc__)
    parser.add_argument("role", choices=("engine", "gateway"))
    parser.add_argument("folder", type=Path, help="where the sockets and files of a run lie")
    args = parser.parse_args()
    uvloop.run(_gateway(args.folder) if args.role == "gateway" else instant_engine.serve(args.folder / ENGINE_SOCKET))


if __name__ == "__main__":
    main()
