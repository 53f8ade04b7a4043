"""Run ``pedcxr-serve`` in a child process, for benchmarks and tests on one machine."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from pedcxr_serve.errors import EngineNotReady

START_S = 600.0
_SERVING = re.compile(r"API\s+(https?://\S+)\s+metrics\s+(http://\S+)")


@dataclass(frozen=True, slots=True)
class LocalServer:
    """A server that is ready.

    Attributes:
        process: the child process.
        url: base URL for OpenAI clients, ending in ``/v1``.
        metrics_url: URL of the metrics page.
        seconds: time from the start of the process until ready.
        log: file with its stdout and stderr.
        temporary: ``TMPDIR`` of the server and its children, which no other program uses.
    """

    process: subprocess.Popen[bytes]
    url: str
    metrics_url: str
    seconds: float
    log: Path
    temporary: Path

    @property
    def root(self) -> str:
        """``url`` without its ``/v1``."""
        return self.url.removesuffix("/v1")

    def stop(self, number: int = signal.SIGTERM, timeout_s: float = 90) -> int:
        """Send a signal to the server, wait until it has exited, and return its exit status."""
        self.process.send_signal(number)
        return self.process.wait(timeout_s)


@contextmanager
def server(*flags: str, command: str = "start", env: Mapping[str, str] | None = None) -> Iterator[LocalServer]:
    """Run ``pedcxr-serve start``, or ``gateway``, with these flags on free ports until the end of the block.

    Raises:
        EngineNotReady: the server exits or is not ready within 600 s; carries its last lines.
    """
    words = [sys.executable, "-m", "pedcxr_serve", command, "--port", "0", "--admin-port", "0", *flags]
    with sigterm_as_exit(), tempfile.TemporaryDirectory(prefix="local-") as folder:
        log, temporary = Path(folder, "log"), Path(folder, "tmp")
        temporary.mkdir()
        with log.open("wb") as out:
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, "TMPDIR": str(temporary), **(env or {})},
            )
        try:
            yield _ready(process, log, temporary)
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(90)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


@contextmanager
def sigterm_as_exit() -> Iterator[None]:
    """Let SIGTERM end the block like an exception, so that its servers are stopped too. A second one is ignored.

    Has no effect beside a handler of the caller's, or outside the main thread.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def leave(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise SystemExit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _ready(process: subprocess.Popen[bytes], log: Path, temporary: Path) -> LocalServer:
    start = time.monotonic()
    while (seconds := time.monotonic() - start) < START_S:
        if match := _SERVING.search(log.read_text(errors="replace")):
            return LocalServer(process, match[1], match[2], seconds, log, temporary)
        if process.poll() is not None:
            break
        time.sleep(0.1)
    tail = log.read_text(errors="replace").splitlines()[-60:]
    raise EngineNotReady("the local server did not start:\n" + "\n".join(tail), tail=tail)
