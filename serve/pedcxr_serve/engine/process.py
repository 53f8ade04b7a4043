"""Run the engine as a child process: start vLLM on a private Unix socket, read its log, and end its process group."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import signal
import stat
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pedcxr_serve.engine.socket_dir import SCRATCH_PREFIX, lock_scratch

_LEVEL = re.compile(r"^(?:\([^)]*\)\s*)?(DEBUG|INFO|WARNING|ERROR|CRITICAL)(?: \d\d-\d\d |:\s)")
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_MAX_LINE = 4096
_TAIL_LINES = 40
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
"""Text in a log line of vLLM 0.32 (CPU or GPU) and the stage that begins with it. Stages only move forward, although
several processes write to the same log."""


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of vLLM's log, without ANSI colours and line end, at most 4,096 characters, with its `logging` level."""

    level: int
    text: str


def parse(text: str, previous: int) -> LogLine:
    """Parse a log line; one without a level, such as part of a traceback, gets the ``previous`` line's."""
    text = _ANSI.sub("", text)[:_MAX_LINE].rstrip()
    match = _LEVEL.match(text)
    return LogLine(getattr(logging, match[1]) if match else previous, text)


def vllm(argv: Sequence[str]) -> tuple[str, ...]:
    """Return the command that runs vLLM and the plugin with the arguments ``("serve", DIR, ...)``."""
    # -P: a file in the working directory that is named like a module must not break the engine.
    return (sys.executable, "-P", "-m", "pedcxr_serve.engine.vllm_main", *argv)


class Engine:
    """vLLM in its own process group, with its own folder for temporary files.

    The folder is removed with the group: vLLM 0.32 leaves the rendezvous file of a killed worker behind
    (``network_utils.get_file_store_init_method``).

    Args:
        command: the program and its arguments; see `vllm`.
        env: variables added to this process's environment, of which those named ``PEDCXR_*`` are not inherited.
        on_line: called with every line of the log, in order.

    Attributes:
        stage: the current stage of the start, in words; see `STAGES`.
        started: `time.monotonic` value at which this object was created.
        tail: the last 40 log lines.
    """

    def __init__(self, command: Sequence[str], env: Mapping[str, str], on_line: Callable[[LogLine], None]) -> None:
        self._command = tuple(command)
        # The engine does not get the gateway's secrets.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PEDCXR_")}
        # torch 2.13 would put compiled code into the folder of temporary files, which is removed with the process.
        # This must not be the first variable: torch sets it again, and setproctitle 1.3 cannot rename processes once
        # the first variable has moved in memory.
        if (cache := compile_cache()) is not None:
            inherited.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache))
        # As -P, for every Python process that vLLM starts.
        self._env = {**inherited, **env, "PYTHONSAFEPATH": "1", "PEDCXR_LAUNCHER_PID": str(os.getpid())}
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._scratch_lock: int | None = None
        self._on_line = on_line
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self.stage, self._stage_index = "importing vLLM", -1
        self.started = time.monotonic()
        self._stopping = False
        self.tail: deque[str] = deque(maxlen=_TAIL_LINES)

    @property
    def pid(self) -> int | None:
        """Process id, which is also the process group id; None before `start`."""
        return self._process.pid if self._process else None

    @property
    def status(self) -> int | None:
        """The exit status, negative for a signal; None while the process runs."""
        return self._process.returncode if self._process else None

    async def start(self) -> None:
        """Start the process, and return without waiting until it serves requests."""
        self._scratch = tempfile.TemporaryDirectory(prefix=SCRATCH_PREFIX, ignore_cleanup_errors=True)
        try:
            self._scratch_lock = lock_scratch(Path(self._scratch.name))
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                env=self._env | {"TMPDIR": self._scratch.name},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,  # the launcher handles Ctrl-C in a terminal
            )
        except BaseException:  # a cancellation too: asyncio has then ended the process, and `stop` does nothing
            self._remove_scratch()
            raise
        self._reader = asyncio.create_task(self._read())

    async def wait(self) -> int:
        """Wait until the process has ended and its log has been read, and return its exit status."""
        assert self._process is not None and self._reader is not None
        status = await self._process.wait()
        # A grandchild that is still alive keeps the pipe open.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2):
                await asyncio.shield(self._reader)
        return status

    async def stop(self, grace_s: float) -> None:
        """End the process group: SIGTERM, then SIGKILL after ``grace_s`` seconds. Do nothing if it has ended."""
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
        self._remove_scratch()

    def _remove_scratch(self) -> None:
        if self._scratch is not None:
            self._scratch.cleanup()
        if self._scratch_lock is not None:
            os.close(self._scratch_lock)
            self._scratch_lock = None

    async def _end_group(self) -> None:
        # Python's resource tracker is last: it unlinks the shared memory of the others in /dev/shm and then exits.
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
        level, partial = logging.INFO, b""
        while chunk := await self._process.stdout.read(65536):
            *lines, partial = (partial + chunk).split(b"\n")
            partial = partial[-_MAX_LINE:]
            for raw in lines:
                line = parse(raw.decode(errors="replace"), level)
                level = line.level
                # The engine blocks once nobody reads its log, so no failure to show a line may end this loop.
                try:
                    self._record(line)
                except Exception as error:
                    self.tail.append(f"(a log line could not be shown: {error!r})")

    def _record(self, line: LogLine) -> None:
        if not line.text:
            return
        self.tail.append(line.text)
        for index, (text, stage) in enumerate(STAGES):
            if text in line.text and index > self._stage_index:
                self._stage_index, self.stage = index, stage
        if not self._stopping:  # vLLM 0.32 logs an orderly shutdown as an error with a traceback
            self._on_line(line)


def compile_cache() -> Path | None:
    """Return the folder of compiled kernels, created with mode 0700; None if there is no folder of this user alone.

    torch executes the code in it, so that it must not be a folder that another user could have created, such as one
    with a well-known name in /tmp.
    """
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pedcxr" / "torchinductor"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except (OSError, RuntimeError):  # no home folder, or it is read-only
        return None
    if status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & (stat.S_IWGRP | stat.S_IWOTH):
        return None
    return folder if os.access(folder, os.W_OK | os.X_OK) else None  # torch would fail on a read-only file system


def _members(group: int) -> list[int]:
    """Return the process ids of a group except Python's resource tracker; empty without a /proc file system."""
    pids = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            if int((folder / "stat").read_text().rpartition(")")[2].split()[2]) != group:
                continue
            if b"resource_tracker" not in (folder / "cmdline").read_bytes():
                pids.append(int(folder.name))
    return pids
