"""Write the expected report of a case, and read the findings that a report names."""

from __future__ import annotations

from pedcxr_client.films.age import Age
from pedcxr_serve.demo import findings as drawn_findings
from pedcxr_serve.demo.findings import Case, Finding, Kind

_DAYS_PER_MONTH = 365.25 / 12
_DAYS = {"D": 1.0, "W": 7.0}

THYMUS = "normal thymus"
WIDENING = "mediastinal widening"


def thymus_age(age: Age | None) -> bool:
    """Return whether a wide upper mediastinum is a normal thymus: under 3 years, and not at an unknown age."""
    if age is None:
        return False
    if age.unit == "Y":
        return age.value < 3
    if age.unit == "M":
        return age.value < 36
    return int(age.value * _DAYS[age.unit] / _DAYS_PER_MONTH) < 36


def label(finding: Finding, age: Age | None) -> str:
    """Return the name of a finding at an age, such as ``"right upper zone consolidation"`` or ``"normal thymus"``."""
    if finding.kind is Kind.WIDE_MEDIASTINUM:
        return THYMUS if thymus_age(age) else WIDENING
    zone = f"{finding.zone} zone " if finding.zone else ""
    return f"{finding.side} {zone}{finding.kind}" if finding.side else str(finding.kind)


def _sentence(name: str) -> str:
    fixed = {
        THYMUS: "The wide upper mediastinum is a normal thymus at this age.",
        WIDENING: "The upper mediastinum is abnormally wide.",
        str(Kind.CARDIOMEGALY): "The heart is enlarged.",
        str(Kind.HYPERINFLATION): "The lungs are hyperinflated with flat diaphragms.",
        str(Kind.TUBE): "An endotracheal tube ends above the carina.",
        str(Kind.TUBE_LOW): "An endotracheal tube ends in the right main bronchus.",
    }
    if name in fixed:
        return fixed[name]
    side, _, what = name.partition(" ")
    if what == str(Kind.LINE):
        return f"A central venous line from the {side} ends in the superior vena cava."
    if what.endswith("consolidation"):
        return f"There is consolidation in the {side} {what.removesuffix(' consolidation')}."
    return f"There is a {name}."


def _concern(name: str) -> str | None:
    fixed = {
        THYMUS: "Normal thymus.",
        WIDENING: "Mediastinal widening, needs further evaluation.",
        str(Kind.TUBE): None,
        str(Kind.TUBE_LOW): "Endotracheal tube too low, should be withdrawn.",
    }
    if name in fixed:
        return fixed[name]
    if name.endswith(str(Kind.LINE)):
        return None
    return name.replace("consolidation", "pneumonia").capitalize() + "."


SENTENCES: dict[str, str] = {
    name: _sentence(name)
    for finding in drawn_findings.FINDINGS
    for name in dict.fromkeys((label(finding, Age(1, "Y")), label(finding, None)))
}
"""The sentence that states each label in a report."""

FINDINGS: tuple[str, ...] = tuple(SENTENCES)
"""Every label that `labels` can return."""


def _sentences(names: list[str], kinds: tuple[str, ...], otherwise: str | None) -> list[str]:
    sentences = [_sentence(name) for name in names if name.endswith(kinds)]
    return sentences or ([otherwise] if otherwise else [])


def text(case: Case) -> str:
    """Return the report of a case: a line ``FINDINGS: ...`` and a line ``IMPRESSION: ...``."""
    names = [label(finding, case.age) for finding in case.findings]
    findings = [
        *_sentences(names, (Kind.TUBE, Kind.TUBE_LOW, Kind.LINE), None),
        *_sentences(names, (Kind.CONSOLIDATION, Kind.HYPERINFLATION), "The lungs are clear."),
        *_sentences(names, (Kind.EFFUSION, Kind.PNEUMOTHORAX), "No pleural effusion or pneumothorax."),
        *_sentences(names, (Kind.CARDIOMEGALY,), "The heart size is normal."),
        *_sentences(names, (THYMUS, WIDENING), "The mediastinum is normal."),
    ]
    concerns = [concern for name in names if (concern := _concern(name))]
    return f"FINDINGS: {' '.join(findings)}\nIMPRESSION: {' '.join(concerns or ['No acute abnormality.'])}"


def labels(report: str) -> frozenset[str]:
    """Return those of `FINDINGS` that a report names in the text before ``IMPRESSION:``."""
    findings = report.partition("IMPRESSION:")[0]
    return frozenset(name for name, sentence in SENTENCES.items() if sentence in findings)
