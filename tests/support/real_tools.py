"""Real Prometheus and its Pushgateway, where they are installed (Debian packages of these names)."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="no prometheus here; Debian has a package of the name"
)
needs_pushgateway = pytest.mark.skipif(
    shutil.which("prometheus-pushgateway") is None,
    reason="no prometheus-pushgateway here; Debian has a package of the name",
)


@contextmanager
def prometheus(config: str, folder: Path) -> Iterator[str]:
    """Run it with this scrape configuration; yields its address."""
    address = _free()
    file = folder / "prometheus.yml"
    file.write_text(config)
    flags = [f"--config.file={file}", f"--web.listen-address={address}", f"--storage.tsdb.path={folder}"]
    with _running(["prometheus", *flags], address, "/-/ready"):
        yield address


@contextmanager
def pushgateway() -> Iterator[str]:
    """Run it; yields its URL."""
    address = _free()
    with _running(["prometheus-pushgateway", f"--web.listen-address={address}"], address, "/-/ready"):
        yield f"http://{address}"


def value(address: str, query: str, seconds: float = 30) -> str | None:
    """What a query gives, as soon as it gives something; None if it never does."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            found = httpx.get(f"http://{address}/api/v1/query", params={"query": query}).json()["data"]["result"]
        except (httpx.HTTPError, KeyError, ValueError):
            found = []
        if found:
            return str(found[0]["value"][1])
        time.sleep(0.2)
    return None


@contextmanager
def _running(command: list[str], address: str, ready: str) -> Iterator[None]:
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            _await(address, ready)
            yield
        finally:
            process.terminate()


def _await(address: str, path: str, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if httpx.get(f"http://{address}{path}").status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(0.1)
    raise AssertionError(f"{path} is not ready after {seconds:g} s")


def _free() -> str:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"127.0.0.1:{free.getsockname()[1]}"
