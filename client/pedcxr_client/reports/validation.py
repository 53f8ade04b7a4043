"""What makes a finished text no report: it is no text, it echoes what was asked, or it goes round in circles. Pure."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from pedcxr_client.request.prompts import INSTRUCTION, MARKERS

_WORD = re.compile(r"[^\W_]+")
_SPACES = "\t\n\v\f\r\x85"  # control characters that only lay out a text
_LONGEST_WORD = 100
_SYSTEM_WORDS = range(4, 9)  # a system text is echoed if its first 8 words are; below 4 they may be anybody's

# A unit of words is repeated back to back: of 1 word 20 times, of 2 words 10, of 3 words 7, ... of 5 to 11 words 4,
# of 12 or more 3. Reports do say "no focal consolidation" twice; none says it seven times on end.
_SPAN = 20
_FEWEST, _FEWEST_LONG, _LONG_UNIT = 4, 3, 12
_LONGEST_UNIT = 120
# Or, with a number or a side changing from round to round, most of the text is the same few words.
_GRAM, _SHORTEST, _LEAST_NEW = 4, 60, 1 / 3


def is_not_text(text: str) -> bool:
    """Whether it holds what no report does: control or replacement characters, or hardly a letter.

    Special tokens alone, or a word of more than 100 letters, are no text either.
    """
    if any(_is_strange(letter) for letter in text):
        return True
    words = MARKERS.sub("", text)
    seen = [letter for letter in words if not letter.isspace()]
    letters = sum(unicodedata.category(letter)[0] in "LM" for letter in seen)
    return 2 * letters < len(seen) or not letters or max(map(len, _WORD.findall(words)), default=0) > _LONGEST_WORD


def is_echo(text: str, system: str | None = None) -> bool:
    """Whether it holds special tokens, the instruction of our prompts, or the first words of the system text."""
    if MARKERS.search(text):
        return True
    said = f" {' '.join(_words(text))} "
    if f" {' '.join(_words(INSTRUCTION))} " in said:
        return True
    first = _words(system or "")[: _SYSTEM_WORDS[-1]]
    return len(first) in _SYSTEM_WORDS and f" {' '.join(first)} " in said


def is_loop(text: str) -> bool:
    """Whether words are repeated as only a model that lost its way does; case and punctuation do not count."""
    words = _words(text)
    rounds = Counter(zip(words, words[1:], words[2:], strict=False))
    if max(rounds.values(), default=0) < _FEWEST_LONG:
        return False  # nearly every report, and soon said
    if any(_repeats(words, unit) for unit in range(1, min(_LONGEST_UNIT, len(words) // _FEWEST_LONG) + 1)):
        return True
    words = [word for word in words if not any(letter.isdigit() for letter in word)]
    grams = [tuple(words[start : start + _GRAM]) for start in range(len(words) - _GRAM + 1)]
    return len(words) >= _SHORTEST and len(set(grams)) < _LEAST_NEW * len(grams)


def _repeats(words: Sequence[str], unit: int) -> bool:
    needed = unit * max(_FEWEST_LONG if unit >= _LONG_UNIT else _FEWEST, -(-_SPAN // unit))
    breaks = [-1, *(at for at in range(len(words) - unit) if words[at] != words[at + unit]), len(words) - unit]
    return any(after - before - 1 + unit >= needed for before, after in pairwise(breaks))


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _is_strange(letter: str) -> bool:
    if letter == "\N{REPLACEMENT CHARACTER}":
        return True
    return unicodedata.category(letter) in ("Cc", "Cs", "Co") and letter not in _SPACES
