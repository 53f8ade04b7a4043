"""The usage of several servers, added up from files and from running servers."""

from __future__ import annotations

from pathlib import Path

import pytest

from pedcxr_serve.cli import main
from pedcxr_serve.errors import ConfigError
from pedcxr_serve.gateway.accounting import usage_report
from pedcxr_serve.gateway.accounting.usage import UsageStore, UsageTotals
from tests.support.servers.fake_engine import FakeEngine
from tests.support.servers.gateway_server import BODY, CHAT, running


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
        (day,) = client.get(admin + "/usage").json()["days"]
        file = ledger(tmp_path / "one.sqlite", (day, "anonymous", UsageTotals(1, 1, 1, 1, 1)))
        lines = usage_report.report([admin, str(file)]).splitlines()
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


def test_source_named_twice_is_an_error(tmp_path: Path) -> None:
    file = str(ledger(tmp_path / "one.sqlite"))
    with pytest.raises(ConfigError, match="twice"):
        usage_report.report([file, file])
