"""Split the text of a report at its FINDINGS and IMPRESSION headings."""

from __future__ import annotations

import re
from typing import NamedTuple

# A heading is at the start of the text, of a line or of a sentence. With a colon, its text may follow on the same line.
# Without a colon, it must be alone on its line. Otherwise "The impression is that" would match.
_HEADING = re.compile(
    r"""
    (?: \A | \n | (?<=[.!?])[ \t]+ )
    [ \t]* (?:[-*+>][ \t]+)? (?:\#{1,6}[ \t]*)? (?:\*\*|__|\*|_)? [ \t]*
    (?P<name>findings|impression)
    [ \t]* (?: (?:\*\*|__|\*|_)?[ \t]*:[ \t]*(?:\*\*|__|\*|_)?
             | (?:\*\*|__|\*|_)?[ \t]*(?=\r?\n|\Z) )
    """,
    re.IGNORECASE | re.VERBOSE,
)


class Sections(NamedTuple):
    """The sections of a report, with None for a section that the model did not write."""

    findings: str | None
    impression: str | None


def parse(text: str) -> Sections:
    """Split a report at its FINDINGS and IMPRESSION headings.

    Headings may be in any case, plain or markdown, on their own line or inline. Without headings, the whole text is
    the findings. Text before the first heading belongs to the findings only if no FINDINGS heading follows. White
    space at both ends of a section is removed.

    >>> parse("**Findings:** Clear lungs. IMPRESSION: Normal.")
    Sections(findings='Clear lungs.', impression='Normal.')
    >>> parse("Clear lungs.")
    Sections(findings='Clear lungs.', impression=None)
    """
    headings = list(_HEADING.finditer(text))
    ends = [heading.start() for heading in headings[1:]] + [len(text)]
    parts: dict[str, list[str]] = {"findings": [], "impression": []}
    for heading, end in zip(headings, ends, strict=False):
        parts[heading["name"].lower()].append(text[heading.end() : end].strip())
    if not any(heading["name"].lower() == "findings" for heading in headings):
        parts["findings"].append(text[: headings[0].start() if headings else len(text)].strip())
    findings, impression = ("\n".join(filter(None, part)) or None for part in parts.values())
    return Sections(findings, impression)


def preface(text: str) -> str | None:
    """Return the text before the first heading, which `parse` omits if there is a FINDINGS heading.

    Return None if that text is empty, or if there is no FINDINGS heading.

    >>> preface("Chest, one view. FINDINGS: Clear lungs.")
    'Chest, one view.'
    """
    headings = list(_HEADING.finditer(text))
    if not any(heading["name"].lower() == "findings" for heading in headings):
        return None
    return text[: headings[0].start()].strip() or None
