"""Makefile, CI and locks: what the pages say about them, and that they agree with each other."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support.paths import ROOT

MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z-]+):.*##", MAKEFILE, re.MULTILINE))
WORKFLOW = ROOT / ".github/workflows/ci.yml"
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "deploy/README.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_make_targets_on_the_page_exist(page: Path) -> None:
    commands = re.findall(r"(?:^|`)make ([a-z -]+)", page.read_text(), re.MULTILINE)
    names = {name.rstrip("-") for command in commands for name in command.split(" #")[0].split()}
    assert names - TARGETS - {"bench"} == set()


def test_ci_runs_the_targets_of_developers() -> None:
    assert (ROOT / ".ci/run").read_text().splitlines()[-1] == "make lint test test-wheel test-pythons docs"


def test_workflow_is_valid_and_calls_ci_run() -> None:
    schema = ["-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows"]
    completed = subprocess.run([sys.executable, *schema, WORKFLOW], capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stdout + completed.stderr
    workflow = yaml.safe_load(WORKFLOW.read_text())
    assert workflow["jobs"]["ci"]["steps"][-1]["run"] == "bash .ci/run"
    assert workflow[True] == {"workflow_dispatch": None}, "YAML 1.1 reads the key `on` as true"


def test_pre_commit_calls_make_lint() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert [hook["entry"] for repo in config["repos"] for hook in repo["hooks"]] == ["make lint"]


@pytest.mark.parametrize("lock", sorted((ROOT / "locks").glob("*.txt")), ids=lambda lock: lock.name)
def test_locks_name_no_registry(lock: Path) -> None:
    assert "://" not in re.sub(r"^#.*$", "", lock.read_text(), flags=re.MULTILINE)


def test_site_loads_nothing_from_another_host() -> None:
    site = (ROOT / "mkdocs.yml").read_text()
    assert "  font: false\n" in site
    assert "://" not in site and "repo_url" not in site and "mermaid" not in site
