"""`make audit`, with a database on loopback in place of OSV, and `make sbom`."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.deploy.test_kubernetes import tool
from tests.support.http_server import Handler, serving
from tests.support.paths import ROOT

CANARY = ("jinja2", "2.10")  # the Makefile asks for this release first
LOCKED = re.search(r"^([\w-]+)==(\S+)", (ROOT / "locks/testdata.txt").read_text(), re.MULTILINE)


@contextmanager
def osv(vulnerable: Collection[tuple[str, str]]) -> Iterator[str]:
    """Answer queries as OSV does; yield the address. Names and versions in ``vulnerable`` have an advisory."""

    class Osv(Handler):
        def do_POST(self) -> None:
            query = json.loads(self.body())
            name, version = query["package"]["name"], query["version"]
            advisory = {
                "id": "CVE-2000-0001",
                "summary": "made up",
                "details": "made up",
                "published": "2000-01-01T00:00:00Z",
                "affected": [{"package": {"name": name, "ecosystem": "PyPI"}, "versions": [version]}],
            }
            self.answer(json.dumps({"vulns": [advisory]} if (name, version) in vulnerable else {}).encode())

    with serving(Osv) as port:
        yield f"http://127.0.0.1:{port}"


def audit(address: str, locks: str = "testdata") -> subprocess.CompletedProcess[str]:
    tool("pip-audit")
    database = f"DATABASE=--vulnerability-service osv --osv-url {address}"
    # -o: a test installs nothing.
    words = ["make", "--no-print-directory", "-o", ".venv/deploytools/.ready", "audit", f"LOCKS={locks}", database]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("answers", [True, False], ids=["a database that knows nothing", "no database"])
def test_without_a_database_it_fails_and_says_so(answers: bool) -> None:
    with osv(()) as address:
        completed = audit(address if answers else "http://127.0.0.1:9")
    assert completed.returncode == 2
    assert "no vulnerability database in reach" in completed.stderr
    assert "locks/" not in completed.stdout


def test_locks_without_an_advisory_pass() -> None:
    with osv([CANARY]) as address:
        completed = audit(address)
    assert completed.returncode == 0, completed.stderr
    assert completed.stdout == "locks/testdata.txt\n"


def test_an_advisory_fails_and_does_not_hide_the_next_lock() -> None:
    assert LOCKED is not None
    with osv([CANARY, (LOCKED[1], LOCKED[2])]) as address:
        completed = audit(address, "testdata testdata")
    assert completed.returncode == 2
    assert "CVE-2000-0001" in completed.stdout
    assert completed.stdout.count("locks/testdata.txt") == 2


@pytest.mark.slow
def test_sbom_lists_the_locked_packages_and_the_licences_of_the_installed_ones(tmp_path: Path) -> None:
    tool("cyclonedx-py")
    installed = [word for name in (".ready", "deploytools/.ready") for word in ("-o", f".venv/{name}")]
    words = ["make", "--no-print-directory", *installed, "sbom", f"SBOM={tmp_path}"]
    completed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert completed.returncode == 0, completed.stderr
    pages = {path.stem: json.loads(path.read_text()) for path in tmp_path.iterdir()}
    assert {name: page["bomFormat"] for name, page in pages.items()} == dict.fromkeys(
        ("environment", "cpu", "gpu"), "CycloneDX"
    )
    for name in ("cpu", "gpu"):
        locked = set(re.findall(r"^([\w.-]+==[^\s\\]+)", (ROOT / f"locks/{name}.txt").read_text(), re.MULTILINE))
        assert {f"{one['name']}=={one['version']}" for one in pages[name]["components"]} == locked
    licences = {one["name"]: one.get("licenses") for one in pages["environment"]["components"]}
    assert licences["openai"] == [{"license": {"acknowledgement": "declared", "id": "Apache-2.0"}}]
    assert sum(map(bool, licences.values())) > 0.9 * len(licences)  # a few packages state theirs in their own words
