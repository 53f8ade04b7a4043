"""The command ``pedcxr-serve`` as users run it; nothing here starts vLLM."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from pedcxr_serve.checkpoint import download
from pedcxr_serve.cli import main, parse
from pedcxr_serve.demo import CHECKPOINT
from pedcxr_serve.launcher.server import signal_handlers


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pedcxr_serve", *words], capture_output=True, text=True, timeout=60, check=False
    )


def test_check_of_the_demo(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check"]) == 0
    assert "can be served" in capsys.readouterr().out


def test_plan_of_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--gpu", "h200"]) == 0
    out = capsys.readouterr().out
    assert "pedcxr_serve.engine.vllm_main serve" in out
    assert "--uds" in out


def test_dry_run_prints_the_plan_and_starts_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["start", "--dry-run", "--max-num-seqs", "7", "--", "--scheduling-policy", "fcfs"]) == 0
    out = capsys.readouterr().out
    assert "--max-num-seqs 7" in out
    assert "--scheduling-policy fcfs" in out


def test_config_prints_a_valid_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config"]) == 0
    file = tmp_path / "serve.toml"
    file.write_text(capsys.readouterr().out)
    assert tomllib.loads(file.read_text())["gateway"]["port"] == 8000
    assert parse(["start", "--config", str(file)]).gateway.port == 8000


def test_options_override_the_file(tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text("[gateway]\nport = 9000\nadmin_port = 9001\n")
    settings = parse(["start", "--config", str(file), "--port", "9100", "--no-enforce-eager"])
    assert (settings.gateway.port, settings.gateway.admin_port, settings.engine.enforce_eager) == (9100, 9001, False)


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (("start", "--port", "many"), 2, "--port"),
        (("start", "--host", "0.0.0.0"), 2, "loopback"),
        (("start", "--model", "/no/such/folder"), 2, "/no/such/folder"),
        (("start", "--config", "/no/such.toml"), 2, "/no/such.toml"),
        (("start", "--", "--api-key", "x"), 2, "--api-key"),
        (("plan", "--gpu", "h9000"), 2, "h200"),
        (("frobnicate",), 2, "frobnicate"),
        ((), 2, "COMMAND"),
        (("check", "--model", "."), 3, "config.json"),
    ],
)
def test_errors_have_exit_code_and_message(words: tuple[str, ...], status: int, text: str) -> None:
    process = run(*words)
    assert process.returncode == status, process.stderr
    assert text in process.stderr + process.stdout
    assert "Traceback" not in process.stderr


def test_keys_new_list_and_revoke(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = ["--tenants", str(tmp_path / "tenants.toml")]
    assert main(["keys", "new", "radiology", "--expires", "2999-12-31", *file]) == 0
    key = capsys.readouterr().out.splitlines()[0]
    assert main(["keys", "list", *file]) == 0
    table = capsys.readouterr().out
    assert "radiology" in table and "2999-12-31" in table and key not in table
    assert main(["keys", "revoke", table.splitlines()[1].split()[2], *file]) == 0
    assert main(["keys", "revoke", "0123456789ab", *file]) == 2
    assert main(["keys", "new", "Bad Name", *file]) == 2


def test_audit_verify(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "audit.jsonl"
    monkeypatch.setenv("PEDCXR_AUDIT_KEY", "k" * 32)
    log.write_text("")
    assert main(["audit", "verify", str(log)]) == 0
    other = tmp_path / "other.jsonl"
    other.write_text("")
    capsys.readouterr()
    assert main(["audit", "verify", str(log), str(other)]) == 0
    assert capsys.readouterr().out == f"{log}: empty\n{other}: empty\n"
    log.write_text("{}\n")
    assert main(["audit", "verify", str(log)]) == 3
    assert "line 1" in capsys.readouterr().err
    monkeypatch.delenv("PEDCXR_AUDIT_KEY")
    assert main(["audit", "verify", str(log)]) == 2


def test_audit_verify_reports_every_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEDCXR_AUDIT_KEY", "k" * 32)
    files = [tmp_path / name for name in ("a.jsonl", "b.jsonl", "c.jsonl", "d.jsonl")]
    for file, text in zip(files[:3], ("{}\n", "", "half"), strict=True):
        file.write_text(text)
    assert main(["audit", "verify", *map(str, files)]) == 3
    out, err = capsys.readouterr()
    assert out == f"{files[1]}: empty\n"
    assert [line.split(": ")[1] for line in err.splitlines()] == [str(files[0]), str(files[2]), str(files[3])]


def test_start_rejects_the_plan_of_another_device(capsys: pytest.CaptureFixture[str]) -> None:
    """`plan` prints it; `start` does not run it."""
    assert main(["start", "--gpu", "h200", "--port", "0", "--admin-port", "0"]) == 2
    assert "engine.device" in capsys.readouterr().err


def test_cli_import_loads_no_heavy_package() -> None:
    code = (
        "import sys, pedcxr_serve.cli; "
        "print([name for name in ('torch', 'vllm', 'transformers', 'numpy', 'starlette') if name in sys.modules])"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "[]"


def test_demo_checkpoint_exists() -> None:
    assert (CHECKPOINT / "config.json").is_file()


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text("[gateway]\nport = 9000\nadmin_port = 9001\n")
    monkeypatch.setenv("PEDCXR_CONFIG", str(file))
    monkeypatch.setenv("PEDCXR_GATEWAY_PORT", "9100")
    settings = parse(["start"])
    assert (settings.gateway.port, settings.gateway.admin_port) == (9100, 9001)


@pytest.mark.parametrize("command", ["check", "plan", "start"])
def test_interrupt_before_a_server_runs(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """For example during a download."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(download, "resolve", interrupted)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        assert main([command, "--port", "0", "--admin-port", "0"]) == 130
    finally:
        signal.signal(signal.SIGTERM, handler)


def test_sigterm_before_a_server_runs_is_an_orderly_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "resolve", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    handler = signal.getsignal(signal.SIGTERM)
    try:
        assert main(["start", "--port", "0", "--admin-port", "0"]) == 0
    finally:
        signal.signal(signal.SIGTERM, handler)


def test_sighup_before_a_server_runs_is_ignored() -> None:
    """systemd would count it as an orderly end, and not start the server again."""
    code = (
        "import os, signal, sys\n"
        "from pedcxr_serve import cli\nfrom pedcxr_serve.checkpoint import download\n"
        "def resolve(*_):\n"
        "    os.kill(os.getpid(), signal.SIGHUP)\n"
        "    sys.exit(7)\n"
        "download.resolve = resolve\n"
        "cli.main(['start', '--port', '0', '--admin-port', '0'])\n"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert process.returncode == 7, process.stderr


async def _end_of_signal_handlers() -> None:
    with signal_handlers(asyncio.Event(), asyncio.Event(), lambda: None):
        pass


def test_sighup_at_the_end_of_a_server_is_handled_as_before_its_start() -> None:
    def ignore(*_: object) -> None:
        pass

    before = signal.signal(signal.SIGHUP, ignore)
    try:
        asyncio.run(_end_of_signal_handlers())
        assert signal.getsignal(signal.SIGHUP) is ignore
    finally:
        signal.signal(signal.SIGHUP, before)


def test_closed_output_has_the_exit_code_of_sigpipe() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as out:
        process = subprocess.run(
            [sys.executable, "-m", "pedcxr_serve", "config"], stdout=out, stderr=subprocess.PIPE, check=False
        )
    assert (process.returncode, process.stderr) == (141, b"")
