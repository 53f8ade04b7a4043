"""The sections of a report's text, where the model wrote their headings. Pure."""

from __future__ import annotations

import re
from typing import NamedTuple

# A heading starts the text, a line or a sentence. With a colon it may be followed by its text; without one it must
# stand alone on its line, or "The impression is that" would become one.
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
    """``findings`` and ``impression``, None where the model wrote none."""

    findings: str | None
    impression: str | None


def parse(text: str) -> Sections:
    """Split a report at its FINDINGS and IMPRESSION headings: any case, markdown or plain, on a line or inline.

    Without headings all of the text is findings. Text before the first heading is findings only if no FINDINGS
    heading follows. Nothing is ever invented; whitespace at the ends of a section is left out.

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
    """What stands before the headings of a text that has a FINDINGS heading, which :func:`parse` leaves out.

    >>> preface("Chest, one view. FINDINGS: Clear lungs.")
    'Chest, one view.'
    """
    headings = list(_HEADING.finditer(text))
    if not any(heading["name"].lower() == "findings" for heading in headings):
        return None
    return text[: headings[0].start()].strip() or None
