"""The audit log: a line a request, without content, chained so that a changed or removed line shows.

Each line is a JSON object that ends in ``"prev"``, the mark of the line before, and ``"mac"``, its own:
HMAC-SHA256, under a key from the environment, of all that stands before. Without the key nobody can mend a chain.
What no chain can show is a missing end; ``seq`` of the last line can be compared with the metrics.
"""

from __future__ import annotations

import hmac
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from pedcxr_serve.errors import AuditError, ConfigError

__all__ = ["KEY_VARIABLE", "AuditLog", "key_from", "verify"]

KEY_VARIABLE = "PEDCXR_AUDIT_KEY"
_SHORTEST_KEY = 32
_START = "0" * 64
_LINE = re.compile(rb'(\{.*"prev":"([0-9a-f]{64})"),"mac":"([0-9a-f]{64})"\}')
_log = logging.getLogger("pedcxr.gateway")


def key_from(env: Mapping[str, str]) -> bytes:
    """The key of chain and digests.

    Raises:
        ConfigError: it is absent or short; its value is not repeated.
    """
    key = env.get(KEY_VARIABLE, "").encode()
    if len(key) < _SHORTEST_KEY:
        raise ConfigError(
            f"environment: {KEY_VARIABLE}: gateway.audit_log needs a secret of at least {_SHORTEST_KEY} characters, "
            "such as `openssl rand -hex 32` prints; keep it, `pedcxr-serve audit verify` needs the same"
        )
    return key


class AuditLog:
    """Appends to a file of mode 0600; a full one is set aside as ``NAME.SEQ``, SEQ being its first line's.

    Args:
        max_bytes: size at which a file is full.

    Raises:
        ConfigError: the file cannot be used.
    """

    def __init__(self, path: Path, key: bytes, *, max_bytes: int = 64 << 20) -> None:
        self._path, self._key, self._max_bytes = path, key, max_bytes
        self.failures = 0
        try:
            self._seq, self._mark = _last(path)
            self._first = _first(path, self._seq)
            self._open()
        except (OSError, AuditError) as error:
            raise ConfigError(f"gateway.audit_log: {path}: cannot be continued: {error}") from error

    def digest(self, data: bytes | memoryview) -> str:
        """A word that is the same for the same bytes and tells nothing else without the key; hex."""
        return hmac.digest(self._key, data, "sha256").hex()

    def write(self, entry: Mapping[str, object]) -> None:
        """Append a line. It never raises: a failure is logged and counted in ``failures``."""
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = {"seq": self._seq, "time": time, **entry, "prev": self._mark}
        head = json.dumps(line, separators=(",", ":")).encode()[:-1]
        mark = hmac.digest(self._key, head, "sha256").hex()
        data = head + b',"mac":"' + mark.encode() + b'"}\n'
        try:
            if self._size and self._size + len(data) > self._max_bytes:
                self._rotate()
            if os.write(self._file, data) != len(data):
                raise OSError("half a line was written; is the disk full?")
        except OSError as error:
            self.failures += 1
            _log.error("audit line %d not written: %s", self._seq, error)
            return
        self._size += len(data)
        self._seq, self._mark = self._seq + 1, mark

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _open(self) -> None:
        self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._size = os.fstat(self._file).st_size

    def _rotate(self) -> None:
        os.rename(self._path, self._path.with_name(f"{self._path.name}.{self._first:012d}"))
        os.close(self._file)
        self._first = self._seq
        self._open()


def verify(path: Path, key: bytes) -> str:
    """Check a log and the files set aside; words on what was found whole.

    Raises:
        AuditError: naming file and line of the first break.
    """
    files = [*sorted(path.parent.glob(f"{path.name}.{'[0-9]' * 12}")), path]
    seq, mark, begin = None, "", 0
    for file in files:
        for number, line in enumerate(_lines(file), 1):
            found = _LINE.fullmatch(line)
            where = f"{file}: line {number}"
            if found is None:
                raise AuditError(f"{where}: not a line of this log")
            if not hmac.compare_digest(hmac.digest(key, found[1], "sha256").hex(), found[3].decode()):
                raise AuditError(f"{where}: changed since it was written, or the key is another")
            told = json.loads(line)["seq"]
            if seq is None:
                begin, mark = told, _START if told == 0 else found[2].decode()
            elif told != seq + 1:
                raise AuditError(f"{where}: follows line {seq} of the chain and is {told}: lines are missing")
            if found[2].decode() != mark:
                raise AuditError(f"{where}: does not follow the line before it")
            seq, mark = told, found[3].decode()
    if seq is None:
        return f"{path}: empty"
    missing = f"; lines 0 to {begin - 1} are not there" if begin else ""
    return f"{path}: lines {begin} to {seq} are whole and in order{missing}"


def _lines(file: Path) -> Iterator[bytes]:
    try:
        with file.open("rb") as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    raise AuditError(f"{file}: the last line is cut off")
                yield line[:-1]
    except OSError as error:
        raise AuditError(f"{file}: cannot be read: {error.strerror}") from error


def _last(path: Path) -> tuple[int, str]:
    """Number and mark for the next line; a line cut off by a crash is taken out."""
    if not path.exists() or not path.stat().st_size:
        older = sorted(path.parent.glob(f"{path.name}.{'[0-9]' * 12}"))
        return _last(older[-1]) if older else (0, _START)
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        os.truncate(path, len(whole))
        _log.warning("%s: a line cut off was taken out", path)
        return _last(path)
    found = _LINE.fullmatch(whole[:-1].rpartition(b"\n")[2])
    if found is None:
        raise AuditError("its last line is not a line of an audit log")
    return json.loads(found[0])["seq"] + 1, found[3].decode()


def _first(path: Path, default: int) -> int:
    if not path.exists():
        return default
    with path.open("rb") as file:
        line = file.readline()
    return int(json.loads(line)["seq"]) if line else default
