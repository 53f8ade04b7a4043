"""README and docs/: length, links, and module names that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.paths import ROOT

DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = sorted(DOCS.rglob("*.md"))
PROSE = [
    README,
    *PAGES,
    *(ROOT / name for name in ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "deploy/README.md")),
]
PACKAGES = {"film.svg": [ROOT / "client/pedcxr_client"], "request.svg": [ROOT / "serve/pedcxr_serve"]}
PACKAGES["request.svg"].append(PACKAGES["request.svg"][0] / "gateway")


def without_code(page: Path) -> str:
    return re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def sentences(page: Path) -> list[str]:
    """The sentences of a page's paragraphs and list items, a list of names in code type counted as one word.

    Tables, headings and indented code are left out.
    """
    lines = [
        "" if line.startswith(("|", "#", "    ", "!", ":::", "<")) else re.sub(r"^(- |\d+\. )", "\n", line)
        for line in without_code(page).splitlines()
    ]
    text = re.sub(r"`[^`]+`(?:,\s+`[^`]+`)*", "`code`", "\n".join(lines))
    paragraphs = re.split(r"\n\s*\n", text)
    return [sentence for one in paragraphs for sentence in re.split(r"(?<=[.:!?;])\s+", " ".join(one.split()))]


def test_readme_has_at_most_700_words() -> None:
    assert len(without_code(README).split()) <= 700


def test_readme_reaches_the_first_report_within_30_lines() -> None:
    head = README.read_text().splitlines()[:30]
    commands = ["git clone", "make demo", "pedcxr report"]
    assert [word for word in commands for line in head if line.removeprefix(".venv/bin/").startswith(word)] == commands


def test_readme_shows_the_tested_client_example() -> None:
    assert (DOCS / "examples/report_pedcxr.py").read_text() in README.read_text()


@pytest.mark.parametrize("page", PROSE, ids=lambda page: str(page.relative_to(ROOT)))
def test_sentences_have_at_most_30_words(page: Path) -> None:
    assert [sentence for sentence in sentences(page) if len(sentence.split()) > 30] == []


@pytest.mark.parametrize("page", PROSE, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_exist(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", without_code(page))
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("name", PACKAGES)
def test_diagram_names_real_modules(name: str) -> None:
    text = (DOCS / "architecture" / name).read_text()
    modules = re.findall(r'class="module"[^>]*>([^<]+)<', text)
    assert modules
    assert [one for one in modules if not any((folder / f"{one}.py").exists() for folder in PACKAGES[name])] == []
    assert not re.search(r"(?:href|src)=|url\((?!#)", text), "a diagram loads nothing"


def test_docs_folder_has_at_most_14_entries() -> None:
    assert len(list(DOCS.iterdir())) <= 14
