"""Decode compressed DICOM films in separate processes, because C decoders may crash, loop or exhaust memory.

A damaged film then ends its worker process instead of the engine, which serves all tenants. A worker starts with the
first compressed film, is reused for later films, and exits at its time or memory limit or when its pipe closes. The
pipe closes with the parent process.
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
from pedcxr_client.films import decoders, film
from pedcxr_client.films.geometry import PixelStats

DEADLINE = 20.0
"""Wall-clock seconds for one film; 5 million pixels take at most 1.5 s of one core (JPEG 2000 of noise)."""

MEMORY = 2 << 30
"""Address space of a worker in bytes; the largest film needs half of it."""

_LENGTHS = struct.Struct("<II")  # of the JSON header, and of the pixels
# -P: a file in the working directory that is named like a module must not be imported.
_COMMAND = (sys.executable, "-P", "-m", __name__)


class DecoderPool:
    """A pool of worker processes, one per concurrent caller. Safe for threads."""

    def __init__(self, command: Sequence[str] = _COMMAND) -> None:
        self._command = command
        self._idle: list[subprocess.Popen[bytes]] = []
        self._lock = threading.Lock()

    def decode(self, data: bytes) -> tuple[Image.Image, PixelStats]:
        """Run `pedcxr_client.films.film.load` in a worker, and return pixels of mode L and their statistics.

        Raises:
            InputError: as `film.load` does, or if the worker exits while it decodes the film.
        """
        worker = self._acquire()
        try:
            header, pixels = _exchange(worker, data)
        except BaseException as error:
            _kill(worker)
            if not isinstance(error, (OSError, EOFError)):
                raise
            raise InputError("the film: its compressed pixels cannot be decoded; export it uncompressed") from None
        with self._lock:
            self._idle.append(worker)
        if "error" in header:
            raise InputError(header["error"])
        stats = PixelStats(**header)
        return Image.frombytes("L", (stats.width, stats.height), pixels), stats

    def close(self) -> None:
        """Kill the idle workers."""
        with self._lock:
            while self._idle:
                _kill(self._idle.pop())

    def _acquire(self) -> subprocess.Popen[bytes]:
        with self._lock:
            while self._idle:
                worker = self._idle.pop()
                if worker.poll() is None:
                    return worker
                _kill(worker)
        return self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        # One thread per worker: the other cores belong to the engine.
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        return subprocess.Popen(  # noqa: S603  (the command is a constant)
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
        )


def _kill(worker: subprocess.Popen[bytes]) -> None:
    worker.kill()
    worker.communicate()  # closes the pipes and waits for the process


def _exchange(worker: subprocess.Popen[bytes], data: bytes) -> tuple[dict[str, Any], bytes]:
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write(_LENGTHS.pack(0, len(data)) + data)
    worker.stdin.flush()
    header, pixels = _read(worker.stdout)
    return json.loads(header), pixels


def _read(pipe: IO[bytes]) -> tuple[bytes, bytes]:
    header_size, pixels_size = _LENGTHS.unpack(_read_exactly(pipe, _LENGTHS.size))
    return _read_exactly(pipe, header_size), _read_exactly(pipe, pixels_size)


def _read_exactly(pipe: IO[bytes], size: int) -> bytes:
    if len(data := pipe.read(size)) < size:
        raise EOFError
    return data


def _decode(data: bytes) -> tuple[dict[str, Any], bytes]:
    try:
        radiograph = film.load(data)
    except InputError as error:
        return {"error": str(error)}, b""
    return asdict(radiograph.stats), radiograph.pixels.convert("L").tobytes()


def work(*, deadline: float = DEADLINE, memory: int = MEMORY) -> None:
    """Run a worker: read films from standard input and write their pixels to standard output until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles SIGINT
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would hold the film
    films, output = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # text that a decoder prints must not get into the output
    with contextlib.suppress(ImportError, InputError):  # each film reports them
        decoders.import_packages()  # before the first film's time limit starts
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            _, data = _read(films)
            signal.setitimer(signal.ITIMER_REAL, deadline)  # the signal ends the process even inside C code
            header, pixels = _decode(data)
            signal.setitimer(signal.ITIMER_REAL, 0)
            text = json.dumps(header).encode()
            output.write(_LENGTHS.pack(len(text), len(pixels)) + text + pixels)
            output.flush()


if __name__ == "__main__":
    work()
