"""The accuracy of the lexicon on real reports stays within its limits and equals the documented figures."""

from __future__ import annotations

import pytest

from tests.client.evaluation import lexicon_accuracy
from tests.client.evaluation.lexicon_accuracy import Accuracy
from tests.support.paths import ROOT

MAX_FALSE_POSITIVES = {"pneumothorax": 4, "pleural_effusion": 7, "consolidation": 24, "fracture": 9}
# True positives of version 1 of the lexicon, which read "negative for pneumothorax" as pneumothorax.
VERSION_1 = {
    "pneumothorax": 12, "pleural_effusion": 76, "consolidation": 220, "fracture": 27, "cardiomegaly": 159,
    "atelectasis": 169, "pulmonary_oedema": 37, "hyperinflation": 110, "mass_or_nodule": 52, "lymphadenopathy": 9,
    "scoliosis": 21,
}  # fmt: skip


@pytest.fixture(scope="module")
def accuracy() -> Accuracy:
    path = lexicon_accuracy.archive()
    if path is None:
        pytest.skip(f"requires the reports in {lexicon_accuracy.PACKAGE} {lexicon_accuracy.VERSION}")
    return lexicon_accuracy.measure(path)


def test_false_positives_are_within_the_limits(accuracy: Accuracy) -> None:
    assert accuracy.reports == 1965
    numbers = {name: accuracy.findings[name].counts.false_positive for name in MAX_FALSE_POSITIVES}
    assert all(numbers[name] <= limit for name, limit in MAX_FALSE_POSITIVES.items()), numbers
    assert accuracy.called_abnormal <= 7 and accuracy.normal == 689


def test_sensitivity_is_not_lower_than_before(accuracy: Accuracy) -> None:
    for name, agreement in accuracy.findings.items():
        assert agreement.sensitivity.hits >= VERSION_1[name] - 0.02 * agreement.sensitivity.count, name


def test_documented_figures_are_the_measured_ones(accuracy: Accuracy) -> None:
    assert lexicon_accuracy.markdown(accuracy) in (ROOT / "docs/evaluation.md").read_text()


def test_package_is_found_by_its_version_without_an_import(tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    info, data = tmp_path / "torchxrayvision-1.5.7.dist-info", tmp_path / lexicon_accuracy.ARCHIVE
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torchxrayvision\nVersion: 1.5.7\n")
    assert lexicon_accuracy.archive() != data, "no archive"
    data.parent.mkdir(parents=True)
    data.touch()
    assert lexicon_accuracy.archive() == data
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torchxrayvision\nVersion: 1.5.6\n")
    assert lexicon_accuracy.archive() is None
