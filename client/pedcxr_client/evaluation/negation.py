"""Detect for each finding whether a report states it as present, uncertain or absent, with rules based on NegEx.

Chapman et al., "A simple algorithm for identifying negated findings and diseases in discharge summaries", J Biomed
Inform 2001; 34: 301. As in NegEx, the scope of a negation word ends at a termination term. Its length is not limited to
five words, because radiologists write long lists after one "no".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from pedcxr_client.evaluation.lexicon import Lexicon, Triggers


class Assertion(StrEnum):
    """The assertion status of a finding in a report. A finding that the report does not mention is ``ABSENT``."""

    PRESENT = "present"
    UNCERTAIN = "uncertain"
    ABSENT = "absent"


_SECTION = re.compile(
    r"(?:(findings?|impressions?|conclusions?|opinion|summary|report|interpretation|diagnosis)"
    r"|(?:indications?|(?:clinical )?(?:history|information|indication|data|question|details)|comparisons?|technique"
    r"|exam(?:ination)?|procedure|recommendations?|reason for (?:the )?exam(?:ination)?))[^\S\n]*(?::|$)", re.I | re.M
)  # fmt: skip
_MARKDOWN = re.compile(r"[*_#`>|]+")
_BLANK_LINE = re.compile(r"\n\s*\n")
_LIST_ITEM = re.compile(r"\s*(?:[-•]|\d{1,2}[.)])\s+")
_LINE_END = re.compile(r"[.:;!?]\s*$")
# "? pneumonia" is one sentence. "1) No effusion 2) Pneumonia" is a list on one line.
_SENTENCE_END = re.compile(r"(?<=[.;!])\s+|(?<=[\w)]\?)\s+|\s+(?=\d{1,2}\)\s)")
_SIDE = re.compile(r"\b(left|right|bilateral|both|bi(?:basal|basilar|apical))(?:ly)?\b")
_CONJUNCTION = re.compile(r",|\bwith\b|(?<!left )(?<!right )\band\b")


@dataclass(frozen=True, slots=True)
class Mention:
    """One mention of a finding. ``sides`` contains "left", "right" or both, or nothing if no side is stated."""

    finding: str
    assertion: Assertion
    sides: frozenset[str]


def read(report: str, lexicon: Lexicon) -> dict[str, Assertion]:
    """Return the assertion status of every finding of the lexicon."""
    return strongest(mentions(report, lexicon), lexicon)


def strongest(mentions: Iterable[Mention], lexicon: Lexicon) -> dict[str, Assertion]:
    """Return the strongest status of every finding: present, then uncertain, then absent."""
    statuses: dict[str, set[Assertion]] = {name: set() for name in lexicon.findings}
    for mention in mentions:
        statuses[mention.finding].add(mention.assertion)
    return {
        name: next((status for status in Assertion if status in values), Assertion.ABSENT)
        for name, values in statuses.items()
    }


def mentions(report: str, lexicon: Lexicon) -> Iterator[Mention]:
    """Return the mentions of findings, sentence by sentence."""
    for sentence in sentences(report):
        yield from _sentence_mentions(sentence, lexicon)


@lru_cache(maxsize=4096)  # reports repeat sentences
def _sentence_mentions(sentence: str, lexicon: Lexicon) -> tuple[Mention, ...]:
    findings = lexicon.findings.items()
    spans = [(*match.span(), name) for name, finding in findings for match in finding.terms.finditer(sentence)]
    stated = [
        Mention(name, Assertion.PRESENT, frozenset()) for name, finding in findings if finding.phrases.search(sentence)
    ]
    if not spans:
        return tuple(stated)
    scopes = _Scopes(sentence, lexicon.triggers)
    read = [
        Mention(name, scopes.assertion(start, end), _sides(sentence, start, end, spans)) for start, end, name in spans
    ]
    return (*read, *stated)


def _sides(sentence: str, start: int, end: int, spans: Sequence[tuple[int, int, str]]) -> frozenset[str]:
    """Return the sides stated in a term ("collapsed right lobe"), or else before it, or else after it."""
    previous = max((stop for _, stop, _ in spans if stop <= start), default=0)
    following = min((begin for begin, _, _ in spans if begin >= end), default=len(sentence))
    before, after = sentence[previous:start], sentence[end:following]
    # Between two terms, the words before the last conjunction belong to the first term, those after it to the second.
    before = _CONJUNCTION.split(before)[-1] if previous else before.rpartition(",")[2]
    if following < len(sentence) and (conjunctions := list(_CONJUNCTION.finditer(after))):
        after = after[: conjunctions[-1].start()]
    words = next(filter(None, map(_SIDE.findall, (sentence[start:end], before, after))), [])
    return frozenset(side for word in words for side in ([word] if word in ("left", "right") else ["left", "right"]))


def sentences(report: str) -> list[str]:
    """Return the sentences in lower case, without markdown.

    Sections such as INDICATION, HISTORY, COMPARISON and TECHNIQUE are omitted, because they do not describe the film.
    A wrapped line is joined to the next one.
    """
    result: list[str] = []
    for block in _blocks(_MARKDOWN.sub("", report)):
        for line in _unwrapped_lines(block):
            words = " ".join(line.lower().split())
            result += [sentence for sentence in _SENTENCE_END.split(words) if sentence]
    return result


def _blocks(text: str) -> Iterator[str]:
    """Return the text of each section that describes the film.

    A heading is at the start of a line or of a sentence, or in capitals. Without a colon, it must be alone on its line.
    """
    headings = [match for match in _SECTION.finditer(text) if _is_heading(match, text)]
    starts = [heading.start() for heading in headings]
    yield text[: starts[0] if starts else len(text)]
    for heading, end in zip(headings, [*starts[1:], len(text)], strict=False):
        body = text[heading.end() : end]
        paragraph, *others = _BLANK_LINE.split(body.strip(), maxsplit=1)
        if heading[1] is not None:
            yield body
        elif others:
            yield others[0]
        elif heading is headings[-1]:
            # No heading ends this section: its first line does, or in a text of one line its first sentence.
            first_line, _, rest = paragraph.partition("\n")
            yield rest or " ".join(_SENTENCE_END.split(first_line)[1:])


def _is_heading(match: re.Match[str], text: str) -> bool:
    before = _LIST_ITEM.sub("", text[text.rfind("\n", 0, match.start()) + 1 : match.start()]).rstrip()
    if not before:
        return True
    return (
        match[0].endswith(":")
        and (before[-1] in ".;:!?" or match[0].isupper())
        and not text[match.start() - 1].isalnum()
    )


def _unwrapped_lines(text: str) -> Iterator[str]:
    block = ""
    for line in text.splitlines():
        starts = not line.strip() or _LIST_ITEM.match(line) or line.lstrip()[:1].isupper()
        if block and (starts or _LINE_END.search(block)):
            yield block
            block = ""
        item = _LIST_ITEM.match(line)
        line = line[item.end() :] if item else line
        block = f"{block} {line}" if block else line
    yield block


class _Scopes:
    """The triggers of one sentence. Each kind removes its matches before the next kind is searched, so that the words
    "cannot be excluded" do not also count as a negation."""

    def __init__(self, sentence: str, triggers: Triggers) -> None:
        self.sentence = sentence
        self.triggers = triggers
        self.borders = [match.start() for match in triggers.borders.finditer(sentence)]
        rest = self._remove(triggers.pseudo, sentence)[1]
        self.affirmed_after, rest = self._remove(triggers.affirmed_after, rest)
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
        if any(at >= end for at, _ in self.affirmed_after):
            return Assertion.PRESENT
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
