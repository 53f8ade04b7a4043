"""The usage of several servers, added up from files and from running servers."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from pedcxr_serve.cli import main
from pedcxr_serve.errors import ConfigError
from pedcxr_serve.gateway.accounting import usage_report
from pedcxr_serve.gateway.accounting.usage import UsageStore, UsageTotals
from tests.support.http_server import Handler, serving
from tests.support.servers.fake_engine import FakeEngine
from tests.support.servers.gateway_server import BODY, CHAT, eventually, running


def ledger(path: Path, *rows: tuple[str, str, UsageTotals]) -> Path:
    store = UsageStore(path)
    for day, tenant, totals in rows:
        store.add(day, tenant, totals)
    store.close()
    return path


def test_files_are_added_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = ledger(
        tmp_path / "one.sqlite",
        ("2026-01-01", "ward", UsageTotals(1, 1, 10, 256, 100)),
        ("2026-01-02", "ward", UsageTotals(2, 2, 20, 512, 1200)),
    )
    two = ledger(tmp_path / "two.sqlite", ("2026-01-02", "ward", UsageTotals(3, 1, 5, 256, 50)))
    assert main(["usage", str(one), str(two), "--since", "2026-01-02"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "day         tenant  requests  reports  prompt  image  output  tokens",
        "2026-01-02  ward           5        3      25    768   1,250   2,043",
    ]


def test_running_server_and_file_are_added_up(tmp_path: Path, engine: FakeEngine) -> None:
    with running(engine, replica="gpu1:8000") as gateway, gateway.client() as client:
        assert client.post(CHAT, json=BODY).status_code == 200
        admin = gateway.listeners.metrics_url.removesuffix("/metrics")
        assert client.get(admin + "/usage").json()["replica"] == "gpu1:8000"
        eventually(lambda: client.get(admin + "/usage").json()["days"])
        (day,) = client.get(admin + "/usage").json()["days"]
        file = ledger(tmp_path / "one.sqlite", (day, "anonymous", UsageTotals(1, 1, 1, 1, 1)))
        lines = usage_report.report([admin, str(file)]).splitlines()
        with pytest.raises(ConfigError, match="counted twice"):
            usage_report.report([admin, admin.replace("127.0.0.1", "localhost")])
    assert lines[1].split()[:4] == [day, "anonymous", "2", "2"]


def test_port_with_a_token(tmp_path: Path, engine: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    token = tmp_path / "token"
    token.write_text("t" * 64 + "\n")
    with running(engine, admin_token="t" * 64) as gateway, gateway.client() as client:
        assert client.post(CHAT, json=BODY).status_code == 200
        admin = gateway.listeners.metrics_url.removesuffix("/metrics")
        assert main(["usage", admin, "--token-file", str(token)]) == 0
        assert "anonymous" in capsys.readouterr().out
        assert main(["usage", admin]) == 2
        assert "401" in capsys.readouterr().err


@pytest.mark.parametrize("source", ["absent.sqlite", "http://127.0.0.1:1", __file__])
def test_source_that_cannot_be_read_is_an_error(source: str, tmp_path: Path) -> None:
    file = ledger(tmp_path / "one.sqlite")
    with pytest.raises(ConfigError, match=r"cannot be read as usage"):
        usage_report.report([str(file), source])


def test_token_is_not_sent_to_a_proxy(tmp_path: Path, engine: FakeEngine) -> None:
    requests: list[str] = []
    token = tmp_path / "token"
    token.write_text("t" * 64)

    class Proxy(Handler):
        def do_GET(self) -> None:
            requests.append(self.path)
            self.answer(b"{}")

    with serving(Proxy) as port, running(engine, admin_token="t" * 64) as gateway:
        admin = gateway.listeners.metrics_url.removesuffix("/metrics")
        proxy = dict.fromkeys(("http_proxy", "all_proxy"), f"http://127.0.0.1:{port}") | {"no_proxy": ""}
        words = [sys.executable, "-m", "pedcxr_serve", "usage", admin, "--token-file", str(token)]
        completed = subprocess.run(words, env=os.environ | proxy, capture_output=True, text=True)
    assert (requests, completed.stdout.split()[:2]) == ([], ["day", "tenant"]), completed.stderr


def test_backup_is_read_without_a_write_beside_it(tmp_path: Path) -> None:
    """A folder that this user cannot write, or a read-only file system, holds it just as well."""
    backup = tmp_path / "backup" / "usage.sqlite"
    backup.parent.mkdir()
    file = ledger(tmp_path / "usage.sqlite", ("2026-01-01", "ward", UsageTotals(3)))
    with (
        closing(sqlite3.connect(file)) as database,
        closing(sqlite3.connect(backup)) as copy,
    ):
        database.backup(copy)  # `.backup` of the command sqlite3
    backup.parent.chmod(0o555)  # root could write it nevertheless
    try:
        assert usage_report.report([str(backup)]).splitlines()[1].split()[:3] == ["2026-01-01", "ward", "3"]
        assert [file.name for file in backup.parent.iterdir()] == ["usage.sqlite"]
    finally:
        backup.parent.chmod(0o755)


def test_rows_that_are_only_in_the_log_of_a_running_server_are_read(tmp_path: Path) -> None:
    file = tmp_path / "usage.sqlite"
    (tmp_path / "link.sqlite").symlink_to(file)
    store = UsageStore(file)
    try:
        store.add("2026-01-01", "ward", UsageTotals(3))
        for name in ("usage.sqlite", "link.sqlite"):
            eventually(lambda name=name: "ward" in usage_report.report([str(tmp_path / name)]))
        shutil.copy(file, tmp_path / "without_log.sqlite")
        with pytest.raises(ConfigError):
            usage_report.report([str(tmp_path / "without_log.sqlite")])
    finally:
        store.close()
    assert "ward" in usage_report.report([str(file)])


@pytest.fixture(params=["this release", "an older release"])
def counted(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A file with one request; an older release wrote no id."""
    file = ledger(tmp_path / "usage.sqlite", ("2026-01-01", "ward", UsageTotals(1)))
    if request.param == "an older release":
        with closing(sqlite3.connect(file)) as database:
            database.execute("DROP TABLE ledger")
    return file


@pytest.mark.parametrize("again", ["usage.sqlite", "folder/../usage.sqlite", "link.sqlite"])
def test_file_under_two_names_is_an_error(counted: Path, again: str) -> None:
    (counted.parent / "folder").mkdir()
    (counted.parent / "link.sqlite").hardlink_to(counted)
    other = f"{counted.parent}/{again}"
    with pytest.raises(ConfigError, match=f"{other}: .* as {counted}, .* twice"):
        usage_report.report([str(counted), other])


def test_file_and_its_copy_of_another_day_are_an_error(tmp_path: Path) -> None:
    file, copy = ledger(tmp_path / "usage.sqlite"), tmp_path / "copy.sqlite"
    shutil.copy(file, copy)
    ledger(file, ("2026-01-02", "ward", UsageTotals(1)))
    assert main(["usage", str(copy), str(file)]) == 2


def test_file_of_an_older_release_is_read_and_gets_an_id(counted: Path, tmp_path: Path) -> None:
    other = str(ledger(tmp_path / "other.sqlite", ("2026-01-01", "ward", UsageTotals(1))))
    with closing(sqlite3.connect(counted)) as reader:  # in the middle of a read while a server opens the file
        rows = reader.execute("SELECT 1 FROM usage UNION ALL SELECT 2 FROM usage")
        next(rows)
        for _ in range(2):
            assert usage_report.report([str(counted), other]).splitlines()[1].split()[2] == "2"
            store = UsageStore(counted)
            assert store.of("2026-01-01", "ward") == UsageTotals(1)
            store.close()
        assert rows.fetchall() == [(2,)]
        assert reader.execute("SELECT id FROM ledger").fetchall() == [(store.ledger,)]
