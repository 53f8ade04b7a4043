"""A real redis-server on a Unix socket in a temporary folder."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.servers.gateway_server import eventually


class Redis:
    """A server that a test can start, pause and kill; it stores nothing on disk."""

    def __init__(self, folder: Path, password: str = "") -> None:
        self._socket = folder / "redis.sock"
        self._password = password
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"unix://{':' + password + '@' if password else ''}{self._socket}"

    def start(self) -> None:
        flags = ["--port", "0", "--unixsocket", str(self._socket), "--save", "", "--dir", str(self._socket.parent)]
        flags += ["--requirepass", self._password] if self._password else []
        self._process = subprocess.Popen(["redis-server", *flags], stdout=subprocess.DEVNULL)
        eventually(self._answers)

    def pause(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        try:
            with socket.socket(socket.AF_UNIX) as plug:
                plug.connect(str(self._socket))
                plug.sendall(b"PING\r\n")
                return plug.recv(100)[:1] in b"+-"
        except OSError:
            return False


@contextmanager
def redis(password: str = "") -> Iterator[Redis]:
    """Run a server until the end of the block; skip the test if redis-server is not installed."""
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not on the PATH")
    with tempfile.TemporaryDirectory(prefix="redis-") as folder:
        server = Redis(Path(folder), password)
        server.start()
        try:
            yield server
        finally:
            server.kill()
