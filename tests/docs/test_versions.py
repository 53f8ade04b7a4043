"""The versions of other clients and load testers on the pages are those of the lock files."""

from __future__ import annotations

import json
import re

import pytest

from pedcxr_client.bench import export
from tests.support.paths import ROOT

ROW = re.compile(r"^\| `(\S+)` \((Python|npm)\) \| ([0-9., ]+) \|", re.MULTILINE)
ROWS = ROW.findall((ROOT / "docs/http-api.md").read_text())
PYTHON = ("autogen-ext", "langchain-openai", "litellm", "llama-index-llms-openai-like", "openai", "pydantic-ai-slim")


def pinned(package: str, lock: str) -> str:
    [version] = re.findall(rf"^{re.escape(package)}==(\S+)", (ROOT / f"locks/{lock}.txt").read_text(), re.MULTILINE)
    return str(version)


def npm_packages() -> dict[str, str]:
    packages: dict[str, str] = json.loads((ROOT / "tests/e2e/clients/js/package.json").read_text())["dependencies"]
    return {name: version for name, version in packages.items() if name != "@langchain/core"}  # a part of the other


def test_all_clients_are_in_the_table() -> None:
    expected = {(name, "Python") for name in PYTHON} | {(name, "npm") for name in npm_packages()}
    assert {(name, kind) for name, kind, _ in ROWS} == expected


@pytest.mark.parametrize(("package", "kind", "versions"), ROWS)
def test_versions_of_the_table_are_locked(package: str, kind: str, versions: str) -> None:
    if kind == "npm":
        locked = {npm_packages()[package]}
    else:
        locked = {pinned(package, "clients")} | ({pinned(package, "cpu")} if package == "openai" else set())
    assert set(versions.split(", ")) == locked


@pytest.mark.parametrize(
    ("package", "lock"), [("aiperf", "loadtest"), ("locust", "loadtest"), ("guidellm", "guidellm")]
)
def test_versions_of_load_testers_are_locked(package: str, lock: str) -> None:
    page = (ROOT / "docs/examples/load-testing.md").read_text()
    assert re.findall(rf"^{package} (\d[\d.]*\d) ", page, re.MULTILINE) == [pinned(package, lock)]
    assert pinned("torch", "guidellm") == pinned("torch", "cpu")


def test_both_npm_locks_have_the_same_openai() -> None:
    other = json.loads((ROOT / "tests/e2e/js/package.json").read_text())["dependencies"]
    assert npm_packages()["openai"] == other["openai"]


def test_exported_commands_name_the_locked_version() -> None:
    assert pinned("aiperf", "loadtest").startswith(f"{export.AIPERF_VERSION}.")
