"""The lexicon: terms of findings, negation and uncertainty, compiled from a TOML file."""

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
# Word boundaries that also hold next to punctuation such as "?" and ",".
_START, _END = r"(?:(?<!\w)|(?=\W))", r"(?:(?!\w)|(?<=\W))"
_NEVER = re.compile(r"(?!)")


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding of the lexicon.

    Attributes:
        terms: match a mention, which the negation and uncertainty words of its sentence modify.
        phrases: match a statement that the finding is present, whatever the rest of the sentence says.
        abnormal: False if a film with this finding can still be normal, such as a normal thymus or a tube in place.
    """

    name: str
    terms: re.Pattern[str]
    phrases: re.Pattern[str]
    abnormal: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Triggers:
    """Words that negate a term or make it uncertain. The comments in ``lexicon.toml`` define each kind."""

    negated_before: re.Pattern[str]
    negated_after: re.Pattern[str]
    uncertain_before: re.Pattern[str]
    uncertain_weak: re.Pattern[str]
    uncertain_after: re.Pattern[str]
    pseudo: re.Pattern[str]
    affirmed_after: re.Pattern[str]
    borders: re.Pattern[str]
    verbs: re.Pattern[str]


@dataclass(frozen=True, slots=True, eq=False)  # compared by identity, as the key of a cache
class Lexicon:
    """A lexicon with the ``version`` that its file states and the ``sha256`` of that file."""

    version: str
    sha256: str
    findings: Mapping[str, Finding]
    triggers: Triggers


def load(path: Path = SHIPPED) -> Lexicon:
    """Read a lexicon. The message of an InputError names the invalid or absent key."""
    try:
        data = path.read_bytes()
        table = tomllib.loads(data.decode("utf-8-sig"))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or 'cannot be opened'}; check the path") from error
    except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError
        raise InputError(f"{path}: is not valid TOML in UTF-8; see the bundled lexicon.toml for the format") from error
    entries = table.get("findings")
    if not isinstance(entries, dict) or not entries:
        raise InputError(f"{path}: findings: must contain at least one table [findings.NAME]")
    findings = {name: _finding(path, name, entry) for name, entry in entries.items()}
    return Lexicon(str(table.get("version", "")), sha256(data).hexdigest(), findings, _triggers(path, table))


def _finding(path: Path, name: str, entry: Any) -> Finding:
    key = f"findings.{name}"
    if not isinstance(entry, dict) or not entry.keys() <= {"terms", "phrases", "abnormal"}:
        raise InputError(f"{path}: {key}: must be a table with the keys terms, phrases and abnormal only")
    abnormal = entry.get("abnormal", True)
    if not isinstance(abnormal, bool) or not (entry.get("terms") or entry.get("phrases")):
        raise InputError(f"{path}: {key}: must have terms or phrases; abnormal must be true or false")
    terms = _compile(path, f"{key}.terms", entry.get("terms", []))
    return Finding(name, terms, _compile(path, f"{key}.phrases", entry.get("phrases", [])), abnormal)


def _triggers(path: Path, table: dict[str, Any]) -> Triggers:
    def words(*keys: str) -> re.Pattern[str]:
        value: Any = table
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return _compile(path, ".".join(keys), value or [])

    clauses = words("borders", "clauses")
    terms = words("borders", "terms")
    return Triggers(
        negated_before=words("negation", "before"),
        negated_after=words("negation", "after"),
        uncertain_before=words("uncertainty", "before"),
        uncertain_weak=words("uncertainty", "weak"),
        uncertain_after=words("uncertainty", "after"),
        pseudo=words("pseudo", "terms"),
        affirmed_after=words("affirmation", "after"),
        borders=re.compile(f"{clauses.pattern}|{terms.pattern}"),
        verbs=words("borders", "verbs"),
    )


def _compile(path: Path, key: str, words: Any) -> re.Pattern[str]:
    if not isinstance(words, list) or not all(isinstance(word, str) and word for word in words):
        raise InputError(f"{path}: {key}: must be a list of regular expressions")
    if not words:
        return _NEVER
    try:
        return re.compile(rf"{_START}(?:{'|'.join(f'(?:{word})' for word in words)}){_END}")
    except re.error as error:
        raise InputError(f"{path}: {key}: contains an invalid regular expression: {error.msg}") from error
