"""Tokens and reports by tenant and day, kept in SQLite so that a budget once spent stays spent."""

from __future__ import annotations

import contextlib
import logging
import queue
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, astuple, dataclass
from pathlib import Path

from pedcxr_serve.errors import ConfigError

__all__ = ["Spent", "UsageStore"]

_log = logging.getLogger("pedcxr.gateway")
_TABLE = """CREATE TABLE IF NOT EXISTS usage (
    day TEXT, tenant TEXT, requests INTEGER, reports INTEGER, prompt_tokens INTEGER, image_tokens INTEGER,
    output_tokens INTEGER, PRIMARY KEY (day, tenant)) WITHOUT ROWID"""
_ADD = """INSERT INTO usage VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (day, tenant) DO UPDATE SET
    requests = requests + excluded.requests, reports = reports + excluded.reports,
    prompt_tokens = prompt_tokens + excluded.prompt_tokens, image_tokens = image_tokens + excluded.image_tokens,
    output_tokens = output_tokens + excluded.output_tokens"""
_Row = tuple[str, str, int, int, int, int, int]


@dataclass(frozen=True, slots=True)
class Spent:
    """What was used. ``reports`` are the requests that ended by themselves; image tokens are not in the prompt's."""

    requests: int = 0
    reports: int = 0
    prompt_tokens: int = 0
    image_tokens: int = 0
    output_tokens: int = 0

    @property
    def tokens(self) -> int:
        """All that a budget counts."""
        return self.prompt_tokens + self.image_tokens + self.output_tokens

    def __add__(self, other: Spent) -> Spent:
        return Spent(*(one + two for one, two in zip(astuple(self), astuple(other), strict=True)))


class UsageStore:
    """Sums in memory, which answer at once, and a thread that writes them down, some milliseconds later.

    Args:
        path: of the file, made if absent; None keeps nothing beyond this process.

    Raises:
        ConfigError: the file cannot be opened, or is no such database.
    """

    def __init__(self, path: Path | None) -> None:
        self._sums: dict[tuple[str, str], Spent] = {}
        self._orders: queue.SimpleQueue[_Row | None] = queue.SimpleQueue()
        self._writer: threading.Thread | None = None
        self.failures = 0
        if path is None:
            return
        try:
            path.touch(mode=0o600)
            base = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            base.execute("PRAGMA journal_mode=WAL")
            base.execute("PRAGMA synchronous=NORMAL")
            base.execute(_TABLE)
            for day, tenant, *counts in base.execute("SELECT * FROM usage"):
                self._sums[day, tenant] = Spent(*counts)
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(f"{path}: cannot be used to count tokens ({error}); see gateway.usage_db") from error
        self._writer = threading.Thread(target=self._write, args=(base,), name="pedcxr-usage", daemon=True)
        self._writer.start()

    def add(self, day: str, tenant: str, spent: Spent) -> None:
        """Count what a request used; ``day`` is YYYY-MM-DD, UTC."""
        self._sums[day, tenant] = self.of(day, tenant) + spent
        if self._writer is not None:
            self._orders.put((day, tenant, *astuple(spent)))

    def of(self, day: str, tenant: str) -> Spent:
        """What a tenant used on a day."""
        return self._sums.get((day, tenant)) or Spent()

    def days(self, since: str = "") -> Mapping[str, dict[str, dict[str, int]]]:
        """Everything from a day on: by day, then tenant."""
        found: dict[str, dict[str, dict[str, int]]] = {}
        for (day, tenant), spent in sorted(self._sums.items()):
            if day >= since:
                found.setdefault(day, {})[tenant] = asdict(spent) | {"tokens": spent.tokens}
        return found

    def close(self) -> None:
        """Write what is left and close the file."""
        if self._writer is not None:
            self._orders.put(None)
            self._writer.join()
            self._writer = None

    def _write(self, base: sqlite3.Connection) -> None:
        with contextlib.closing(base):
            for rows in self._batches():
                try:
                    base.execute("BEGIN")
                    base.executemany(_ADD, rows)
                    base.execute("COMMIT")
                except sqlite3.Error as error:
                    self.failures += 1
                    _log.error("usage of %d requests not written: %s", len(rows), error)
                    with contextlib.suppress(sqlite3.Error):
                        base.execute("ROLLBACK")

    def _batches(self) -> Iterator[list[_Row]]:
        while (row := self._orders.get()) is not None:
            rows = [row]
            while not self._orders.empty():
                more = self._orders.get()
                if more is None:
                    yield rows
                    return
                rows.append(more)
            yield rows
