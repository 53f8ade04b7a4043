"""OUT.jsonl: a line a film, on the disk before it counts. One process writes it at a time.

A line of a report is the report with ``id`` and ``key``; a line of an error has ``error`` instead. What a run was
killed over is at most its last line, which is taken off and done again.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import stat
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

from pedcxr_client.errors import ConfigurationError, PedcxrError, ReportError, RequestError
from pedcxr_client.reports.json_lines import SCHEMA, one_line
from pedcxr_client.reports.report import Report

ERROR_SCHEMA = "pedcxr-error/1"

_FIRST_BYTES = b'{"schema": "pedcxr-'
_BLOCK = 1 << 20


def report_line(report: Report, *, film_id: str, key: bytes) -> str:
    """All that is known of a report, without a line break."""
    return one_line({"schema": SCHEMA, "id": film_id, "key": key.hex(), **report.as_dict()})


def error_line(error: PedcxrError, *, film_id: str, key: bytes, refused: bool) -> str:
    """Why a film has no report, without a line break; a text that came and is no report is kept.

    Args:
        refused: the film itself cannot be sent, and another try would end alike.
    """
    told = {
        "kind": "refused" if refused else "failed",
        "type": type(error).__name__,
        "code": error.outcome,
        "message": str(error),
        "text": error.text if isinstance(error, ReportError) else None,
        "request_id": error.request_id if isinstance(error, RequestError) else None,
    }
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return one_line({"schema": ERROR_SCHEMA, "id": film_id, "key": key.hex(), "created": created, "error": told})


class Journal:
    """The file, inside a ``with``; new ones are for their owner alone (mode 0600).

    Attributes:
        done: keys of the films that have a report.
        refused: keys of those that will be refused again, since nothing about them has changed.

    Raises:
        ConfigurationError: if it cannot be written, another run writes it, or a line is not ours.
    """

    def __init__(self, path: str) -> None:
        self.done: set[bytes] = set()
        self.refused: set[bytes] = set()
        self._file = _open(path)
        self._waiting: list[tuple[bytes, asyncio.Future[None]]] = []
        self._writer: asyncio.Task[None] | None = None
        try:
            self._size = self._load()
            os.ftruncate(self._file, self._size)
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)  # and with it the lock, as when the process is killed

    async def append(self, line: str) -> None:
        """Return once the line is on the disk; lines that come meanwhile share the next sync.

        Raises:
            ConfigurationError: if it cannot be written.
        """
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((line.encode() + b"\n", written))
        if self._writer is None:
            self._writer = asyncio.create_task(self._write_all())
        await written

    async def drain(self) -> None:
        """Wait until everything that was appended is on the disk, also if those who appended were cancelled."""
        while (writer := self._writer) is not None:
            await asyncio.shield(writer)

    async def _write_all(self) -> None:
        try:
            while self._waiting:
                taken, self._waiting = self._waiting, []
                error = await asyncio.to_thread(self._write, b"".join(line for line, _ in taken))
                for _, written in taken:
                    if written.cancelled():
                        continue
                    if error is None:
                        written.set_result(None)
                    else:
                        written.set_exception(error)
        finally:
            self._writer = None

    def _write(self, lines: bytes) -> ConfigurationError | None:
        try:
            rest = memoryview(lines)
            while rest:
                rest = rest[os.write(self._file, rest) :]
            os.fsync(self._file)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._size)
            failure = ConfigurationError(f"-o: cannot be written: {error.strerror}; make room and run it again")
            failure.__cause__ = error
            return failure
        self._size += len(lines)
        return None

    def _load(self) -> int:
        """Read what there is and return how much of it is whole."""
        good, rest, number = 0, b"", 0
        while block := os.read(self._file, _BLOCK):
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                number += 1
                if not self._take(line):
                    raise ConfigurationError(
                        f"-o: line {number} is no line of pedcxr batch; give another name, or mend it"
                    )
                good += len(line) + 1
        torn = rest.rstrip(b"\0")  # some file systems leave these where the power went away
        if torn and not (torn.startswith(_FIRST_BYTES) or _FIRST_BYTES.startswith(torn)):
            raise ConfigurationError(f"-o: line {number + 1} is no line of pedcxr batch; give another name")
        return good

    def _take(self, line: bytes) -> bool:
        try:
            entry = json.loads(line)
            key = bytes.fromhex(entry["key"])
            error = entry.get("error")
            if error is None:
                self.done.add(key)
            elif error["kind"] == "refused":
                self.refused.add(key)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return False
        return True


def _open(path: str) -> int:
    try:
        is_new = not os.path.exists(path)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "is no path"
        raise ConfigurationError(f"-o: cannot be written: {reason}; give another name") from error
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise ConfigurationError("-o: is no regular file; give another name")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigurationError("-o: another run writes this file; wait for it, or give another name") from error
        if is_new:
            _sync_folder(path)
    except BaseException:
        os.close(file)
        raise
    return file


def _sync_folder(path: str) -> None:
    """A new file's name is on the disk only once its folder is."""
    folder = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
