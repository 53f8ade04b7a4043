"""What a report says of each finding: present, absent or uncertain. Pure; rules of NegEx's kind.

Chapman et al., "A simple algorithm for identifying negated findings and diseases in discharge summaries", J Biomed
Inform 2001; 34: 301. As there, words of negation reach over a sentence up to a border; unlike there, not five words
but the whole list that radiologists write after one "no".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import StrEnum

from pedcxr_client.evaluation.lexicon import Finding, Lexicon, Triggers


class Said(StrEnum):
    """What a report says of a finding; a finding that it does not name is ``ABSENT`` too."""

    PRESENT = "present"
    UNCERTAIN = "uncertain"
    ABSENT = "absent"


_MARKDOWN = re.compile(r"[*_#`>|]+")
_HEADING = re.compile(
    r"\s*(?:(findings?|impressions?|conclusions?|opinion|summary|report|interpretation|diagnosis)"
    r"|(indications?|(?:clinical )?(?:history|information|indication|data|question)|comparisons?|technique"
    r"|exam(?:ination)?|procedure|reason for (?:the )?exam(?:ination)?))\s*(?::|$)", re.I
)  # fmt: skip
_ITEM = re.compile(r"\s*(?:[-•]|\d{1,2}[.)])\s+")
_ENDED = re.compile(r"[.:;!?]\s*$")
_SENTENCE_END = re.compile(r"(?<=[.;!?])\s+")


def read(report: str, lexicon: Lexicon) -> dict[str, Said]:
    """What a report says of every finding of the lexicon. The strongest of several mentions counts: a finding that is
    present in one sentence is present."""
    seen: dict[str, set[Said]] = {name: set() for name in lexicon.findings}
    for sentence in sentences(report):
        for name, finding in lexicon.findings.items():
            seen[name].update(_mentions(sentence, finding, lexicon.triggers))
    order = (Said.PRESENT, Said.UNCERTAIN, Said.ABSENT)
    return {name: next((one for one in order if one in said), Said.ABSENT) for name, said in seen.items()}


def sentences(report: str) -> list[str]:
    """The sentences in lower case, without markdown, and without what stands under INDICATION, HISTORY, COMPARISON,
    TECHNIQUE: that is not what the film shows. A line that only breaks off is joined to the next."""
    found: list[str] = []
    skipping = False
    for block in _blocks(_MARKDOWN.sub("", report)):
        if heading := _HEADING.match(block):
            skipping = heading[2] is not None
            block = block[heading.end() :]
        if not skipping:
            words = " ".join(block.lower().split())
            found += [one for one in _SENTENCE_END.split(words) if one]
    return found


def _blocks(text: str) -> Iterator[str]:
    """Lines, those that were only wrapped put together again."""
    held = ""
    for line in text.splitlines():
        starts = not line.strip() or _ITEM.match(line) or _HEADING.match(line) or line.lstrip()[:1].isupper()
        if held and (starts or _ENDED.search(held)):
            yield held
            held = ""
        held = f"{held} {_ITEM.sub('', line)}" if held else _ITEM.sub("", line)
    yield held


def _mentions(sentence: str, finding: Finding, triggers: Triggers) -> Iterator[Said]:
    if finding.phrases.search(sentence):
        yield Said.PRESENT
    spans = [found.span() for found in finding.terms.finditer(sentence)]
    if not spans:
        return
    words = _Words(sentence, triggers)
    for start, end in spans:
        yield words.said(start, end)


class _Words:
    """The triggers of one sentence. What one kind has taken is no word of the next: "cannot be excluded" negates
    nothing."""

    def __init__(self, sentence: str, triggers: Triggers) -> None:
        self.sentence = sentence
        self.triggers = triggers
        self.borders = [found.start() for found in triggers.borders.finditer(sentence)]
        rest = self._take(triggers.pseudo, sentence)[1]
        self.uncertain_after, rest = self._take(triggers.uncertain_after, rest)
        self.negated_after, rest = self._take(triggers.negated_after, rest)
        self.uncertain, rest = self._take(triggers.uncertain_before, rest)
        self.weak, rest = self._take(triggers.uncertain_weak, rest)
        self.negated = self._take(triggers.negated_before, rest)[0]

    @staticmethod
    def _take(words: re.Pattern[str], text: str) -> tuple[list[tuple[int, int]], str]:
        spans = [found.span() for found in words.finditer(text)]
        for start, end in spans:
            text = text[:start] + "\0" * (end - start) + text[end:]
        return spans, text

    def said(self, start: int, end: int) -> Said:
        """What the sentence says of the term at ``start`` to ``end``."""
        after_negated = any(self._reaches_back(end, at) for at, _ in self.negated_after)
        after_uncertain = any(self._reaches_back(end, at) for at, _ in self.uncertain_after)
        negated, uncertain, weak = (
            max((at for at, stop in spans if self._reaches(stop, start, end, at)), default=-1)
            for spans in (self.negated, self.uncertain, self.weak)
        )
        if after_negated or negated > uncertain:
            return Said.ABSENT
        return Said.UNCERTAIN if after_uncertain or max(uncertain, weak) >= 0 else Said.PRESENT

    def _reaches(self, stop: int, start: int, end: int, at: int) -> bool:
        return at < end and not any(stop <= border < start for border in self.borders)

    def _reaches_back(self, end: int, at: int) -> bool:
        if at < end or any(end <= border < at for border in self.borders):
            return False
        return not self.triggers.verbs.search(self.sentence, end, at)
