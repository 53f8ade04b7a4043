"""The commands of the documentation for installation, upgrade, backup and restore, with other paths."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pedcxr_serve.gateway.accounting import usage_report
from pedcxr_serve.gateway.accounting.usage import UsageStore, UsageTotals
from tests.support.paths import ROOT
from tests.support.servers.gateway_server import eventually

RUNNING = ROOT / "docs/fleet/running.md"
DAY = "2026-01-01"
# A server that holds its database open until it is killed.
_SERVER = """
import sys, time
from pathlib import Path
from pedcxr_serve.gateway.accounting.usage import UsageStore, UsageTotals
UsageStore(Path(sys.argv[1])).add("2026-01-01", "ward", UsageTotals(5))
time.sleep(600)
"""


def block(page: Path, word: str) -> str:
    """Return the only block of code of a page that contains a word."""
    text = page.read_text()
    blocks = [*re.findall(r"```sh\n(.*?)```", text, re.DOTALL), *re.findall(r"(?:^ {4}.*\n)+", text, re.MULTILINE)]
    [found] = [one for one in blocks if word in one]
    return found


class Machine:
    """A folder in the place of ``/``, and programs that do nothing in the place of those that change a machine."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("opt", "etc/systemd/system", "backup", "var/lib/pedcxr", "commands"):
            (root / name).mkdir(parents=True)
        for name in ("uv", "systemctl", "journalctl", "pedcxr-serve"):
            self.program(name, "")
        self.program("hostname", "echo gpu1")
        links = "; ".join(f'ln -s {root}/commands/uv "$3/bin/{name}"' for name in ("pip", "pedcxr-serve"))
        self.program("python3", f'case "$3" in {root}/opt/*) mkdir -p "$3/bin"; {links};; *) exit 1;; esac')

    def program(self, name: str, text: str) -> None:
        path = self.root / "commands" / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def run(self, commands: str, date: str = "2026-11-28") -> None:
        self.program("date", f"echo {date}")
        commands = re.sub(r"(?<=[\s=\"])(/(?:opt|etc|backup|var/lib))(?=/)", rf"{self.root}\1", commands)
        commands = commands.replace(" -o pedcxr -g pedcxr", "")
        paths = re.findall(r"(?:^|[\s=\"'])(/[^\s\"']*)", commands)
        assert all(path.startswith(f"{self.root}/") for path in paths), paths  # nothing of this machine
        subprocess.run(
            ["bash", "-e", "-c", commands], cwd=ROOT, check=True,
            env=os.environ | {"PATH": f"{self.root}/commands:{os.environ['PATH']}"},
        )  # fmt: skip


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_upgrade_and_roll_back_change_the_link_of_the_installation(machine: Machine) -> None:
    _, release, rest = block(ROOT / "deploy/README.md", "useradd").partition("    release=")
    installation = release + rest
    beside = installation[: installation.index("    ln ")]
    switch = block(RUNNING, "ln -sfT")
    link = machine.root / "opt/pedcxr"

    def folder() -> str:
        assert link.is_symlink() and (link / "bin/pedcxr-serve").exists()
        return link.resolve().name

    machine.run(installation, "2026-11-28")
    assert folder() == "pedcxr-2026-11-28"
    machine.run(beside, "2026-12-01")
    assert folder() == "pedcxr-2026-11-28"
    machine.run(beside + switch, "2026-12-01")
    assert folder() == "pedcxr-2026-12-01"
    machine.run("release=/opt/pedcxr-2026-11-28\n" + switch)
    assert folder() == "pedcxr-2026-11-28"
    assert sorted(path.name for path in machine.root.glob("opt/*/*")) == ["bin"] * 3


def test_units_start_the_program_of_the_link() -> None:
    units = [*ROOT.glob("deploy/**/*.service"), *ROOT.glob("deploy/*.conf"), ROOT / "docs/operations.md"]
    folders = [
        path
        for unit in units
        for path in re.findall(r"^ExecStart=(\S+)/bin/pedcxr-serve", unit.read_text(), re.MULTILINE)
    ]
    assert len(folders) == 5 and set(folders) == {"/opt/pedcxr"}


@pytest.mark.skipif(
    shutil.which("sqlite3") is None, reason="sqlite3 is not installed; Debian has a package of that name"
)
def test_restored_usage_is_that_of_the_backup(machine: Machine) -> None:
    state = machine.root / "var/lib/pedcxr"
    file = state / "usage.sqlite"
    store = UsageStore(file)
    store.add(DAY, "ward", UsageTotals(2))
    store.close()
    (state / "audit.jsonl").touch()
    machine.run(block(RUNNING, ".backup"))
    [copy] = machine.root.glob("backup/gpu1/2026-11-28/usage.sqlite")
    with subprocess.Popen([sys.executable, "-c", _SERVER, file]) as server:
        eventually(lambda: " 7 " in usage_report.report([str(file)]))
        server.kill()
    assert file.with_name("usage.sqlite-wal").stat().st_size > 0
    machine.run(f"copy={copy.parent}\n{block(RUNNING, 'usage.sqlite-wal')}")
    store = UsageStore(file)
    assert store.of(DAY, "ward") == UsageTotals(2)
    store.close()
