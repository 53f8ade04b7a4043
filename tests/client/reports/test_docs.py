"""docs/reports.md says what the code does."""

from __future__ import annotations

import re

from pedcxr_client import ReportError
from pedcxr_client.metrics.prometheus import _ABORTS
from pedcxr_client.reports import COLUMNS
from pedcxr_client.reports.report import DEMO_NOTICE, DISCLAIMER
from pedcxr_client.request.prompts import (
    CARD,
    GROUPS,
    INSTRUCTION,
    LARGEST_SYSTEM,
    LONGEST_INDICATION,
    NOT_RECORDED,
    VERSIONS,
)
from tests.support.paths import ROOT

PAGE = (ROOT / "docs/reports.md").read_text()
LINE = " ".join(PAGE.split())


def test_each_error_with_its_word():
    rows = dict(re.findall(r"^\| `(\w+)` \| `(\w+)` \|", PAGE, re.MULTILINE))
    assert rows == {error.__name__: error.outcome for error in ReportError.__subclasses__()}
    assert set(rows.values()) <= set(_ABORTS)


def test_the_prompts():
    for name, version in VERSIONS.items():
        assert re.search(rf"\| `{name}`, version {version}\b.*`{INSTRUCTION} ", PAGE)
    names, _, lasts = PAGE[PAGE.index("| neonate |") :].splitlines()[:3]
    groups, days = names.strip("| ").split(" | "), re.findall(r"\d+", lasts)
    assert groups.pop() == "older"
    assert list(zip(groups, map(int, days), strict=True)) == list(GROUPS)
    assert f"`X-Pedcxr-Prompt: {CARD.tag}`" in LINE
    assert NOT_RECORDED in LINE
    assert f"up to {LONGEST_INDICATION} printable characters" in LINE
    assert f"at most {LARGEST_SYSTEM // 1024} KiB" in LINE


def test_the_formats():
    listed = LINE[LINE.index("**CSV columns**") : LINE.index("A cell that a spreadsheet")]
    assert tuple(re.findall(r"`(\w+)`", listed)) == COLUMNS
    assert DISCLAIMER in LINE
    assert DEMO_NOTICE in LINE
