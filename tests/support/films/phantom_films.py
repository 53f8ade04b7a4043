"""Drawn films with their expected reports, and requests that contain them."""

from __future__ import annotations

import base64
import itertools
from dataclasses import dataclass
from typing import Any

from pedcxr_client.films.age import Age
from pedcxr_client.request import prompts
from pedcxr_serve.demo import drawing, expected_report
from pedcxr_serve.demo.findings import Case, Finding, Kind

CHAT = "/v1/chat/completions"
AGE = Age(6, "Y")
WORDS = prompts.card(AGE, "M")
_CASES = tuple(
    Case(AGE, "M", (finding,))
    for finding in (
        Finding(Kind.CONSOLIDATION, "right", "lower"),
        Finding(Kind.EFFUSION, "left"),
        Finding(Kind.PNEUMOTHORAX, "left"),
        Finding(Kind.PNEUMOTHORAX, "right"),
    )
)
_SEEDS = itertools.count(11)


@dataclass(frozen=True)
class Film:
    """A drawing as a PNG file, and its expected report."""

    png: bytes
    report: str

    @property
    def url(self) -> str:
        return "data:image/png;base64," + base64.b64encode(self.png).decode()

    def part(self, **more: object) -> dict[str, Any]:
        return {"type": "image_url", "image_url": {"url": self.url}, **more}

    def body(self, **fields: object) -> dict[str, Any]:
        """Return the request body that the Python client sends."""
        return body(self.part(), **fields)


def body(*content: dict[str, Any], words: str = WORDS, **fields: object) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [*content, {"type": "text", "text": words}]}], **fields}


def fresh(kind: int = 0) -> Film:
    """Return a film with one of four findings, not used before in this test session."""
    case = _CASES[kind % len(_CASES)]
    return Film(drawing.encode_png(drawing.render(case, next(_SEEDS))), expected_report.text(case))
