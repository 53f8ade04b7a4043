"""The audit log: one line per request without its content, chained so that changed and removed lines are detected.

Each line is a JSON object that ends with ``"prev"``, the MAC of the previous line, and ``"mac"``, its own MAC:
HMAC-SHA256 of everything before it, under a key from the environment. A chain cannot be repaired without the key. The
chain cannot show that lines are missing at the end; compare ``seq`` of the last line with ``pedcxr_audit_next_seq``.
A line that follows lines which could not be written has their number in ``"lost"``.

A line reaches the kernel before its request ends, so that it survives the end of this process, also by SIGKILL. It is
not synchronised with the disk, which would cost milliseconds per request: a power failure can lose the last seconds.
`close` and each rotation synchronise the file.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from pedcxr_serve.errors import AuditError, ConfigError
from pedcxr_serve.gateway.accounting.file_lock import try_lock

KEY_VARIABLE = "PEDCXR_AUDIT_KEY"
_MIN_KEY_CHARS = 32
_FIRST_PREV = "0" * 64
_LINE = re.compile(rb'(\{.*"prev":"([0-9a-f]{64})"),"mac":"([0-9a-f]{64})"\}')
_log = logging.getLogger("pedcxr.gateway")


def key_from(env: Mapping[str, str]) -> bytes:
    """Return the key of chain and digests.

    Raises:
        ConfigError: it is absent or short; the message does not contain it.
    """
    key = env.get(KEY_VARIABLE, "").encode()
    if len(key) < _MIN_KEY_CHARS:
        raise ConfigError(
            f"environment: {KEY_VARIABLE}: gateway.audit_log needs a secret of at least {_MIN_KEY_CHARS} characters, "
            "for example from `openssl rand -hex 32`; keep it, `pedcxr-serve audit verify` needs the same secret"
        )
    return key


class AuditLog:
    """Appends to a file of mode 0600, or raises ConfigError if the file cannot be used.

    A file of ``max_bytes`` is renamed to ``NAME.SEQ`` after the number of its first line. ``failures`` is the number
    of lines that could not be written.
    """

    def __init__(self, path: Path, key: bytes, *, max_bytes: int = 64 << 20) -> None:
        self._path, self._key, self._max_bytes = path, key, max_bytes
        self.failures = 0
        self._lost = 0  # lines not written since the last written line
        try:
            self._seq, self._mac = _next_seq_and_prev(path)
            self._first_seq = _first_seq(path, self._seq)
            self._open()
        except (OSError, AuditError) as error:
            raise ConfigError(f"gateway.audit_log: {path}: cannot be continued: {error}") from error

    def digest(self, data: bytes | memoryview) -> str:
        """Return the HMAC-SHA256 of data in hex: equal for equal data, and meaningless without the key."""
        return hmac.digest(self._key, data, "sha256").hex()

    def write(self, entry: Mapping[str, object]) -> None:
        """Append a line. Never raises: a failure is logged and counted in ``failures``."""
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        lost = {"lost": self._lost} if self._lost else {}
        line = {"seq": self._seq, "time": time, **lost, **entry, "prev": self._mac}
        head = json.dumps(line, separators=(",", ":")).encode()[:-1]
        mac = hmac.digest(self._key, head, "sha256").hex()
        data = head + b',"mac":"' + mac.encode() + b'"}\n'
        try:
            if self._size and self._size + len(data) > self._max_bytes:
                self._rotate()
            self._append(data)
        except OSError as error:
            self.failures += 1
            self._lost += 1
            _log.error("audit line %d not written: %s", self._seq, error)
            return
        self._size += len(data)
        self._seq, self._mac, self._lost = self._seq + 1, mac, 0

    @property
    def next_seq(self) -> int:
        """The ``seq`` of the next line, one more than that of the last line of the file."""
        return self._seq

    def close(self) -> None:
        """Write the file to the disk and close it."""
        _sync_and_close(self._file)

    def _append(self, data: bytes) -> None:
        try:
            if os.write(self._file, data) != len(data):
                raise OSError("the line was written in part; check for a full disk")
        except OSError:
            os.ftruncate(self._file, self._size)  # half a line would break the chain
            raise

    def _open(self) -> None:
        file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if not try_lock(file):
            os.close(file)
            raise OSError("another server writes it; give each server a file of its own")
        self._file = file
        self._size = os.fstat(file).st_size

    def _rotate(self) -> None:
        """Continue in a new file, or in the old one while a new one cannot be opened."""
        full, old_name = self._file, self._path.with_name(f"{self._path.name}.{self._first_seq:012d}")
        os.rename(self._path, old_name)
        try:
            self._open()
        except OSError as error:
            os.rename(old_name, self._path)
            _log.error("audit log not rotated: %s", error)
            return
        _sync_and_close(full)
        self._first_seq = self._seq


def _sync_and_close(file: int) -> None:
    with contextlib.suppress(OSError):  # not supported, or the disk is full: the lines are in the file
        os.fdatasync(file)
    os.close(file)


def verify(path: Path, key: bytes, *, allow_truncated: bool = False) -> str:
    """Check a log and its rotated files; return a sentence with the numbers of the checked lines.

    Args:
        allow_truncated: mention a truncated last line, which the next start removes, instead of raising.

    Raises:
        AuditError: the chain is broken; the message names file and line of the first break.
    """
    seq, previous_mac, begin, lost, truncated = None, "", 0, 0, ""
    try:
        files = [*_rotated_oldest_first(path), path]
    except OSError as error:
        raise AuditError(f"{path}: cannot be read: {error.strerror}") from error
    for file in files:
        for number, line in enumerate(_lines(file), 1):
            if not line.endswith(b"\n"):
                if file != path or not allow_truncated:
                    raise AuditError(f"{file}: the last line is truncated")
                truncated = "; the last line is truncated, and the next start removes it"
                break
            line = line[:-1]
            match = _LINE.fullmatch(line)
            where = f"{file}: line {number}"
            if match is None:
                raise AuditError(f"{where}: not a line of an audit log")
            if not hmac.compare_digest(hmac.digest(key, match[1], "sha256").hex(), match[3].decode()):
                raise AuditError(f"{where}: the line was changed, or the key is a different one")
            entry = json.loads(line)
            line_seq = entry["seq"]
            lost += entry.get("lost", 0)
            if seq is None:
                begin, previous_mac = line_seq, _FIRST_PREV if line_seq == 0 else match[2].decode()
            elif line_seq != seq + 1:
                raise AuditError(f"{where}: lines are missing: seq is {line_seq} after {seq}")
            if match[2].decode() != previous_mac:
                raise AuditError(f"{where}: prev is not the MAC of the previous line")
            seq, previous_mac = line_seq, match[3].decode()
    if seq is None:
        return f"{path}: empty{truncated}"
    absent = f"; lines 0 to {begin - 1} are in no file" if begin else ""
    unwritten = f"; {lost} further requests could not be logged" if lost else ""
    return f"{path}: lines {begin} to {seq} are intact and in order{absent}{unwritten}{truncated}"


def _lines(file: Path) -> Iterator[bytes]:
    try:
        with file.open("rb") as lines:
            yield from lines
    except OSError as error:
        raise AuditError(f"{file}: cannot be read: {error.strerror}") from error


def _next_seq_and_prev(path: Path) -> tuple[int, str]:
    """Return ``seq`` and ``prev`` of the next line. A last line that a crash truncated is removed."""
    if not path.exists() or not path.stat().st_size:
        rotated = _rotated_oldest_first(path)
        return _next_seq_and_prev(rotated[-1]) if rotated else (0, _FIRST_PREV)
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        os.truncate(path, len(whole))
        _log.warning("%s: removed a truncated last line", path)
        return _next_seq_and_prev(path)
    match = _LINE.fullmatch(whole[:-1].rpartition(b"\n")[2])
    if match is None:
        raise AuditError("its last line is not a line of an audit log")
    return json.loads(match[0])["seq"] + 1, match[3].decode()


def _first_seq(path: Path, default: int) -> int:
    if not path.exists():
        return default
    with path.open("rb") as file:
        line = file.readline()
    if line and _LINE.fullmatch(line.removesuffix(b"\n")) is None:
        raise AuditError("its first line is not a line of an audit log")
    return int(json.loads(line)["seq"]) if line else default


def _rotated_oldest_first(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{path.name}.{'[0-9]' * 12}"))
