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
READMES = sorted((ROOT / "deploy").rglob("README.md"))
PAGES = [*DOCS, *READMES, *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md"))]
PARSERS = {"pedcxr": pedcxr._parser(), "pedcxr-serve": pedcxr_serve._parser(("finetune", "merge"))}
OTHER_OPTIONS = {"--api-key", "--shutdown-timeout"}  # of vLLM, with which some pages compare
FENCED = re.compile(r"^ *```.*?\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
CALL = re.compile(rf"(?:[A-Z_]+=\S+ )*(?:\S*/bin/)?((?:{'|'.join(PARSERS)})(?: .*)?)$")

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def code_blocks(page: Path) -> list[str]:
    text = page.read_text()
    return [*FENCED.findall(text), *re.findall(r"(?:^ {4,}\S.*\n)+", FENCED.sub("", text), re.MULTILINE)]


def code_spans(page: Path) -> list[str]:
    text = FENCED.sub("", page.read_text())
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]


def commands(line: str) -> list[list[str]]:
    """Return the words of each call of our programs in a line, without redirections and what follows ``--``."""
    calls = map(CALL.match, re.split(r" [|>&] | && | -- (?=pedcxr)", line.strip().removeprefix("$ ")))
    words = [shlex.split(call[1], comments=True) for call in calls if call]
    return [one[: one.index("--")] if "--" in one else one for one in words]


def complete_commands(page: Path) -> list[list[str]]:
    lines = "\n".join(code_blocks(page)).replace("\\\n", " ").splitlines()
    return [words for line in lines for words in commands(line)]


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
    for words in (words for span in code_spans(page) for words in commands(span)):
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
    names = re.findall(r"\b((?:gateway|engine)\.(?!(?:sock|key|service)\b)[a-z_]+)\b(?!\.)", text)
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


def test_fenced_and_indented_commands_are_read(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    indented = "    K=1 /opt/bin/pedcxr report a.png \\\n      --age 6Y && true\n"
    page.write_text(f"Text:\n\n{indented}\n```sh\nkubectl exec x -- pedcxr-serve usage a | cat\n```\n")
    assert complete_commands(page) == [["pedcxr-serve", "usage", "a"], ["pedcxr", "report", "a.png", "--age", "6Y"]]
