"""Decode compressed DICOM films, TIFF, WEBP and BMP in separate processes.

Their decoders are written in C and may crash, loop, exhaust memory, or be taken over by a hostile film. `sandbox` takes
network and files from the processes. A damaged film then ends its worker process instead of the engine, which serves
all tenants. A worker starts with the first compressed film, is reused for later films, and exits at its time or memory
limit or when its pipe closes. The pipe closes with the parent process.
"""

from __future__ import annotations

import atexit
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
from pedcxr_serve.vllm_plugin import plain_image, sandbox
from pedcxr_serve.vllm_plugin.refusals import FilmRefused

DEADLINE = 20.0
"""Wall-clock seconds for one film; 5 million pixels take at most 1.5 s of one core (JPEG 2000 of noise)."""

MEMORY = 2 << 30
"""Address space of a worker in bytes; the largest film needs half of it."""

_LENGTHS = struct.Struct("<II")  # of the JSON header, and of the pixels
# -P: a file in the working directory that is named like a module must not be imported.
_COMMAND = (sys.executable, "-P", "-m", __name__)
_IMAGE_FORMATS = ("BMP", "TIFF", "WEBP")
# The rest of the engine's environment stays there: it may hold tokens.
_ENVIRONMENT = ("PATH", "PYTHONPATH", "PYTHONHOME", "PYTHONSAFEPATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ")


class DecoderPool:
    """A pool of worker processes, one per concurrent caller. Safe for threads."""

    def __init__(self, command: Sequence[str] = _COMMAND) -> None:
        self._command = command
        self._idle: list[subprocess.Popen[bytes]] = []
        self._lock = threading.Lock()

    def decode(self, data: bytes) -> tuple[Image.Image, PixelStats]:
        """Run `pedcxr_client.films.film.load` in a worker; return pixels of mode L and their statistics.

        Raises:
            InputError: as `film.load` does, or if the worker exits while it decodes the film.
        """
        try:
            header, pixels = self._run({}, data)
        except (OSError, EOFError):
            raise InputError("the film: its compressed pixels cannot be decoded; export it uncompressed") from None
        if "error" in header:
            raise InputError(header["error"])
        stats = PixelStats(**header)
        return Image.frombytes("L", (stats.width, stats.height), pixels), stats

    def decode_image(self, data: bytes, max_pixels: int) -> Image.Image:
        """Run `plain_image.decode` in a worker for BMP, TIFF and WEBP; return an image of mode RGB.

        Raises:
            FilmRefused: as `plain_image.decode` does, or if the worker exits while it decodes the image.
        """
        try:
            header, pixels = self._run({"max_pixels": max_pixels}, data)
        except (OSError, EOFError):
            raise FilmRefused("the image cannot be decoded; send PNG or JPEG") from None
        if "error" in header:
            raise FilmRefused(header["error"])
        return Image.frombytes("RGB", tuple(header["size"]), pixels)

    def _run(self, request: dict[str, int], data: bytes) -> tuple[dict[str, Any], bytes]:
        worker = self._acquire()
        try:
            header, pixels = _exchange(worker, request, data)
        except BaseException:
            _kill(worker)
            raise
        with self._lock:
            self._idle.append(worker)
        return header, pixels

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
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        return subprocess.Popen(  # noqa: S603  (the command is a constant)
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
        )


shared_pool = DecoderPool()
"""The workers of this process."""
atexit.register(shared_pool.close)


def _kill(worker: subprocess.Popen[bytes]) -> None:
    worker.kill()
    worker.communicate()  # closes the pipes and waits for the process


def _exchange(worker: subprocess.Popen[bytes], request: dict[str, int], data: bytes) -> tuple[dict[str, Any], bytes]:
    assert worker.stdin is not None
    assert worker.stdout is not None
    text = json.dumps(request).encode()
    worker.stdin.write(_LENGTHS.pack(len(text), len(data)) + text + data)
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


def _decode_image(data: bytes, max_pixels: int) -> tuple[dict[str, Any], bytes]:
    try:
        image = plain_image.decode(data, max_pixels=max_pixels, formats=_IMAGE_FORMATS)
    except FilmRefused as error:
        return {"error": str(error)}, b""
    return {"size": image.size}, image.tobytes()


def work(*, deadline: float = DEADLINE, memory: int = MEMORY) -> None:
    """Run a worker: read films from standard input and write their pixels to standard output until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles SIGINT
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would hold the film
    films, output = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # text that a decoder prints must not get into the output
    with contextlib.suppress(ImportError, InputError):  # each film reports them
        decoders.import_packages()  # before the first film's time limit starts
    sandbox.enter()
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            request, data = _read(films)
            options = json.loads(request)
            signal.setitimer(signal.ITIMER_REAL, deadline)  # the signal ends the process even inside C code
            header, pixels = _decode_image(data, **options) if options else _decode(data)
            signal.setitimer(signal.ITIMER_REAL, 0)
            text = json.dumps(header).encode()
            output.write(_LENGTHS.pack(len(text), len(pixels)) + text + pixels)
            output.flush()


if __name__ == "__main__":
    work()
