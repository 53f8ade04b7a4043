"""The usage database: sums by tenant and day, and failed writes."""

from __future__ import annotations

import os
import sqlite3
import threading
from pathlib import Path

import pytest

from pedcxr_serve.errors import ConfigError
from pedcxr_serve.gateway.accounting import usage, usage_report
from pedcxr_serve.gateway.accounting.usage import UsageStore, UsageTotals
from tests.support.servers.gateway_server import eventually

USAGE = UsageTotals(1, 1, 10, 20, 30)


def test_invalid_usage_file_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "usage.sqlite"
    path.write_bytes(b"not a database, but longer than a header of SQLite" * 50)
    with pytest.raises(ConfigError, match=r"usage\.sqlite"):
        UsageStore(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_start_as_root_does_not_lock_the_user_of_the_service_out(tmp_path: Path) -> None:
    path = tmp_path / "usage.sqlite"
    path.touch()
    os.chown(path, 65534, 65534)
    UsageStore(path).close()
    assert (tmp_path / "usage.sqlite.lock").stat().st_uid == 65534


def test_lock_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    (tmp_path / "usage.sqlite.lock").mkdir()
    with pytest.raises(ConfigError, match=r"usage\.sqlite\.lock: Is a directory; check its owner and the folder"):
        UsageStore(tmp_path / "usage.sqlite")


def test_second_server_on_a_database_is_refused(tmp_path: Path) -> None:
    path, link = tmp_path / "usage.sqlite", tmp_path / "link.sqlite"
    store = UsageStore(path)
    link.symlink_to(path)
    store.add("2026-11-23", "a", USAGE)
    for name in (path, link):
        with pytest.raises(ConfigError, match=r"another server counts in it; give each server .* --usage-db"):
            UsageStore(name)
    eventually(lambda: "2026-11-23" in usage_report.report([str(path)]))  # reading needs no lock
    store.close()
    again = UsageStore(link)
    assert again.of("2026-11-23", "a") == USAGE
    again.close()


def test_invalid_file_is_not_locked(tmp_path: Path) -> None:
    path = tmp_path / "usage.sqlite"
    path.write_bytes(b"not a database, but longer than a header of SQLite" * 50)
    with pytest.raises(ConfigError, match="cannot be used"):
        UsageStore(path)
    path.unlink()
    UsageStore(path).close()


def test_usage_of_many_requests_is_summed(tmp_path: Path) -> None:
    path = tmp_path / "usage.sqlite"
    store = UsageStore(path)
    for _ in range(500):
        store.add("2026-11-23", "a", UsageTotals(1, 1, 10, 20, 30))
    store.close()
    with sqlite3.connect(path) as database:
        rows = database.execute("SELECT * FROM usage").fetchall()
    database.close()
    assert rows == [("2026-11-23", "a", 500, 500, 5000, 10000, 15000)]
    assert "pedcxr-usage" not in {thread.name for thread in threading.enumerate()}, "the writer has ended"


def test_failed_write_is_counted_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "usage.sqlite"
    store = UsageStore(path)
    with sqlite3.connect(path) as database:
        database.execute("DROP TABLE usage")
    database.close()
    store.add("2026-11-23", "a", USAGE)
    store.close()
    assert store.failures >= 1
    assert "usage of 1 requests not written" in caplog.text
    assert store.of("2026-11-23", "a") == USAGE, "the sum in memory is complete"


def test_days_since_a_day() -> None:
    store = UsageStore(None)
    for day in ("2026-11-22", "2026-11-23"):
        store.add(day, "a", USAGE)
        store.add(day, "a", USAGE)
    assert set(store.days()) == {"2026-11-22", "2026-11-23"}
    assert store.days("2026-11-23") == {
        "2026-11-23": {
            "a": {
                "requests": 2,
                "reports": 2,
                "prompt_tokens": 20,
                "image_tokens": 40,
                "output_tokens": 60,
                "tokens": 120,
            }
        }
    }


def test_usage_of_a_failed_write_is_written_later(tmp_path: Path) -> None:
    path = tmp_path / "usage.sqlite"
    store = UsageStore(path)
    with sqlite3.connect(path, isolation_level=None) as database:
        database.execute("DROP TABLE usage")  # every write fails
        store.add("2026-11-27", "a", UsageTotals(1, 1, 30, 256, 6))
        eventually(lambda: store.failures == 1)
        database.execute(usage._TABLE)
        store.add("2026-11-27", "a", UsageTotals(1, 1, 30, 256, 6))
        store.add("2026-11-27", "b", UsageTotals(1))
    database.close()
    store.close()
    again = UsageStore(path)
    assert again.of("2026-11-27", "a") == UsageTotals(2, 2, 60, 512, 12)
    assert again.of("2026-11-27", "b") == UsageTotals(1)
    again.close()
