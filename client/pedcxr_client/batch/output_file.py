"""OUT.jsonl: one line per film, synced to disk before the film counts. One process writes it at a time.

A line of a report holds the report with ``id`` and ``key``; a line of an error holds ``error``. A killed run can leave
at most its last line incomplete. The next run removes that line and processes the film again.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import stat
from datetime import UTC, datetime
from typing import Self

from pedcxr_client.errors import ConfigurationError, PedcxrError, ReportError, RequestError
from pedcxr_client.reports.json_lines import SCHEMA, one_line
from pedcxr_client.reports.report import Report

ERROR_SCHEMA = "pedcxr-error/1"

_FIRST_BYTES = b'{"schema": "pedcxr-'
_BLOCK_BYTES = 1 << 20


def report_line(report: Report, *, film_id: str, key: bytes) -> str:
    """Return a report with all its fields as JSON, without a line break."""
    return one_line({"schema": SCHEMA, "id": film_id, "key": key.hex(), **report.as_dict()})


def error_line(error: PedcxrError, *, film_id: str, key: bytes, refused: bool) -> str:
    """Return why a film has no report as JSON, without a line break; an unusable text of the model is included.

    ``refused`` means that the film itself cannot be sent, so that a retry would fail in the same way.
    """
    details = {
        "kind": "refused" if refused else "failed",
        "type": type(error).__name__,
        "code": error.outcome,
        "message": str(error),
        "text": error.text if isinstance(error, ReportError) else None,
        "request_id": error.request_id if isinstance(error, RequestError) else None,
    }
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return one_line({"schema": ERROR_SCHEMA, "id": film_id, "key": key.hex(), "created": created, "error": details})


class OutputFile:
    """The output file, open and locked inside a ``with``. A new file gets mode 0600.

    ``completed`` and ``refused`` hold the keys of the films that the run need not send again.
    """

    def __init__(self, path: str) -> None:
        self.completed: set[bytes] = set()
        self.refused: set[bytes] = set()
        self._file = _open(path)
        self._queue: list[tuple[bytes, asyncio.Future[None]]] = []
        self._writer: asyncio.Task[None] | None = None
        try:
            self._size = self._load_complete_lines()
            os.ftruncate(self._file, self._size)
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)  # this also releases the lock, as the end of the process does

    async def append(self, line: str) -> None:
        """Return once the line is on disk. Lines that arrive during a sync share the next sync."""
        sync: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append((line.encode() + b"\n", sync))
        if self._writer is None:
            self._writer = asyncio.create_task(self._write_queue())
        await sync

    async def drain(self) -> None:
        """Wait until every appended line is on disk, including lines whose callers were cancelled."""
        while (writer := self._writer) is not None:
            await asyncio.shield(writer)

    async def _write_queue(self) -> None:
        try:
            while self._queue:
                batch, self._queue = self._queue, []
                error = await asyncio.to_thread(self._write, b"".join(line for line, _ in batch))
                for _, sync in batch:
                    if sync.cancelled():
                        continue
                    if error is None:
                        sync.set_result(None)
                    else:
                        sync.set_exception(error)
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
            failure = ConfigurationError(f"-o: cannot be written: {error.strerror}; free disk space and run it again")
            failure.__cause__ = error
            return failure
        self._size += len(lines)
        return None

    def _load_complete_lines(self) -> int:
        complete, rest, number = 0, b"", 0
        while block := os.read(self._file, _BLOCK_BYTES):
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                number += 1
                if not self._load_line(line):
                    raise ConfigurationError(
                        f"-o: line {number} is not a line of pedcxr batch; give another file name, or repair the line"
                    )
                complete += len(line) + 1
        partial = rest.rstrip(b"\0")  # some file systems leave NUL bytes after a power failure
        if partial and not (partial.startswith(_FIRST_BYTES) or _FIRST_BYTES.startswith(partial)):
            raise ConfigurationError(f"-o: line {number + 1} is not a line of pedcxr batch; give another file name")
        return complete

    def _load_line(self, line: bytes) -> bool:
        try:
            entry = json.loads(line)
            key = bytes.fromhex(entry["key"])
            error = entry.get("error")
            if error is None:
                self.completed.add(key)
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
        reason = getattr(error, "strerror", None) or "not a valid path"
        raise ConfigurationError(f"-o: cannot be written: {reason}; give another file name") from error
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise ConfigurationError("-o: is not a regular file; give another file name")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigurationError(
                "-o: another run is writing this file; wait for it to end, or give another file name"
            ) from error
        if is_new:
            _sync_folder(path)
    except BaseException:
        os.close(file)
        raise
    return file


def _sync_folder(path: str) -> None:
    # Without this, the name of a new file may be lost in a crash.
    folder = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
