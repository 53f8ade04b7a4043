"""Tokens and reports by tenant and day, stored in SQLite so that daily budgets survive a restart."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import sqlite3
import threading
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, astuple, dataclass
from pathlib import Path

import msgspec

from pedcxr_serve.errors import ConfigError
from pedcxr_serve.gateway.accounting.file_lock import try_lock

_log = logging.getLogger("pedcxr.gateway")
_TABLE = """CREATE TABLE IF NOT EXISTS usage (
    day TEXT, tenant TEXT, requests INTEGER, reports INTEGER, prompt_tokens INTEGER, image_tokens INTEGER,
    output_tokens INTEGER, PRIMARY KEY (day, tenant)) WITHOUT ROWID"""
_ADD = """INSERT INTO usage VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (day, tenant) DO UPDATE SET
    requests = requests + excluded.requests, reports = reports + excluded.reports,
    prompt_tokens = prompt_tokens + excluded.prompt_tokens, image_tokens = image_tokens + excluded.image_tokens,
    output_tokens = output_tokens + excluded.output_tokens"""
_LEDGER = "CREATE TABLE IF NOT EXISTS ledger AS SELECT ? AS id"  # one statement: no reader finds it without its row
_LINGER_S = 0.05  # a transaction per request would take a tenth of the gateway's processor time
_Row = tuple[str, str, int, int, int, int, int]


class TokenUsage(msgspec.Struct, frozen=True):
    """Tokens of one request as counted by the engine; image tokens are part of ``prompt_tokens``."""

    prompt_tokens: int = 0
    completion_tokens: int | None = 0

    @property
    def output(self) -> int:
        """Tokens of the answer."""
        return self.completion_tokens or 0


@dataclass(frozen=True, slots=True)
class UsageTotals:
    """Sums over requests. ``reports`` counts the requests whose report is complete.

    ``prompt_tokens`` does not include ``image_tokens``.
    """

    requests: int = 0
    reports: int = 0
    prompt_tokens: int = 0
    image_tokens: int = 0
    output_tokens: int = 0

    @property
    def tokens(self) -> int:
        """All tokens that count towards a budget."""
        return self.prompt_tokens + self.image_tokens + self.output_tokens

    def __add__(self, other: UsageTotals) -> UsageTotals:
        return UsageTotals(*(one + two for one, two in zip(astuple(self), astuple(other), strict=True)))


class UsageStore:
    """Sums in memory, and a thread that writes them to a file within `_LINGER_S`.

    Args:
        path: the SQLite file, created if absent. None keeps the sums in memory only.

    Attributes:
        failures: number of failed writes. The next write, or `close`, tries again.
        ledger: random id of these sums, kept in the file and so in its copies.

    Raises:
        ConfigError: the file cannot be opened, is not a database of usage, or another server counts in it.
    """

    def __init__(self, path: Path | None) -> None:
        self._sums: dict[tuple[str, str], UsageTotals] = {}
        self._rows: queue.SimpleQueue[_Row | None] = queue.SimpleQueue()
        self._writer: threading.Thread | None = None
        self._closing = threading.Event()
        self.failures = 0
        self.ledger = uuid.uuid4().hex
        self._lock: int | None = None
        if path is None:
            return
        try:
            path.touch(mode=0o600)
            self._lock = _locked(path)
            database = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("PRAGMA synchronous=NORMAL")
            database.execute(_TABLE)
            database.execute(_LEDGER, (self.ledger,))
            (self.ledger,) = database.execute("SELECT id FROM ledger").fetchone()
            for day, tenant, *counts in database.execute("SELECT * FROM usage"):
                self._sums[day, tenant] = UsageTotals(*counts)
        except (OSError, sqlite3.Error) as error:
            self._unlock()
            raise ConfigError(
                f"{path}: cannot be used as usage database ({error}); see gateway.usage_db, or move a damaged file "
                "away: the server then starts a new one, with all budgets unspent"
            ) from error
        self._writer = threading.Thread(target=self._write, args=(database,), name="pedcxr-usage", daemon=True)
        self._writer.start()

    def add(self, day: str, tenant: str, totals: UsageTotals) -> None:
        """Add the usage of a request; ``day`` is YYYY-MM-DD, UTC."""
        self._sums[day, tenant] = self.of(day, tenant) + totals
        if self._writer is not None:
            self._rows.put((day, tenant, *astuple(totals)))

    def of(self, day: str, tenant: str) -> UsageTotals:
        """Return the usage of a tenant on a day."""
        return self._sums.get((day, tenant)) or UsageTotals()

    def days(self, since: str = "") -> Mapping[str, dict[str, dict[str, int]]]:
        """Return the usage since a day, that day included, by day and tenant."""
        days: dict[str, dict[str, dict[str, int]]] = {}
        for day, tenant in sorted(key for key in self._sums if key[0] >= since):
            totals = self._sums[day, tenant]
            days.setdefault(day, {})[tenant] = asdict(totals) | {"tokens": totals.tokens}
        return days

    def close(self) -> None:
        """Write the remaining rows and close the file."""
        if self._writer is not None:
            self._closing.set()
            self._rows.put(None)
            self._writer.join()
            self._writer = None
            self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _write(self, database: sqlite3.Connection) -> None:
        unwritten: dict[tuple[str, str], UsageTotals] = {}
        with contextlib.closing(database):
            for rows in self._batches():
                for day, tenant, *counts in rows:
                    unwritten[day, tenant] = unwritten.get((day, tenant), UsageTotals()) + UsageTotals(*counts)
                try:
                    database.execute("BEGIN")
                    database.executemany(_ADD, [(*key, *astuple(totals)) for key, totals in unwritten.items()])
                    database.execute("COMMIT")
                    unwritten.clear()
                except sqlite3.Error as error:
                    self.failures += 1
                    requests = sum(totals.requests for totals in unwritten.values())
                    _log.error("usage of %d requests not written, to be tried again: %s", requests, error)
                    with contextlib.suppress(sqlite3.Error):
                        database.execute("ROLLBACK")

    def _batches(self) -> Iterator[list[_Row]]:
        while (row := self._rows.get()) is not None:
            rows = [row]
            self._closing.wait(_LINGER_S)
            while not self._rows.empty():
                following = self._rows.get()
                if following is None:
                    yield rows
                    return
                rows.append(following)
            yield rows
        yield []  # what was not written before


def _locked(path: Path) -> int:
    """Return the open and locked file beside a database: SQLite has locks of its own, which readers need too."""
    name = f"{path.resolve()}.lock"
    try:
        lock = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(f"gateway.usage_db: {name}: {error.strerror}; check its owner and the folder") from error
    if not os.geteuid():  # a start as root must not lock the user of the service out
        os.fchown(lock, path.stat().st_uid, path.stat().st_gid)
    if not try_lock(lock):
        os.close(lock)
        raise ConfigError(
            f"gateway.usage_db: {path}: another server counts in it; give each server a file of its own, with "
            "--usage-db FILE or gateway.usage_db"
        )
    return lock
