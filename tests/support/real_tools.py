"""Real Prometheus and Pushgateway, if they are installed (Debian packages of these names)."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import httpx
import pytest

from tests.support.http_server import reserved_port

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
    file = folder / "prometheus.yml"
    file.write_text(config)
    with _running("prometheus", f"--config.file={file}", f"--storage.tsdb.path={folder}") as address:
        yield address


@contextmanager
def alertmanager(config: str, folder: Path) -> Iterator[str]:
    """Run Alertmanager with a configuration until the end of the block; yield its address."""
    file = folder / "alertmanager.yml"
    file.write_text(config)
    flags = (f"--config.file={file}", f"--storage.path={folder}", "--cluster.listen-address=")
    with _running("prometheus-alertmanager", *flags) as address:
        yield address


@contextmanager
def pushgateway() -> Iterator[str]:
    """Run a Pushgateway until the end of the block; yield its URL."""
    with _running("prometheus-pushgateway") as address:
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
def _running(*command: str) -> Iterator[str]:
    """Run a tool until the end of the block; yield its address once it is ready."""
    with tempfile.TemporaryFile() as log, reserved_port() as port:
        address = f"127.0.0.1:{port}"
        words = [*command, f"--web.listen-address={address}"]
        with subprocess.Popen(words, stdout=log, stderr=log) as process:
            try:
                _await(address, process, log)
                yield address
            finally:
                process.terminate()


def _await(address: str, process: subprocess.Popen[bytes], log: IO[bytes], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        try:
            if httpx.get(f"http://{address}/-/ready").status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(0.1)
    log.seek(0)
    raise AssertionError(f"{process.args} is not ready, status {process.poll()}: {log.read()[-2000:].decode()}")
