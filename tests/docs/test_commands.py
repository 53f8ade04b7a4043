"""Commands, options, settings, files and modules that the pages name exist."""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest

from pedcxr_client.cli import main as pedcxr
from pedcxr_serve import cli as pedcxr_serve
from pedcxr_serve.config.settings import SCHEMA
from tests.support.paths import ROOT

DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [*DOCS, *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "deploy/README.md"))]
PARSERS = {"pedcxr": pedcxr._parser(), "pedcxr-serve": pedcxr_serve._parser(("finetune", "merge"))}
OTHER_OPTIONS = {"--api-key", "--shutdown-timeout"}  # of vLLM, with which some pages compare

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def code_blocks(page: Path) -> list[str]:
    return re.findall(r"^ *```.*?\n(.*?)^ *```", page.read_text(), re.DOTALL | re.MULTILINE)


def code_spans(page: Path) -> list[str]:
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]


def command(line: str) -> list[str]:
    """Return the words of a line that calls one of our programs, without pipes and redirections; else []."""
    line = line.strip().removeprefix("$ ").removeprefix(".venv/bin/")
    while re.match(r"[A-Z_]+=\S+ ", line):
        line = line.partition(" ")[2]
    if line.split(" ")[0] not in PARSERS:
        return []
    words = shlex.split(re.split(r" [|>&] | && ", line)[0], comments=True)
    return words[: words.index("--")] if "--" in words else words


def complete_commands(page: Path) -> list[list[str]]:
    lines = "\n".join(code_blocks(page)).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := command(line))]


def subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    actions = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(actions[0].choices) if actions else {}


def descend(parser: argparse.ArgumentParser, words: list[str]) -> tuple[argparse.ArgumentParser, list[str]]:
    """Return the parser of the innermost subcommand and the words after its name."""
    while words and (choices := subparsers(parser)) and not words[0].startswith("-"):
        assert words[0] in choices, f"unknown command {words[0]}"
        parser, words = choices[words[0]], words[1:]
    return parser, words


def all_options(parser: argparse.ArgumentParser) -> set[str]:
    nested = (all_options(child) for child in subparsers(parser).values())
    return set(parser._option_string_actions).union(*nested)


OPTIONS = set().union(*map(all_options, PARSERS.values()))


@each_page
def test_complete_command_lines_are_accepted(page: Path) -> None:
    for words in complete_commands(page):
        stderr = io.StringIO()
        try:
            with contextlib.redirect_stderr(stderr):
                PARSERS[words[0]].parse_args(words[1:])
        except SystemExit:
            pytest.fail(f"{shlex.join(words)}: {stderr.getvalue().splitlines()[-1]}")


@each_page
def test_commands_within_sentences_have_these_options(page: Path) -> None:
    for words in filter(None, map(command, code_spans(page))):
        parser, rest = descend(PARSERS[words[0]], words[1:])
        options = {word.partition("=")[0] for word in rest if re.match(r"--?[a-z]", word)}
        assert options <= set(parser._option_string_actions), shlex.join(words)


@each_page
def test_options_named_alone_exist(page: Path) -> None:
    names = {re.split("[ =:]", span)[0] for span in code_spans(page) if re.match(r"--?[a-z]", span)}
    assert names <= OPTIONS | OTHER_OPTIONS


@each_page
def test_settings_exist(page: Path) -> None:
    text = " ".join([*code_spans(page), *code_blocks(page)])
    names = re.findall(r"\b((?:gateway|engine)\.[a-z_]+)\b(?!\.)", text)
    assert set(names) <= {field.path for field in SCHEMA.walk()}


@each_page
def test_files_and_modules_exist(page: Path) -> None:
    folders = r"(?:client|serve|tests|docs|deploy|locks|\.github|\.ci)"
    if page.name != "comparison.md":  # it names paths within other projects
        names = {span for span in code_spans(page) if re.fullmatch(rf"{folders}/[\w./-]*", span)}
        assert {name for name in names if "NAME" not in name and not (ROOT / name).exists()} == set()
    modules = set(re.findall(r"python -m (tests\.[\w.]+)", page.read_text()))
    assert {name for name in modules if find_spec(name) is None} == set()


def test_the_pages_contain_commands_of_both_programs() -> None:
    names = [words[0] for page in PAGES for words in complete_commands(page)]
    assert min(names.count(name) for name in PARSERS) >= 10
