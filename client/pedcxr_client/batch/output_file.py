"""OUT.jsonl: one line per film, synced to disk before the film counts. One process writes it at a time.

A line of a report holds the report with ``id`` and ``key``; a line of an error holds ``error``. A killed run can leave
at most its last line incomplete. The next run removes that line and processes the film again.

``study`` groups the films of one examination. It is a digest with a salt that is random for each file, so that the
examinations of two files cannot be joined, and no table of digests made in advance finds a StudyInstanceUID. The salt
is the first part of each value: a resumed run reads it from there.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import re
import stat
from datetime import UTC, datetime
from hashlib import blake2b, sha256
from typing import Any, Literal, NamedTuple, Self

from pedcxr_client.batch.lock import OutputLock
from pedcxr_client.checks import rules
from pedcxr_client.errors import ConfigurationError, PedcxrError, ReportError, RequestError
from pedcxr_client.reports.json_lines import SCHEMA, one_line
from pedcxr_client.reports.report import Report

ERROR_SCHEMA = "pedcxr-error/1"

_FIRST_BYTES = b'{"schema": "pedcxr-'
_BLOCK_BYTES = 1 << 20
_UNEXPECTED = "an unexpected error of this film; the next run tries it again"
_STUDY = re.compile(r"([0-9a-f]{16})-[0-9a-f]{32}")
_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EACCES, errno.EPERM}


def report_line(report: Report, *, film_id: str, key: bytes, study: str | None, model: str) -> str:
    """Return a report with all its fields as JSON, without a line break. ``model`` is its name in the server's list."""
    head = {"schema": SCHEMA, "id": film_id, "key": key.hex(), "study": study, "served_model": model}
    return one_line({**head, **report.as_dict()})


def error_line(
    error: Exception, *, film_id: str, key: bytes, study: str | None, kind: Literal["refused", "failed"]
) -> str:
    """Return why a film has no report as JSON, without a line break; an unusable text of the model is included.

    ``refused`` means that the film itself cannot be sent, so that a retry would fail in the same way. The message of
    an exception that is not of this package is left out: it may quote a path or the film.
    """
    details = {
        "kind": kind,
        "type": type(error).__name__,
        "code": error.outcome if isinstance(error, PedcxrError) else "unexpected",
        "message": str(error) if isinstance(error, PedcxrError) else _UNEXPECTED,
        "text": error.text if isinstance(error, ReportError) else None,
        "request_id": error.request_id if isinstance(error, RequestError) else None,
    }
    return _line_of_error(film_id, key, study, details)


class SkipReason(NamedTuple):
    """Why a film is left out of a run, and the id of the film that stands for it, or None."""

    text: str
    other_id: str | None = None

    def __str__(self) -> str:
        return self.text if self.other_id is None else f"{self.text}; the report is that of id {self.other_id}"


def skip_line(reason: SkipReason, *, film_id: str, study: str | None) -> str:
    """Return why a film is left out of the run as JSON, without a line break."""
    details = {"kind": "skipped", "type": "Skipped", "code": "skipped", "message": str(reason)}
    return _line_of_error(film_id, skip_key(film_id, reason), study, {**details, "text": None, "request_id": None})


def skip_key(film_id: str, reason: SkipReason) -> bytes:
    """Return 16 bytes that identify a line of `skip_line`."""
    return sha256(json.dumps(["skipped", film_id, *reason]).encode()).digest()[:16]


def id_digest(film_id: str) -> bytes:
    """Return 16 bytes for an id, which take less memory than a long path."""
    return blake2b(film_id.encode(errors="backslashreplace"), digest_size=16).digest()


def _line_of_error(film_id: str, key: bytes, study: str | None, details: dict[str, str | None]) -> str:
    created = datetime.now(UTC).isoformat(timespec="seconds")
    head = {"schema": ERROR_SCHEMA, "id": film_id, "key": key.hex(), "study": study, "created": created}
    return one_line({**head, "rules": rules.VERSION, "error": details})


class OutputFile:
    """The output file, open and locked inside a ``with``. A new file gets mode 0600.

    Attributes:
        completed: keys of the films with a report.
        refused: keys of the films that this version of the rules refused.
        skipped: keys of the lines of films that were left out.
        reported_ids, refused_ids: `id_digest` of the ids of films with a report, and of those in ``refused``.
        last_model: name and revision of the model that wrote the last report, or None. The name is None in files of
            versions that did not write it.
        lock_notice: a sentence for the user if the file system does not support file locks, else None.
    """

    def __init__(self, path: str) -> None:
        self.completed: set[bytes] = set()
        self.refused: set[bytes] = set()
        self.skipped: set[bytes] = set()
        self.reported_ids: set[bytes] = set()
        self.refused_ids: set[bytes] = set()
        self.last_model: tuple[str | None, str | None] | None = None
        self._salt: bytes | None = None
        self._failure: ConfigurationError | None = None
        self._queue: list[tuple[bytes, asyncio.Future[None]]] = []
        self._writer: asyncio.Task[None] | None = None
        self._file, self._lock = _open(path)
        self.lock_notice = self._lock.notice
        try:
            self._size = self._load_complete_lines()
            os.ftruncate(self._file, self._size)
        except BaseException:
            self._close()
            raise

    def study(self, digest: str) -> str | None:
        """Return the value of ``study`` for `Facts.study`, None if that is empty."""
        if not digest:
            return None
        self._salt = self._salt or os.urandom(8)
        return f"{self._salt.hex()}-{blake2b(digest.encode(), key=self._salt, digest_size=16).hexdigest()}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        self._lock.release()
        os.close(self._file)  # this also releases flock, as the end of the process does

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
        if self._failure is not None:  # the file may end in an incomplete line
            return self._failure
        try:
            rest = memoryview(lines)
            while rest:
                rest = rest[os.write(self._file, rest) :]
            os.fsync(self._file)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._size)
            self._failure = ConfigurationError(
                f"-o: cannot be written: {error.strerror}; free disk space and run the same command again"
            )
            self._failure.__cause__ = error
            return self._failure
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
            key, name, error = bytes.fromhex(entry["key"]), str(entry["id"]), entry.get("error")
            if error is None:
                self._load_report(key, name, entry)
            elif error["kind"] == "refused" and entry.get("rules") == rules.VERSION:
                self.refused.add(key)
                self.refused_ids.add(id_digest(name))
            elif error["kind"] == "skipped":
                self.skipped.add(key)
            if self._salt is None and (match := _STUDY.fullmatch(str(entry.get("study")))):
                self._salt = bytes.fromhex(match[1])
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return False
        return True

    def _load_report(self, key: bytes, name: str, entry: dict[str, Any]) -> None:
        self.completed.add(key)
        self.reported_ids.add(id_digest(name))
        self.last_model = (entry.get("served_model"), entry.get("model_revision"))


def _open(path: str) -> tuple[int, OutputLock]:
    try:
        is_new = not os.path.exists(path)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a valid path"
        raise ConfigurationError(f"-o: cannot be written: {reason}; give another file name") from error
    lock: OutputLock | None = None
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise ConfigurationError("-o: is not a regular file; give another file name")
        lock = OutputLock(file, path)
        if is_new:
            _sync_folder(path)
    except BaseException:
        if lock is not None:
            lock.release()
        os.close(file)
        raise
    return file, lock


def _sync_folder(path: str) -> None:
    # Without this, the name of a new file may be lost in a crash. Some file systems cannot sync a folder, and a folder
    # may permit new files but no reading.
    try:
        folder = os.open(os.path.dirname(os.path.realpath(path)), os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise ConfigurationError(f"-o: its folder cannot be written to disk: {error.strerror}") from error
