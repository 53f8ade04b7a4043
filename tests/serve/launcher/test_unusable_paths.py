"""Paths that this user may not enter, or that cannot exist: exit code 2 and a sentence, never a traceback."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pedcxr_serve import cli
from pedcxr_serve.engine import address
from pedcxr_serve.errors import ConfigError
from pedcxr_serve.gateway.accounting.audit import KEY_VARIABLE

_PR_CAPBSET_DROP, _CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH = 24, 1, 2
_NOBODY = 65534
_PORTS = ["--port", "0", "--admin-port", "0"]
LONG = "/" + "a" * 300
FOREIGN = "~nosuchuser/x"


@pytest.fixture
def closed(tmp_path: Path) -> Path:
    """Return a folder that the commands of `run` may not enter."""
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o700)
    if os.geteuid() == 0:
        os.chown(folder, _NOBODY, -1)
    else:
        folder.chmod(0)
    return folder


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """Run a command without the privilege of root to enter every folder."""
    libc = ctypes.CDLL(None)

    def drop_privileges() -> None:
        for capability in (_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH):
            libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)  # fails for a user who has none, which is as good

    return subprocess.run(
        [sys.executable, "-m", "pedcxr_serve", *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | {KEY_VARIABLE: "k" * 32},
        preexec_fn=drop_privileges,
    )


def test_check_config_names_each_closed_path_and_goes_on(closed: Path) -> None:
    names = ("model", "tenants", "usage-db", "audit-log", "cache-secret-file")
    process = run("check-config", *(word for name in names for word in (f"--{name}", str(closed / name))))
    assert (process.returncode, process.stderr) == (2, "")
    lines = process.stdout.splitlines()
    for name in names:
        assert any("Permission denied" in line and str(closed / name) in line for line in lines), process.stdout
    assert lines[0].startswith("ok     settings: ") and lines[-1] == "5 wrong"


@pytest.mark.parametrize(
    "words",
    [
        ("start", *_PORTS, "--model", "PATH"),
        ("start", *_PORTS, "--socket-dir", "PATH"),
        ("gateway", *_PORTS, "--engine", "unix:/nowhere", "--cache-secret-file", "PATH"),
        ("engine", "--listen", "127.0.0.1:1", "--key-file", "PATH"),
        ("check", "--model", "PATH/.."),
        ("keys", "new", "team", "--tenants", "PATH"),
        ("keys", "revoke", "0123456789ab", "--tenants", "PATH"),
        ("promote", "demo", "--against", "demo", "--films", "PATH", "--out", "OUT"),
        ("merge", "PATH", "--out", "PATH"),
    ],
    ids=lambda words: f"{words[0]} {words[-2]}",
)
def test_closed_path_is_a_sentence(words: tuple[str, ...], closed: Path, tmp_path: Path) -> None:
    path = str(closed / "x")
    process = run(*(word.replace("PATH", path).replace("OUT", str(tmp_path / "out")) for word in words))
    assert process.returncode == 2, process.stderr
    assert process.stderr.startswith("pedcxr-serve: ") and len(process.stderr.splitlines()) == 1, process.stderr
    assert str(closed) in process.stderr and "Permission denied" in process.stderr


def test_closed_folder_of_a_model_is_a_sentence(closed: Path) -> None:
    process = run("start", *_PORTS, "--model", str(closed))
    assert (process.returncode, len(process.stderr.splitlines())) == (2, 1), process.stderr
    assert "Permission denied" in process.stderr


def test_closed_audit_log_is_reported_as_the_others_are(closed: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    process = run("audit", "verify", str(closed / "a.jsonl"), str(tmp_path / "empty.jsonl"))
    assert process.returncode == 3 and "cannot be read: Permission denied" in process.stderr
    assert "empty.jsonl: empty" in process.stdout


@pytest.mark.parametrize("path", [LONG, FOREIGN])
@pytest.mark.parametrize("name", ["--model", "--tenants", "--usage-db", "--cache-secret-file", "--tls-cert"])
def test_path_that_cannot_exist_is_wrong_in_check_config(
    name: str, path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--served-name", "m"] + (["--tls-key", "/nowhere"] if name == "--tls-cert" else [])
    assert cli.main(["check-config", name, path, *more]) == 2
    out = capsys.readouterr().out
    expected = "File name too long" if path == LONG else "no home folder of this name is known"
    assert "WRONG  " in out and expected in out and out.splitlines()[-1].endswith(" wrong"), out


@pytest.mark.parametrize("path", [LONG, FOREIGN])
def test_path_that_cannot_exist_ends_a_command(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    commands: list[list[str]] = [
        ["check", "--model", path, "--served-name", "m"],
        ["gateway", *_PORTS, "--engine", "unix:/nowhere", "--tenants", path],
        ["keys", "new", "team", "--tenants", path],
    ]
    for words in commands:
        assert cli.main(words) == 2
        assert capsys.readouterr().err.startswith("pedcxr-serve: ")


@pytest.mark.parametrize(
    ("read", "text"),
    [(address.parse, f"http://{'a' * 64}:1"), (address.listener, f"{'a' * 64}:1"), (address.parse, "http://a..b:1")],
)
def test_host_that_no_resolver_takes_is_refused(read: Callable[[str], object], text: str) -> None:
    with pytest.raises(ConfigError, match="must be"):
        read(text)
