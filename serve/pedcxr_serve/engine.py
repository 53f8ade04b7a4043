"""The engine as a child process: vLLM on a private Unix socket, its log lines read, its end awaited."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import signal
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

_LINE = re.compile(r"^(?:\([^)]*\)\s*)?(DEBUG|INFO|WARNING|ERROR|CRITICAL)(?: \d\d-\d\d |:\s)")
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_LONGEST_LINE = 4096
_TAIL = 40

STAGES: tuple[tuple[str, str], ...] = (
    ("non-default args", "reading the model's configuration"),
    ("Resolved architecture", "starting the engine's process"),
    ("Initializing a V1 LLM engine", "starting the worker's process"),
    ("Starting to load model", "loading weights"),
    ("Loading weights took", "warming up the model"),
    ("Starting vLLM server", "opening the socket"),
    ("Application startup complete", "engine is up"),
)
"""Text in a log line of vLLM 0.32, and the stage that it begins."""


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of vLLM's log.

    Attributes:
        level: of `logging`; a line without one (a traceback) has that of the line before.
        text: without colours and line end, at most 4096 characters.
    """

    level: int
    text: str


def parse(text: str, previous: int) -> LogLine:
    """Read a line's level; ``previous`` is that of the line before."""
    text = _ANSI.sub("", text)[:_LONGEST_LINE].rstrip()
    match = _LINE.match(text)
    return LogLine(getattr(logging, match[1]) if match else previous, text)


class Engine:
    """vLLM in a process group of its own.

    Args:
        argv: vLLM's arguments, ``("serve", DIR, ...)``.
        env: variables set on top of this process's.
        on_line: called with every line of its log, in order.
    """

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], on_line: Callable[[LogLine], None]) -> None:
        self._argv = tuple(argv)
        self._env = {**os.environ, **env, "PEDCXR_LAUNCHER_PID": str(os.getpid())}
        self._on_line = on_line
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self.stage = "importing vLLM"
        self._stopping = False
        self.tail: deque[str] = deque(maxlen=_TAIL)

    @property
    def pid(self) -> int | None:
        """Process id, which is also the process group's; None before `start`."""
        return self._process.pid if self._process else None

    async def start(self) -> None:
        """Start the process; returns at once, long before it serves."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # a folder that holds a file named like a module must not break the engine
            "-m",
            "pedcxr_serve.vllm_main",
            *self._argv,
            env=self._env,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C in a terminal is the launcher's to handle
        )
        self._reader = asyncio.create_task(self._read())

    async def wait(self) -> int:
        """Wait for the process to end and its log to be read; its exit status."""
        assert self._process is not None and self._reader is not None
        status = await self._process.wait()
        # A grandchild that lives on keeps the pipe open.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self._reader), 2)
        return status

    async def stop(self, grace_s: float) -> None:
        """End the whole group: SIGTERM, then SIGKILL after ``grace_s`` seconds. Harmless when it has ended."""
        if self._process is None:
            return
        self._stopping = True
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), grace_s)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        await self._process.wait()
        if self._reader is not None:
            self._reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reader

    async def _read(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        level, rest = logging.INFO, b""
        while chunk := await self._process.stdout.read(65536):
            *lines, rest = (rest + chunk).split(b"\n")
            rest = rest[-_LONGEST_LINE:]
            for raw in lines:
                line = parse(raw.decode(errors="replace"), level)
                level = line.level
                self._note(line)

    def _note(self, line: LogLine) -> None:
        if not line.text:
            return
        self.tail.append(line.text)
        for mark, stage in STAGES:
            if mark in line.text:
                self.stage = stage
        if not self._stopping:  # vLLM 0.32 logs its own orderly end as an error with a traceback
            self._on_line(line)
