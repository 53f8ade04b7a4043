"""The words of findings and of negation, from a TOML file: data, compiled once, named by the file's digest."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from pedcxr_client.errors import InputError

SHIPPED = Path(__file__).with_name("lexicon.toml")
# Between words, whatever stands around marks such as "?" and ",".
_START, _END = r"(?:(?<!\w)|(?=\W))", r"(?:(?!\w)|(?<=\W))"
_NEVER = re.compile(r"(?!)")


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding: ``terms`` are negated by their surroundings, ``phrases`` say what they say.

    ``abnormal`` is False where a film that shows it may still be called normal: a normal thymus, a tube in its place.
    """

    name: str
    terms: re.Pattern[str]
    phrases: re.Pattern[str]
    abnormal: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Triggers:
    """Words that decide what a sentence says of a term in it; see the comments in ``lexicon.toml``."""

    negated_before: re.Pattern[str]
    negated_after: re.Pattern[str]
    uncertain_before: re.Pattern[str]
    uncertain_weak: re.Pattern[str]
    uncertain_after: re.Pattern[str]
    pseudo: re.Pattern[str]
    borders: re.Pattern[str]
    verbs: re.Pattern[str]


@dataclass(frozen=True, slots=True)
class Lexicon:
    """A lexicon; ``version`` as its file gives it, ``sha256`` of the file."""

    version: str
    sha256: str
    findings: Mapping[str, Finding]
    triggers: Triggers


def load(path: Path = SHIPPED) -> Lexicon:
    """Read a lexicon.

    Raises:
        InputError: if the file cannot be read, is no TOML, or lacks a part; the message names the key.
    """
    try:
        data = path.read_bytes()
        table = tomllib.loads(data.decode())
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or 'cannot be opened'}; check the path") from error
    except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError
        raise InputError(f"{path}: is no TOML in UTF-8; correct it as the shipped lexicon.toml shows") from error
    named = table.get("findings")
    if not isinstance(named, dict) or not named:
        raise InputError(f"{path}: findings: at least one table [findings.NAME] is needed")
    findings = {name: _finding(path, name, entry) for name, entry in named.items()}
    return Lexicon(str(table.get("version", "")), sha256(data).hexdigest(), findings, _triggers(path, table))


def _finding(path: Path, name: str, entry: Any) -> Finding:
    where = f"findings.{name}"
    if not isinstance(entry, dict) or not entry.keys() <= {"terms", "phrases", "abnormal"}:
        raise InputError(f"{path}: {where}: a table of terms, phrases and abnormal, and nothing else")
    abnormal = entry.get("abnormal", True)
    if not isinstance(abnormal, bool) or not (entry.get("terms") or entry.get("phrases")):
        raise InputError(f"{path}: {where}: needs terms or phrases; abnormal is true or false")
    terms = _compiled(path, f"{where}.terms", entry.get("terms", []))
    return Finding(name, terms, _compiled(path, f"{where}.phrases", entry.get("phrases", [])), abnormal)


def _triggers(path: Path, table: dict[str, Any]) -> Triggers:
    def words(*keys: str) -> re.Pattern[str]:
        value: Any = table
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return _compiled(path, ".".join(keys), value or [])

    clauses = words("borders", "clauses")
    terms = words("borders", "terms")
    return Triggers(
        negated_before=words("negation", "before"),
        negated_after=words("negation", "after"),
        uncertain_before=words("uncertainty", "before"),
        uncertain_weak=words("uncertainty", "weak"),
        uncertain_after=words("uncertainty", "after"),
        pseudo=words("pseudo", "terms"),
        borders=re.compile(f"{clauses.pattern}|{terms.pattern}"),
        verbs=words("borders", "verbs"),
    )


def _compiled(path: Path, key: str, words: Any) -> re.Pattern[str]:
    if not isinstance(words, list) or not all(isinstance(word, str) and word for word in words):
        raise InputError(f"{path}: {key}: must be a list of regular expressions")
    if not words:
        return _NEVER
    try:
        return re.compile(rf"{_START}(?:{'|'.join(f'(?:{word})' for word in words)}){_END}")
    except re.error as error:
        raise InputError(f"{path}: {key}: holds what is no regular expression: {error.msg}") from error
