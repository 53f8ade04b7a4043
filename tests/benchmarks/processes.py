"""Run the gateway, the bare proxy or the instant engine in another process, and measure it."""

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

from pedcxr_client.bench import watch
from pedcxr_client.bench.watch import Process
from pedcxr_serve.config import load
from pedcxr_serve.gateway.auth import api_keys
from tests.benchmarks.gateway import bare_proxy as bare_proxy_server
from tests.benchmarks.gateway import instant_engine

ENGINE_SOCKET = "engine.sock"
SLOTS = 1024
"""Maximum number of running requests."""
_START_S = 60.0


@dataclass(frozen=True, slots=True)
class Gateway:
    """A running gateway.

    Attributes:
        url: base URL for OpenAI clients, ending in ``/v1``.
        keys: by tenant; each tenant may open `SLOTS` requests.
    """

    pid: int
    url: str
    keys: Mapping[str, str]

    def processor_s(self) -> float:
        """Return the processor time so far, in seconds."""
        return measure(self.pid).cpu_s

    def memory_mib(self) -> float:
        """Return the resident memory."""
        return measure(self.pid).rss_mib

    def peak_mib(self) -> float:
        """Return the maximum resident memory since the start or `reset_peak`."""
        return int(Path(f"/proc/{self.pid}/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024

    def reset_peak(self) -> None:
        """Reset `peak_mib` to the current value."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def open_files(self) -> int:
        """Return the number of open file descriptors, sockets included."""
        return measure(self.pid).files


def measure(pid: int) -> Process:
    """Return processor time, memory and open files of a running process."""
    process = watch.process(pid)
    if process is None:
        raise ProcessLookupError(f"process {pid} has ended")
    return process


@contextmanager
def gateway(folder: Path, *names: str, env: Mapping[str, str] | None = None) -> Iterator[Gateway]:
    """Run a gateway with tenants, usage and audit log in front of the engine on ``folder / ENGINE_SOCKET``.

    ``env`` may hold further settings, as ``PEDCXR_*``.
    """
    tenants = folder / "tenants.toml"
    tenants.write_text("".join(f"[tenant.{name}]\nmax_concurrent = {SLOTS}\n\n" for name in names))
    keys = {name: api_keys.new(tenants, name) for name in names}
    with _child("gateway", folder, folder / "url", env) as pid:
        yield Gateway(pid, (folder / "url").read_text(), keys)


@contextmanager
def bare_proxy(folder: Path) -> Iterator[Gateway]:
    """Run the bare proxy in front of the engine on ``folder / ENGINE_SOCKET``; it has no keys."""
    with _child("proxy", folder, folder / "proxy") as pid:
        yield Gateway(pid, (folder / "proxy").read_text(), {})


@contextmanager
def relay(folder: Path) -> Iterator[Gateway]:
    """Run the relay in front of the engine on ``folder / ENGINE_SOCKET``; it has no keys."""
    with _child("relay", folder, folder / "relay") as pid:
        yield Gateway(pid, (folder / "relay").read_text(), {})


@contextmanager
def engine(folder: Path) -> Iterator[None]:
    """Run the instant engine on ``folder / ENGINE_SOCKET``."""
    with _child("engine", folder, (folder / ENGINE_SOCKET).with_suffix(".up")):
        yield


@contextmanager
def _child(role: str, folder: Path, ready_file: Path, env: Mapping[str, str] | None = None) -> Iterator[int]:
    command = [sys.executable, "-m", "tests.benchmarks.processes", role, str(folder)]
    with subprocess.Popen(command, env={**os.environ, **(env or {})}) as process:
        try:
            end = time.monotonic() + _START_S
            while not ready_file.exists():
                if process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"the {role} of the benchmark did not start")
                time.sleep(0.05)
            yield process.pid
        finally:
            process.terminate()


async def _gateway(folder: Path) -> None:
    from pedcxr_serve.gateway import app
    from pedcxr_serve.gateway.http import server
    from pedcxr_serve.gateway.http.listeners import listen
    from pedcxr_serve.gateway.state import open_state

    flags = {"gateway.tenants": str(folder / "tenants.toml"), "gateway.audit_log": str(folder / "audit.jsonl")}
    flags |= {"gateway.port": "0", "gateway.admin_port": "0", "served_name": "bench"}
    settings = load.load(None, flags, os.environ)
    env = {"PEDCXR_AUDIT_KEY": "bench" * 10}
    opened = open_state(settings, folder / ENGINE_SOCKET, slots=SLOTS, image_tokens=256, demo=False, env=env)
    with opened as state, listen(settings.gateway) as listeners:
        async with app.engine_session(state) as session, server.serving(state, session, listeners):
            state.set_ready(True, "ready")
            (folder / "url.new").write_text(listeners.url)
            (folder / "url.new").rename(folder / "url")
            await asyncio.Event().wait()


def main() -> None:
    """Run one of them until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.processes", description=__doc__)
    parser.add_argument("role", choices=("engine", "gateway", "proxy", "relay"))
    parser.add_argument("folder", type=Path, help="folder of the sockets and files")
    args = parser.parse_args()
    engine_socket = args.folder / ENGINE_SOCKET
    match args.role:
        case "gateway":
            uvloop.run(_gateway(args.folder))
        case "proxy":
            uvloop.run(bare_proxy_server.serve(engine_socket, args.folder / "proxy"))
        case "relay":
            uvloop.run(bare_proxy_server.relay(engine_socket, args.folder / "relay"))
        case _:
            uvloop.run(instant_engine.serve(engine_socket))


if __name__ == "__main__":
    main()
