"""Splitting of a report at its headings."""

from __future__ import annotations

import pytest

from pedcxr_client.reports.sections import parse, preface

LUNGS, NORMAL = "The lungs are clear.", "Normal chest."


@pytest.mark.parametrize(
    "text",
    [
        f"FINDINGS: {LUNGS}\n\nIMPRESSION: {NORMAL}",
        f"Findings:\n{LUNGS}\nImpression:\n{NORMAL}\n",
        f"findings: {LUNGS} impression: {NORMAL}",
        f"**FINDINGS:**\n{LUNGS}\n\n**IMPRESSION:**\n{NORMAL}",
        f"**Findings**: {LUNGS}\n**Impression**: {NORMAL}",
        f"**Findings**\n\n{LUNGS}\n\n**Impression**\n\n{NORMAL}",
        f"## Findings\n{LUNGS}\n## Impression\n{NORMAL}",
        f"### FINDINGS:\r\n{LUNGS}\r\n\r\n### IMPRESSION:\r\n{NORMAL}",
        f"- Findings: {LUNGS}\n- Impression: {NORMAL}",
        f"FINDINGS\n{LUNGS}\nIMPRESSION\n{NORMAL}",
        f"__Findings:__ {LUNGS}\n_Impression:_ {NORMAL}",
        f"IMPRESSION: {NORMAL}\nFINDINGS: {LUNGS}",
        f"Chest, one view.\nFINDINGS: {LUNGS}\nIMPRESSION: {NORMAL}",
        f"{LUNGS}\n\nIMPRESSION: {NORMAL}",
        f"{LUNGS} **Impression:** {NORMAL}",
    ],
)
def test_headings_are_recognised(text):
    assert parse(text) == (LUNGS, NORMAL)


@pytest.mark.parametrize(
    "text",
    [
        "The lungs are clear. The impression is of a normal chest.",
        "No acute findings. Impression of a healed fracture at the sixth rib",
        "Findings are unchanged.\nImpression unchanged too.",
        "No significant findings: the heart is normal.",
        "The overall impression: a normal chest.",
        "Misfindings: none.",
        "RECOMMENDATION: follow up.",
    ],
)
def test_other_text_is_not_a_heading(text):
    assert parse(text) == (text, None)


@pytest.mark.parametrize(
    ("text", "findings", "impression"),
    [
        ("", None, None),
        ("  \n", None, None),
        ("FINDINGS: Clear.", "Clear.", None),
        ("IMPRESSION: Normal.", None, "Normal."),
        ("FINDINGS: Clear.\nIMPRESSION:", "Clear.", None),
        ("FINDINGS:\nIMPRESSION:\n", None, None),
        ("FINDINGS: A.\nIMPRESSION: B.\nFINDINGS: C.", "A.\nC.", "B."),
    ],
)
def test_absent_sections_are_none(text, findings, impression):
    assert parse(text) == (findings, impression)


def test_long_text_is_fast():
    assert parse("* " * 50_000 + "\n" * 50_000)[1] is None


@pytest.mark.parametrize(
    ("text", "before"),
    [
        (f"Chest, one view.\nFINDINGS: {LUNGS}\nIMPRESSION: {NORMAL}", "Chest, one view."),
        (f"IMPRESSION: {NORMAL} FINDINGS: {LUNGS}", None),
        (f"FINDINGS: {LUNGS}", None),
        (f"{LUNGS}\nIMPRESSION: {NORMAL}", None),  # parse returns it as findings
        (LUNGS, None),
        ("", None),
    ],
)
def test_text_before_the_headings(text, before):
    assert preface(text) == before
