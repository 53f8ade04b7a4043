"""Detect for each finding whether a report states it as present, uncertain or absent, with rules based on NegEx.

Chapman et al., "A simple algorithm for identifying negated findings and diseases in discharge summaries", J Biomed
Inform 2001; 34: 301. As in NegEx, the scope of a negation word ends at a termination term. Its length is not limited to
five words, because radiologists write long lists after one "no".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import StrEnum

from pedcxr_client.evaluation.lexicon import Finding, Lexicon, Triggers


class Assertion(StrEnum):
    """The assertion status of a finding in a report. A finding that the report does not mention is ``ABSENT``."""

    PRESENT = "present"
    UNCERTAIN = "uncertain"
    ABSENT = "absent"


_MARKDOWN = re.compile(r"[*_#`>|]+")
_HEADING = re.compile(
    r"\s*(?:(findings?|impressions?|conclusions?|opinion|summary|report|interpretation|diagnosis)"
    r"|(indications?|(?:clinical )?(?:history|information|indication|data|question)|comparisons?|technique"
    r"|exam(?:ination)?|procedure|reason for (?:the )?exam(?:ination)?))\s*(?::|$)", re.I
)  # fmt: skip
_LIST_ITEM = re.compile(r"\s*(?:[-•]|\d{1,2}[.)])\s+")
_LINE_END = re.compile(r"[.:;!?]\s*$")
_SENTENCE_END = re.compile(r"(?<=[.;!?])\s+")


def read(report: str, lexicon: Lexicon) -> dict[str, Assertion]:
    """Return the assertion status of every finding of the lexicon.

    If a report mentions a finding several times, the strongest status counts: present, then uncertain, then absent.
    """
    mentions: dict[str, set[Assertion]] = {name: set() for name in lexicon.findings}
    for sentence in sentences(report):
        for name, finding in lexicon.findings.items():
            mentions[name].update(_assertions(sentence, finding, lexicon.triggers))
    strongest_first = (Assertion.PRESENT, Assertion.UNCERTAIN, Assertion.ABSENT)
    return {
        name: next((status for status in strongest_first if status in statuses), Assertion.ABSENT)
        for name, statuses in mentions.items()
    }


def sentences(report: str) -> list[str]:
    """Return the sentences in lower case, without markdown.

    Sections such as INDICATION, HISTORY, COMPARISON and TECHNIQUE are omitted, because they do not describe the film.
    A wrapped line is joined to the next one.
    """
    result: list[str] = []
    skipping = False
    for line in _unwrapped_lines(_MARKDOWN.sub("", report)):
        if heading := _HEADING.match(line):
            skipping = heading[2] is not None
            line = line[heading.end() :]
        if not skipping:
            words = " ".join(line.lower().split())
            result += [sentence for sentence in _SENTENCE_END.split(words) if sentence]
    return result


def _unwrapped_lines(text: str) -> Iterator[str]:
    block = ""
    for line in text.splitlines():
        starts = not line.strip() or _LIST_ITEM.match(line) or _HEADING.match(line) or line.lstrip()[:1].isupper()
        if block and (starts or _LINE_END.search(block)):
            yield block
            block = ""
        block = f"{block} {_LIST_ITEM.sub('', line)}" if block else _LIST_ITEM.sub("", line)
    yield block


def _assertions(sentence: str, finding: Finding, triggers: Triggers) -> Iterator[Assertion]:
    if finding.phrases.search(sentence):
        yield Assertion.PRESENT
    spans = [match.span() for match in finding.terms.finditer(sentence)]
    if not spans:
        return
    scopes = _Scopes(sentence, triggers)
    for start, end in spans:
        yield scopes.assertion(start, end)


class _Scopes:
    """The triggers of one sentence. Each kind removes its matches before the next kind is searched, so that the words
    "cannot be excluded" do not also count as a negation."""

    def __init__(self, sentence: str, triggers: Triggers) -> None:
        self.sentence = sentence
        self.triggers = triggers
        self.borders = [match.start() for match in triggers.borders.finditer(sentence)]
        rest = self._remove(triggers.pseudo, sentence)[1]
        self.uncertain_after, rest = self._remove(triggers.uncertain_after, rest)
        self.negated_after, rest = self._remove(triggers.negated_after, rest)
        self.uncertain, rest = self._remove(triggers.uncertain_before, rest)
        self.weak, rest = self._remove(triggers.uncertain_weak, rest)
        self.negated = self._remove(triggers.negated_before, rest)[0]

    @staticmethod
    def _remove(words: re.Pattern[str], text: str) -> tuple[list[tuple[int, int]], str]:
        spans = [match.span() for match in words.finditer(text)]
        for start, end in spans:
            text = text[:start] + "\0" * (end - start) + text[end:]
        return spans, text

    def assertion(self, start: int, end: int) -> Assertion:
        after_negated = any(self._reaches_back(end, at) for at, _ in self.negated_after)
        after_uncertain = any(self._reaches_back(end, at) for at, _ in self.uncertain_after)
        negated, uncertain, weak = (
            max((at for at, stop in spans if self._reaches_forward(stop, start, end, at)), default=-1)
            for spans in (self.negated, self.uncertain, self.weak)
        )
        if after_negated or negated > uncertain:
            return Assertion.ABSENT
        return Assertion.UNCERTAIN if after_uncertain or max(uncertain, weak) >= 0 else Assertion.PRESENT

    def _reaches_forward(self, stop: int, start: int, end: int, at: int) -> bool:
        return at < end and not any(stop <= border < start for border in self.borders)

    def _reaches_back(self, end: int, at: int) -> bool:
        if at < end or any(end <= border < at for border in self.borders):
            return False
        return not self.triggers.verbs.search(self.sentence, end, at)
