"""Real Prometheus and Pushgateway, if they are installed (Debian packages of these names)."""

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
    shutil.which("prometheus") is None, reason="prometheus is not installed; Debian has a package of that name"
)
needs_pushgateway = pytest.mark.skipif(
    shutil.which("prometheus-pushgateway") is None,
    reason="prometheus-pushgateway is not installed; Debian has a package of that name",
)

needs_alertmanager = pytest.mark.skipif(
    shutil.which("prometheus-alertmanager") is None,
    reason="prometheus-alertmanager is not installed; Debian has a package of that name",
)


@contextmanager
def prometheus(config: str, folder: Path) -> Iterator[str]:
    """Run Prometheus with a configuration until the end of the block; yield its address."""
    address = _free()
    file = folder / "prometheus.yml"
    file.write_text(config)
    flags = [f"--config.file={file}", f"--web.listen-address={address}", f"--storage.tsdb.path={folder}"]
    with _running(["prometheus", *flags], address, "/-/ready"):
        yield address


@contextmanager
def alertmanager(config: str, folder: Path) -> Iterator[str]:
    """Run Alertmanager with a configuration until the end of the block; yield its address."""
    address = _free()
    file = folder / "alertmanager.yml"
    file.write_text(config)
    flags = [f"--config.file={file}", f"--web.listen-address={address}", f"--storage.path={folder}"]
    with _running(["prometheus-alertmanager", *flags, "--cluster.listen-address="], address, "/-/ready"):
        yield address


@contextmanager
def pushgateway() -> Iterator[str]:
    """Run a Pushgateway until the end of the block; yield its URL."""
    address = _free()
    with _running(["prometheus-pushgateway", f"--web.listen-address={address}"], address, "/-/ready"):
        yield f"http://{address}"


def value(address: str, query: str, seconds: float = 120) -> str | None:
    """Return the first value of a query as soon as there is one, or None after the time limit."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            series = httpx.get(f"http://{address}/api/v1/query", params={"query": query}).json()["data"]["result"]
        except (httpx.HTTPError, KeyError, ValueError):
            series = []
        if series:
            return str(series[0]["value"][1])
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


def _await(address: str, path: str, seconds: float = 120) -> None:
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
