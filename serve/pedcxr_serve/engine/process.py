"""The engine as a child process: vLLM on a private Unix socket, its log lines read, its end awaited."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import signal
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_LINE = re.compile(r"^(?:\([^)]*\)\s*)?(DEBUG|INFO|WARNING|ERROR|CRITICAL)(?: \d\d-\d\d |:\s)")
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_LONGEST_LINE = 4096
_TAIL = 40
_TRACKER_S, _TRACKER_POLLS = 2.0, 20

STAGES: tuple[tuple[str, str], ...] = (
    ("non-default args", "reading the model's configuration"),
    ("Resolved architecture", "starting the engine's process"),
    ("Initializing a V1 LLM engine", "starting the worker's process"),
    ("Starting to load model", "loading weights"),
    ("Loading model from scratch", "loading weights"),
    ("Loading weights took", "warming up the model"),
    ("Model loading took", "warming up the model"),
    ("Starting vLLM server", "opening the socket"),
    ("Application startup complete", "engine is up"),
)
"""Text in a log line of vLLM 0.32, on a CPU or on a GPU, and the stage that it begins; those before it are over, though
several processes write into one log."""


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


def vllm(argv: Sequence[str]) -> tuple[str, ...]:
    """The command that runs vLLM with these arguments, ``("serve", DIR, ...)``, and our plugin."""
    # -P: a folder that holds a file named like a module must not break the engine.
    return (sys.executable, "-P", "-m", "pedcxr_serve.engine.vllm_main", *argv)


class Engine:
    """vLLM in a process group of its own, with a folder for temporary files that goes when the group does: of a worker
    that is killed, vLLM 0.32 leaves its rendezvous there (``network_utils.get_file_store_init_method``).

    Args:
        command: the program and its arguments; see `vllm`.
        env: variables set on top of this process's, of which those named ``PEDCXR_*`` are left out.
        on_line: called with every line of its log, in order.
    """

    def __init__(self, command: Sequence[str], env: Mapping[str, str], on_line: Callable[[LogLine], None]) -> None:
        self._command = tuple(command)
        # The gateway's secrets are none of the engine's business.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PEDCXR_")}
        # Compiled code outlives the folder of temporary files, where torch 2.13 would put it. Not the first variable:
        # torch sets it anew, and setproctitle 1.3 finds no place for the names of processes when the first has moved.
        inherited.setdefault("TORCHINDUCTOR_CACHE_DIR", f"{tempfile.gettempdir()}/torchinductor_{os.getuid()}")
        self._env = {**inherited, **env, "PEDCXR_LAUNCHER_PID": str(os.getpid())}
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._on_line = on_line
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self.stage, self._reached = "importing vLLM", -1
        self.started = time.monotonic()
        self._stopping = False
        self.tail: deque[str] = deque(maxlen=_TAIL)

    @property
    def pid(self) -> int | None:
        """Process id, which is also the process group's; None before `start`."""
        return self._process.pid if self._process else None

    @property
    def status(self) -> int | None:
        """The exit status; None while it runs."""
        return self._process.returncode if self._process else None

    async def start(self) -> None:
        """Start the process; returns at once, long before it serves."""
        self._scratch = tempfile.TemporaryDirectory(prefix="pedcxr-engine-", ignore_cleanup_errors=True)
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                env=self._env | {"TMPDIR": self._scratch.name},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in a terminal is the launcher's to handle
            )
        except BaseException:  # cancelled, too: then asyncio has ended the process, and `stop` finds none
            self._scratch.cleanup()
            raise
        self._reader = asyncio.create_task(self._read())

    async def wait(self) -> int:
        """Wait for the process to end and its log to be read; its exit status."""
        assert self._process is not None and self._reader is not None
        status = await self._process.wait()
        # A grandchild that lives on keeps the pipe open.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2):
                await asyncio.shield(self._reader)
        return status

    async def stop(self, grace_s: float) -> None:
        """End the whole group: SIGTERM, then SIGKILL after ``grace_s`` seconds. Harmless when it has ended."""
        if self._process is None:
            return
        self._stopping = True
        if self._process.returncode is None and grace_s:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace_s):
                    await self._process.wait()
        await self._end_group()
        await self._process.wait()
        if self._reader is not None:
            self._reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reader
        if self._scratch is not None:
            self._scratch.cleanup()

    async def _end_group(self) -> None:
        """Kill the processes that vLLM started; Python's resource tracker among them lives on to unlink what they
        shared in /dev/shm, and ends by itself when they have."""
        assert self._process is not None
        for member in _members(self._process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(member, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            for _ in range(_TRACKER_POLLS):
                os.killpg(self._process.pid, 0)
                await asyncio.sleep(_TRACKER_S / _TRACKER_POLLS)
            os.killpg(self._process.pid, signal.SIGKILL)

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
        for place, (mark, stage) in enumerate(STAGES):
            if mark in line.text and place > self._reached:
                self._reached, self.stage = place, stage
        if not self._stopping:  # vLLM 0.32 logs its own orderly end as an error with a traceback
            self._on_line(line)


def _members(group: int) -> list[int]:
    """Process ids of a group, less Python's resource tracker; none where there is no /proc."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            if int((folder / "stat").read_text().rpartition(")")[2].split()[2]) != group:
                continue
            if b"resource_tracker" not in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return found
