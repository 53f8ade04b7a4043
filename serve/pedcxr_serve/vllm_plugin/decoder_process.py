"""Compressed DICOM films are developed in a process apart: C decoders may crash, loop or eat memory over a damaged one.

Such a film costs its own process, and not the engine's, which holds every team's work. A worker is started at the first
compressed film, kept for the next, ends itself at a limit, and ends when its pipe closes, as with its parent.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict
from typing import IO, Any

from PIL import Image

from pedcxr_client import InputError
from pedcxr_client.films import film
from pedcxr_client.films.geometry import PixelStats

DEADLINE = 20.0
"""Seconds on the clock for one film; 5 million pixels take 1.5 of a core at most (JPEG 2000 of noise)."""

MEMORY = 2 << 30
"""Bytes of address space for a worker; the largest film needs half of it."""

_LENGTHS = struct.Struct("<II")  # of what is said, and of the pixels
_COMMAND = (sys.executable, "-m", __name__)


class Darkroom:
    """Workers that wait, as many as there were callers at once. Safe for threads."""

    def __init__(self, command: Sequence[str] = _COMMAND) -> None:
        self._command = command
        self._idle: list[subprocess.Popen[bytes]] = []
        self._lock = threading.Lock()

    def develop(self, data: bytes) -> tuple[Image.Image, PixelStats]:
        """`pedcxr_client.films.film.load`, elsewhere; the pixels are of mode L.

        Raises:
            InputError: as that does, and if the worker ended over the film.
        """
        worker = self._take()
        try:
            said, pixels = _ask(worker, data)
        except BaseException as error:
            _end(worker)
            if not isinstance(error, (OSError, EOFError)):
                raise
            raise InputError("the film: its compressed pixels cannot be decoded; export it uncompressed") from None
        with self._lock:
            self._idle.append(worker)
        if "error" in said:
            raise InputError(said["error"])
        found = PixelStats(**said)
        return Image.frombytes("L", (found.width, found.height), pixels), found

    def close(self) -> None:
        """End the workers that wait."""
        with self._lock:
            while self._idle:
                _end(self._idle.pop())

    def _take(self) -> subprocess.Popen[bytes]:
        with self._lock:
            while self._idle:
                worker = self._idle.pop()
                if worker.poll() is None:
                    return worker
                _end(worker)
        return self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        # One thread each: a worker has one film, and the engine has the other cores.
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        return subprocess.Popen(  # noqa: S603  (a constant)
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
        )


def _end(worker: subprocess.Popen[bytes]) -> None:
    worker.kill()
    worker.communicate()  # closes its pipes and waits


def _ask(worker: subprocess.Popen[bytes], data: bytes) -> tuple[dict[str, Any], bytes]:
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write(_LENGTHS.pack(0, len(data)) + data)
    worker.stdin.flush()
    said, pixels = _read(worker.stdout)
    return json.loads(said), pixels


def _read(pipe: IO[bytes]) -> tuple[bytes, bytes]:
    said, pixels = _LENGTHS.unpack(_exactly(pipe, _LENGTHS.size))
    return _exactly(pipe, said), _exactly(pipe, pixels)


def _exactly(pipe: IO[bytes], size: int) -> bytes:
    if len(data := pipe.read(size)) < size:
        raise EOFError
    return data


def _developed(data: bytes) -> tuple[dict[str, Any], bytes]:
    try:
        radiograph = film.load(data)
    except InputError as error:
        return {"error": str(error)}, b""
    return asdict(radiograph.stats), radiograph.pixels.convert("L").tobytes()


def work(*, deadline: float = DEADLINE, memory: int = MEMORY) -> None:
    """The worker: a film from standard input, its pixels to standard output, until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's business
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would hold the film
    films, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a decoder that prints must not write into an answer
    with contextlib.suppress(ImportError):
        import pydicom.pixels  # before the first film's clock runs  # noqa: F401
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            _, data = _read(films)
            signal.setitimer(signal.ITIMER_REAL, deadline)  # ends the process, in the middle of a decoder too
            said, pixels = _developed(data)
            signal.setitimer(signal.ITIMER_REAL, 0)
            told = json.dumps(said).encode()
            answers.write(_LENGTHS.pack(len(told), len(pixels)) + told + pixels)
            answers.flush()


if __name__ == "__main__":
    work()
