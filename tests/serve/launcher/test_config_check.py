"""``pedcxr-serve check-config``: each file that the settings name, and the exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pedcxr_serve.cli import main
from pedcxr_serve.errors import AuditError
from pedcxr_serve.gateway import accounting
from pedcxr_serve.gateway.accounting import audit
from pedcxr_serve.gateway.accounting.audit import KEY_VARIABLE, AuditLog
from pedcxr_serve.gateway.accounting.usage import UsageStore, UsageTotals
from pedcxr_serve.gateway.auth import api_keys
from tests.support.certificates import make_certificate

KEY = "k" * 32


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a serve.toml whose files are all in order."""
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    api_keys.new(tmp_path / "tenants.toml", "radiology")
    files = make_certificate(tmp_path)
    log = AuditLog(tmp_path / "audit.jsonl", KEY.encode())
    log.write({"request_id": "r"})
    log.close()
    store = UsageStore(tmp_path / "usage.sqlite")
    store.add("2026-11-27", "radiology", UsageTotals(1, 1, 10, 10, 10))
    store.close()
    (tmp_path / "token").write_text("t" * 32)
    path = tmp_path / "serve.toml"
    path.write_text(f"""
[gateway]
host = "0.0.0.0"
tenants = "{tmp_path}/tenants.toml"
tls_cert = "{files.certificate}"
tls_key = "{files.key}"
audit_log = "{tmp_path}/audit.jsonl"
limits_url = "redis://127.0.0.1:1/0"
admin_host = "0.0.0.0"
admin_token_file = "{tmp_path}/token"
cache_secret_file = "{tmp_path}/new/../cache.secret"
engine = "http://10.0.0.5:8100"
[engine]
key_file = "{tmp_path}/engine.key"
""")
    return path


def run(path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = main(["check-config", "--config", str(path)])
    out = capsys.readouterr()
    return code, out.out + out.err


def test_good_configuration(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in config.parent.iterdir()}
    (config.parent / "new").mkdir()
    before["new"] = (config.parent / "new").stat().st_mtime_ns
    code, text = run(config, capsys)
    assert code == 0, text
    assert "1 tenants, 1 valid keys" in text and "expires 20" in text and "lines 0 to 0 are intact" in text
    assert " bytes" in text and "absent; will be created" in text and "the configuration can be used" in text
    assert {path.name: path.stat().st_mtime_ns for path in config.parent.iterdir()} == before, "nothing was changed"
    assert "t" * 32 not in text and KEY not in text


def test_running_server_does_not_disturb_the_check(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (config.parent / "new").mkdir()
    log, store = AuditLog(config.parent / "audit.jsonl", KEY.encode()), UsageStore(config.parent / "usage.sqlite")
    assert run(config, capsys)[0] == 0
    log.close()
    store.close()


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda folder: (folder / "tenants.toml").write_text("[tenant.A]"), "gateway.tenants: "),
        (lambda folder: (folder / "tenants.toml").unlink(), "cannot be read"),
        (lambda folder: (folder / "audit.jsonl").write_text("{}\n"), "gateway.audit_log: "),
        (lambda folder: (folder / "usage.sqlite").write_text("no database" * 100), "gateway.usage_db: "),
        (lambda folder: (folder / "token").write_text("short"), "gateway.admin_token_file: "),
        (lambda folder: (folder / "engine.key").write_text("short"), "engine.key_file: "),
        (lambda folder: next(folder.glob("*.key")).write_text("no key"), "gateway.tls_cert: "),
    ],
)
def test_wrong_file_is_named(
    config: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[Path], object], text: str
) -> None:
    (config.parent / "new").mkdir()
    spoil(config.parent)
    code, out = run(config, capsys)
    wrong = [line for line in out.splitlines() if line.startswith("WRONG")]
    assert code == 2 and len(wrong) == 1 and text in wrong[0], out
    assert "1 wrong" in out


def with_tenant(folder: Path, settings: str, *, model: str = "", gateway: str) -> Path:
    """Write serve.toml and its file with the tenant ``radiology``; return the path of serve.toml."""
    (folder / "tenants.toml").write_text(f"[tenant.radiology]\n{settings}\n")
    path = folder / "serve.toml"
    path.write_text(f'{model}\n[gateway]\ntenants = "{folder}/tenants.toml"\n{gateway}\n')
    return path


@pytest.mark.parametrize(
    ("tenants", "more", "text"),
    [
        ('default_model = "nroth"', "", "tenant.radiology.default_model = 'nroth': must be one of pedcxr-demo"),
        ("", '[adapters.north]\npath = "{0}"\ntenants = ["cardio"]', "adapters.north.tenants: no tenant 'cardio'"),
        ("", '[adapters.north]\npath = "{0}/absent"', "adapters.north.path: "),
    ],
)
def test_tenants_and_adapters_that_a_start_refuses_are_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tenants: str, more: str, text: str
) -> None:
    code, out = run(with_tenant(tmp_path, tenants, gateway=more.format(tmp_path)), capsys)
    assert code == 2 and "1 wrong" in out and text in out, out


@pytest.mark.parametrize(
    ("model", "gateway", "engine"),
    [
        ("", 'engine = "http://10.0.0.5:8100"', ""),
        ('model = "owner/name"', 'engine = "http://10.0.0.5:8100"', ""),
        ("", "", 'socket_dir = "/run/pedcxr"'),
    ],
)
def test_models_of_an_engine_apart_are_not_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str, gateway: str, engine: str
) -> None:
    path = with_tenant(tmp_path, 'default_model = "north"', model=model, gateway=f"{gateway}\n[engine]\n{engine}")
    assert run(path, capsys)[0] == 0


def test_truncated_last_line_of_the_audit_log_is_repaired_by_a_start(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (config.parent / "new").mkdir()
    path = config.parent / "audit.jsonl"
    with path.open("a") as file:
        file.write('{"half')
    code, text = run(config, capsys)
    assert code == 0 and "; the last line is truncated, and the next start removes it" in text
    with pytest.raises(AuditError, match="truncated"):
        audit.verify(path, KEY.encode())
    AuditLog(path, KEY.encode()).close()
    assert "line is truncated" not in run(config, capsys)[1]


def test_traces_are_checked_with_the_environment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "serve.toml"
    path.write_text('[telemetry]\notlp_endpoint = "http://127.0.0.1:4318/v1/traces"\n')
    monkeypatch.setenv("OTEL_SDK_DISABLED", "True")
    code, text = run(path, capsys)
    assert code == 0 and "no traces: OTEL_SDK_DISABLED is set" in text
    monkeypatch.delenv("OTEL_SDK_DISABLED")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "100000")
    code, text = run(path, capsys)
    assert code == 2 and "WRONG  telemetry.otlp_endpoint: environment: OpenTelemetry refuses" in text
    assert "max_export_batch_size" in text


def test_absent_audit_key_is_named(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(KEY_VARIABLE)
    code, out = run(config, capsys)
    assert code == 2 and KEY_VARIABLE in out


def test_absent_opentelemetry_is_named(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (config.parent / "new").mkdir()
    with config.open("a") as file:
        file.write('[telemetry]\notlp_endpoint = "http://127.0.0.1:4318/v1/traces"\n')
    assert run(config, capsys)[0] == 0
    monkeypatch.delattr(accounting, "traces")
    monkeypatch.delitem(sys.modules, "pedcxr_serve.gateway.accounting.traces")
    for name in ("opentelemetry", "opentelemetry.context"):
        monkeypatch.setitem(sys.modules, name, None)
    code, text = run(config, capsys)
    assert code == 2
    assert "WRONG  telemetry.otlp_endpoint: telemetry.otlp_endpoint: OpenTelemetry cannot be imported" in text
    assert "install pedcxr[otel]" in text


def test_wrong_setting_is_an_error_as_at_the_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "serve.toml"
    path.write_text("[gateway]\nport = 99999\n")
    code, out = run(path, capsys)
    assert code == 2 and "gateway.port = 99999" in out
    path.write_text('[gateway]\nadmin_host = "0.0.0.0"\n')
    assert "admin_token_file" in run(path, capsys)[1]
    path.write_text('[engine]\nlisten = "10.0.0.5:8100"\n')
    assert "engine.key_file" in run(path, capsys)[1]
