"""Checks of a finished text: is it English, a report, no refusal, no echo of the prompt and no loop?"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from pedcxr_client.reports import vocabulary
from pedcxr_client.request.prompts import INSTRUCTION, MARKERS

_WORD = re.compile(r"[^\W_]+")
_LAYOUT = "\t\n\v\f\r\x85"  # control characters that are allowed as white space
_LONGEST_WORD = 100
_SYSTEM_WORDS = range(4, 9)  # compare the first 8 words of the system text; fewer than 4 may occur in any report

# Rule 1: a unit of words is repeated back to back. Required repetitions: 20 for a unit of 1 word, 10 for 2 words, 7 for
# 3, 5 for 4, 4 for 5 to 11, 3 for 12 to 120. A valid report may say "no focal consolidation" twice in a row.
_MIN_SPAN = 20
_MIN_REPEATS, _MIN_REPEATS_LONG, _LONG_UNIT = 4, 3, 12
_LONGEST_UNIT = 120
# Rule 2: few n-grams of a long text are distinct. It finds loops in which a number or a side changes on each repeat.
_NGRAM, _MIN_WORDS, _MIN_DISTINCT = 4, 60, 1 / 3

# "No comparison is available" and "prior granulomatous disease" do not compare with an earlier film.
_PRIOR = re.compile(
    r"""
    \b (?: unchanged | stable | since | persist (?:ent|ently|s|ed|ing|ence) | previously | redemonstrated
      | (?:no|without) \s (?:\w+ \s){0,2} changes? | not \s (?:significantly \s)? changed
      | (?:similar|identical) \s (?:to|compared) | again \s (?:seen|noted|\w+ed)
      | (?<!no\s) (?<!without\s) compar (?:ed|ison|isons|able|ing)
      | (?:prior|previous|earlier|last|recent) \s (?:\w+ [\s/-]){0,3}?
        (?:exam\w*|stud(?:y|ies)|films?|radiographs?|x-?rays?|images?|imaging|ct|reports?)
      | (?:from|to|than|with|on) \s (?:the \s)? (?:prior|previous|earlier)
      | interval \s (?!follow) | in \s the \s interval | improv (?:ed|ing|ements?) | worsen (?:ed|ing)
      | (?:in|de) creas (?:ed|ing) \s (?:in \s size|from)
    ) \b""",
    re.IGNORECASE | re.VERBOSE,
)
# Placeholders of MIMIC-CXR, Open-i and templates. A line of underscores alone is a rule in markdown.
_PLACEHOLDER = re.compile(
    r"(?m:(?<!_)_{3,}+(?![ \t]*$)|(?<=\S)[ \t]*_{3,})|\bX{3,}\b|\[[^\]\n]{0,40}[A-Za-z][^\]\n]{0,40}\]"
)

Defect = Literal["thoughts", "markup", "refusal", "no finding"]
"""Why a text in natural language is not a report."""
_MIN_SENTENCE = 4  # words; fewer about a part of the chest are a fragment such as "The lungs"


def is_not_text(text: str) -> bool:
    """Return whether the text is not natural language.

    It is not if it contains control, private-use, surrogate or replacement characters, if less than half of its
    visible characters are letters, if it consists of special tokens alone, or if a word is over 100 characters long.
    """
    if any(_is_invalid(letter) for letter in text):
        return True
    words = MARKERS.sub("", text)
    visible = [letter for letter in words if not letter.isspace()]
    letters = sum(unicodedata.category(letter)[0] in "LM" for letter in visible)
    return 2 * letters < len(visible) or not letters or max(map(len, _WORD.findall(words)), default=0) > _LONGEST_WORD


def is_echo(text: str, system: str | None = None) -> bool:
    """Return whether the text contains special tokens, the prompt instruction or the start of the system text."""
    if MARKERS.search(vocabulary.THOUGHTS.sub("", text)):
        return True
    padded = f" {' '.join(_words(text))} "
    if f" {' '.join(_words(INSTRUCTION))} " in padded:
        return True
    first = _words(system or "")[: _SYSTEM_WORDS[-1]]
    return len(first) in _SYSTEM_WORDS and f" {' '.join(first)} " in padded


def defect(text: str) -> Defect | None:
    """Return why a text is not a report, or None for a report.

    ``"thoughts"``: it contains the marks of a model that thinks aloud. ``"markup"``: it contains fenced text, JSON or
    HTML. ``"refusal"``: a sentence of it declines, or describes the model. ``"no finding"``: it states nothing about a
    chest film, such as a heading alone. None of the 3,927 reports of Open-i has a defect.
    """
    if vocabulary.THOUGHTS.search(text):
        return "thoughts"
    if vocabulary.MARKUP.search(text):
        return "markup"
    if vocabulary.REFUSAL.search(text):
        return "refusal"
    content = vocabulary.HEADING.sub(" ", text)
    if vocabulary.STATEMENT.search(content):
        return None
    is_sentence = len(_WORD.findall(content)) >= _MIN_SENTENCE and vocabulary.ANATOMY.search(content)
    return None if is_sentence else "no finding"


def language(text: str) -> str:
    """Return the language of a report as an RFC 5646 tag: ``"en"`` unless the text shows another one.

    A text in another script has the tag of that script. Otherwise, a language whose frequent words outnumber the
    English ones decides. ``"und"`` means that the letters are not English and the language is unknown.

    >>> language("Heart size normal."), language("Cordul este normal."), language("Норма.")
    ('en', 'ro', 'und-Cyrl')
    """
    if (script := _script(text)) != "LATIN":
        return vocabulary.SCRIPTS.get(script, "und")
    words = _words(unicodedata.normalize("NFC", text))
    english = sum(word in vocabulary.ENGLISH for word in words)
    counts = {name: sum(word in stop for word in words) for name, stop in vocabulary.STOP_WORDS.items()}
    name, count = max(counts.items(), key=lambda item: item[1])
    if count > english:
        return name
    return "und" if not english and any(not letter.isascii() for word in words for letter in word) else "en"


def is_loop(text: str) -> bool:
    """Return whether the text repeats itself as a degenerate model does. Case and punctuation are ignored."""
    words = _words(text)
    trigrams = Counter(zip(words, words[1:], words[2:], strict=False))
    if max(trigrams.values(), default=0) < _MIN_REPEATS_LONG:
        return False  # fast path for nearly every report
    if any(_repeats(words, unit) for unit in range(1, min(_LONGEST_UNIT, len(words) // _MIN_REPEATS_LONG) + 1)):
        return True
    words = [word for word in words if not any(letter.isdigit() for letter in word)]
    ngrams = [tuple(words[start : start + _NGRAM]) for start in range(len(words) - _NGRAM + 1)]
    return len(words) >= _MIN_WORDS and len(set(ngrams)) < _MIN_DISTINCT * len(ngrams)


def mentions_prior(text: str) -> bool:
    """Return whether the text compares with an earlier film, or contains the placeholder of a removed word.

    The client sends one film, so the model has invented the comparison. Reports of hospitals, on which such models
    are trained, compare in about one of four cases (arXiv 2210.06340), and public ones hold ``___`` or ``XXXX``.
    """
    return bool(_PRIOR.search(text) or _PLACEHOLDER.search(text))


def _script(text: str) -> str:
    """Return the script of more than half of the letters as in their Unicode names, or ``"LATIN"``."""
    if text.isascii():
        return "LATIN"
    scripts = Counter(unicodedata.name(letter, "").split(" ")[0] for letter in text if letter.isalpha())
    if scripts["HIRAGANA"] + scripts["KATAKANA"]:
        scripts["HIRAGANA"] += scripts.pop("CJK", 0)
    script, letters = scripts.most_common(1)[0] if scripts else ("LATIN", 0)
    return script if 2 * letters > scripts.total() else "LATIN"


def _repeats(words: Sequence[str], unit: int) -> bool:
    min_length = unit * max(_MIN_REPEATS_LONG if unit >= _LONG_UNIT else _MIN_REPEATS, -(-_MIN_SPAN // unit))
    breaks = [-1, *(at for at in range(len(words) - unit) if words[at] != words[at + unit]), len(words) - unit]
    return any(after - before - 1 + unit >= min_length for before, after in pairwise(breaks))


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _is_invalid(letter: str) -> bool:
    if letter == "\N{REPLACEMENT CHARACTER}":
        return True
    return unicodedata.category(letter) in ("Cc", "Cs", "Co") and letter not in _LAYOUT
