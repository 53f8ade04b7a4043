"""Measure the lexicon of ``pedcxr eval`` on real reports: those of Open-i (Indiana University) with MeSH terms.

The reports are part of the PyPI package torchxrayvision 1.5.7. They are read from its installed files, without an
import of the package. Nothing of them is copied or printed. ``make bench-lexicon`` prints the table of
``docs/evaluation.md``.

The rules were tuned on the reports with an even number. The figures of ``docs/evaluation.md`` are those of the reports
with an odd number.

Demner-Fushman et al., "Preparing a collection of radiology examinations for distribution and retrieval", J Am Med
Inform Assoc 2016; 23: 304. The MeSH terms were assigned by hand. They also contain findings that a report calls
possible, and reports that MeSH calls normal may mention old fractures.
"""

from __future__ import annotations

import sys
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from xml.etree import ElementTree

from pedcxr_client.evaluation import lexicon, negation
from pedcxr_client.evaluation.statistics import Agreement, Rate, agreements, rates
from pedcxr_client.evaluation.text_tables import interval

PACKAGE, VERSION, ARCHIVE = "torchxrayvision", "1.5.7", "torchxrayvision/data/NLMCXR_reports.tgz"
MESH: Mapping[str, tuple[str, ...]] = {
    "pneumothorax": ("pneumothorax",),
    "pleural_effusion": ("pleural effusion", "costophrenic angle/right/blunted", "costophrenic angle/left/blunted"),
    "consolidation": ("consolidation", "pneumonia", "infiltrate", "airspace disease", "opacity"),
    "fracture": ("fractures, bone",),
    "cardiomegaly": ("cardiomegaly",),
    "atelectasis": ("pulmonary atelectasis",),
    "pulmonary_oedema": ("pulmonary edema", "pulmonary congestion"),
    "hyperinflation": ("lung/hyperdistention", "lung, hyperlucent", "emphysema"),
    "mass_or_nodule": ("nodule", "mass", "cavitation"),
    "lymphadenopathy": ("lymph nodes",),
    "scoliosis": ("scoliosis",),
}
"""For each finding, the texts that a MeSH term contains if the film has the finding."""


@dataclass(frozen=True, slots=True)
class OpenIReport:
    """A report: its number, the text of FINDINGS and IMPRESSION, and its MeSH terms in lower case."""

    number: int
    text: str
    mesh: tuple[str, ...]

    @property
    def normal(self) -> bool:
        """True if "normal" is the only MeSH term."""
        return self.mesh == ("normal",)

    def terms(self, finding: str) -> list[str]:
        """Return the MeSH terms of a finding."""
        return [term for term in self.mesh if any(words in term for words in MESH[finding])]

    def sides(self, finding: str) -> set[str]:
        """Return "left", "right" or both, as the MeSH terms of a finding state."""
        parts = {part for term in self.terms(finding) for part in term.split("/")}
        return {"left", "right"} if "bilateral" in parts else parts & {"left", "right"}


def archive() -> Path | None:
    """Return the file with the reports, or None if the package is absent or has another version."""
    try:
        package = distribution(PACKAGE)
    except PackageNotFoundError:
        return None
    path = Path(str(package.locate_file(ARCHIVE)))
    return path if package.version == VERSION and path.is_file() else None


def read(path: Path, *, odd: bool) -> Iterator[OpenIReport]:
    """Read the reports with an odd or an even number that have FINDINGS or IMPRESSION."""
    with tarfile.open(path) as files:
        for member in files:
            if not member.name.endswith(".xml") or int(Path(member.name).stem) % 2 != odd:
                continue
            file = files.extractfile(member)
            assert file is not None
            root = ElementTree.parse(file).getroot()
            sections = {part.get("Label"): part.text or "" for part in root.iter("AbstractText")}
            findings, impression = (sections.get(name, "") for name in ("FINDINGS", "IMPRESSION"))
            if findings or impression:
                mesh = tuple((term.text or "").lower() for term in root.iter("major"))
                number = int(Path(member.name).stem)
                yield OpenIReport(number, f"FINDINGS: {findings}\nIMPRESSION: {impression}", mesh)


@dataclass(frozen=True, slots=True)
class Accuracy:
    """``findings``: agreement by finding; ``sides``: equal sides, of the reports where reader and MeSH state one.

    ``called_abnormal`` of the ``normal`` reports were read as abnormal. MeSH calls the latter normal.
    """

    reports: int
    findings: Mapping[str, Agreement]
    sides: Mapping[str, Rate]
    normal: int
    called_abnormal: int


def measure(path: Path, *, odd: bool = True) -> Accuracy:
    """Read each report with the bundled lexicon. Only findings that it states as present count."""
    words = lexicon.load()
    reports = list(read(path, odd=odd))
    mentions = [
        [mention for mention in negation.mentions(report.text, words) if mention.assertion == "present"]
        for report in reports
    ]
    present = [{mention.finding for mention in stated} for stated in mentions]
    abnormal = {name for name, finding in words.findings.items() if finding.abnormal}
    normal = [found for report, found in zip(reports, present, strict=True) if report.normal]
    pairs = {
        name: [(bool(report.terms(name)), name in found) for report, found in zip(reports, present, strict=True)]
        for name in MESH
    }
    sides = {name: [_same_side(*pair, name) for pair in zip(reports, mentions, strict=True)] for name in MESH}
    called_abnormal = sum(bool(found & abnormal) for found in normal)
    return Accuracy(len(reports), agreements(pairs), rates(sides, None), len(normal), called_abnormal)


def _same_side(report: OpenIReport, mentions: Sequence[negation.Mention], name: str) -> bool | None:
    expected = report.sides(name)
    sides = {side for mention in mentions if mention.finding == name for side in mention.sides}
    return sides == expected if sides and expected else None


def markdown(accuracy: Accuracy) -> str:
    """Return the table of ``docs/evaluation.md``."""
    rows = [
        "| finding | TP | FP | FN | sensitivity (95 %) | specificity (95 %) | PPV (95 %) | same side |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, result in accuracy.findings.items():
        counts = result.counts
        numbers = (counts.true_positive, counts.false_positive, counts.false_negative)
        shares = map(interval, (result.sensitivity, result.specificity, result.ppv))
        side = accuracy.sides[name]
        same = f"{side.hits} of {side.count}" if side.count else "-"
        rows.append(f"| {' | '.join([name, *map(str, numbers), *shares, same])} |")
    normal = f"{accuracy.called_abnormal} of {accuracy.normal}"
    return "\n".join(
        [*rows, "", f"{accuracy.reports:,} reports. Read as abnormal: {normal} reports that MeSH calls normal."]
    )


def main() -> int:
    """Print the table."""
    path = archive()
    if path is None:
        print(f"requires {PACKAGE} {VERSION}: pip install --no-deps {PACKAGE}=={VERSION}", file=sys.stderr)
        return 2
    print(markdown(measure(path)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
