"""Extraction of findings from radiology sentences, including negation and uncertainty."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest

from pedcxr_client import InputError
from pedcxr_client.evaluation import lexicon, negation

SHIPPED = lexicon.load()


def mentioned(report: str) -> dict[str, str]:
    """Return the findings that are present or uncertain."""
    return {name: str(status) for name, status in negation.read(report, SHIPPED).items() if status != "absent"}


def present(report: str) -> set[str]:
    return {name for name, status in mentioned(report).items() if status == "present"}


@pytest.mark.parametrize(
    ("report", "findings"),
    [
        ("There is consolidation in the left lower zone.", {"consolidation"}),
        ("Right upper lobe pneumonia.", {"consolidation"}),
        ("Patchy airspace opacities in both lower lobes.", {"consolidation"}),
        ("Blunting of the left costophrenic angle.", {"pleural_effusion"}),
        ("The costophrenic angles are blunted.", {"pleural_effusion"}),
        ("Small left apical pneumothorax.", {"pneumothorax"}),
        ("The cardiac silhouette is mildly enlarged.", {"cardiomegaly"}),
        ("Increased cardiothoracic ratio.", {"cardiomegaly"}),
        ("Right middle lobe collapse with volume loss.", {"atelectasis"}),
        ("The lungs are hyperinflated with flat diaphragms.", {"hyperinflation"}),
        ("Bilateral perihilar peribronchial cuffing.", {"bronchial_thickening"}),
        ("Diffuse ground-glass opacities, hyaline membrane disease.", {"respiratory_distress_syndrome"}),
        ("Hilar lymphadenopathy.", {"lymphadenopathy"}),
        ("The upper mediastinum is abnormally wide.", {"mediastinal_widening"}),
        ("Mediastinal shift to the left.", {"mediastinal_shift"}),
        ("Healing fractures of the posterior ribs.", {"fracture"}),
        ("Radiopaque foreign body in the oesophagus.", {"foreign_body"}),
        ("Left congenital diaphragmatic hernia.", {"diaphragmatic_hernia"}),
        ("The thymus is normal.", {"thymus_normal"}),
        ("The wide upper mediastinum is a normal thymus at this age.", {"thymus_normal"}),
        ("No thymic shadow is seen.", {"thymus_absent"}),
        ("The thymus is not visualised.", {"thymus_absent"}),
        ("An endotracheal tube ends above the carina.", {"endotracheal_tube"}),
        ("An endotracheal tube ends in the right main bronchus.", {"endotracheal_tube", "device_malposition"}),
        ("The umbilical venous catheter is malpositioned.", {"central_line", "device_malposition"}),
        ("A nasogastric tube and a chest tube are in place.", {"enteric_tube", "chest_tube"}),
    ],
)
def test_findings_are_recognised(report, findings):
    assert present(report) == findings
    assert present(f"**FINDINGS:**\n- {report}") == findings, "in markdown"


@pytest.mark.parametrize(
    "report",
    [
        "No pleural effusion, pneumothorax, or focal consolidation.",
        "No pleural effusion or\npneumothorax.",
        "No evidence of pneumonia.",
        "The heart is not enlarged.",
        "Neither effusion nor pneumothorax.",
        "The lungs are free of consolidation and effusion.",
        "Pleural effusion: none. Pneumothorax: absent.",
        "Pneumothorax is not seen.",
        "A pneumothorax has not been identified.",
        "The consolidation has resolved.",
        "No opacity to suggest pneumonia.",
        "No findings suspicious for pneumonia.",
        "No definite pneumothorax.",
        "Pneumonia is unlikely.",
        "Normal heart size without cardiomegaly.",
        "INDICATION: pneumonia? effusion?\nFINDINGS: Clear lungs.",
        "CLINICAL HISTORY: cough, known pneumothorax.\n\nIMPRESSION: Normal chest.",
        "COMPARISON: pneumonia of last week.\nFINDINGS: Normal.",
        "Heart size is normal. The lungs are clear. The diaphragms are sharp.",
        "",
    ],
)
def test_negated_findings_are_absent(report):
    assert mentioned(report) == {}


@pytest.mark.parametrize(
    ("report", "findings"),
    [
        ("No effusion, the heart is enlarged.", {"cardiomegaly"}),
        ("No pneumothorax with small left effusion.", {"pleural_effusion"}),
        ("No cardiomegaly, but there is a small effusion.", {"pleural_effusion"}),
        ("There is no consolidation and there is a large effusion.", {"pleural_effusion"}),
        ("The heart is enlarged and an effusion is not seen.", {"cardiomegaly"}),
        ("Effusion no longer seen, pneumothorax persists.", {"pneumothorax"}),
        ("No change in the right pleural effusion.", {"pleural_effusion"}),
        ("The pneumothorax has not completely resolved.", {"pneumothorax"}),
        ("No effusion. Pneumonia.", {"consolidation"}),
        ("No effusion\nPneumonia", {"consolidation"}),
        ("No effusion\n- pneumonia", {"consolidation"}),
        ("No pneumonia on the left. Right lower lobe pneumonia.", {"consolidation"}),
    ],
)
def test_scope_of_a_negation(report, findings):
    assert present(report) == findings
    assert set(mentioned(report)) == findings


@pytest.mark.parametrize(
    "report",
    [
        "Possible pneumonia.",
        "Pneumonia cannot be excluded.",
        "Findings suspicious for pneumonia.",
        "No effusion, possible pneumonia.",
        "Cannot exclude pneumonia.",
        "This may represent pneumonia.",
        "Pneumonia is possible.",
        "Pneumonia?",
    ],
)
def test_uncertain_findings(report):
    assert mentioned(report) == {"consolidation": "uncertain"}


def test_strongest_mention_counts():
    assert mentioned("Possible pneumonia. No effusion. Consolidation in the left lung.") == {"consolidation": "present"}
    assert mentioned("No pneumonia. Pneumonia cannot be excluded.") == {"consolidation": "uncertain"}


def test_bundled_lexicon_has_version_and_digest():
    assert SHIPPED.version == "1"
    assert SHIPPED.sha256 == hashlib.sha256(lexicon.SHIPPED.read_bytes()).hexdigest()
    assert {name for name, finding in SHIPPED.findings.items() if not finding.abnormal} == {
        "thymus_normal", "endotracheal_tube", "enteric_tube", "central_line", "chest_tube",
    }  # fmt: skip


def test_custom_lexicon(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text("version = '7'\n[findings.stripe]\nterms = ['stripes?']\n[negation]\nbefore = ['sans']\n")
    own = lexicon.load(path)
    assert own.version == "7" and own.sha256 != SHIPPED.sha256
    assert negation.read("A stripe.", own) == {"stripe": "present"}
    assert negation.read("Sans stripe.", own) == {"stripe": "absent"}
    assert negation.read("No stripe.", own) == {"stripe": "present"}, "only the words of this lexicon negate"
    assert negation.read("A striped shirt.", own) == {"stripe": "absent"}, "terms match whole words"
    assert negation.read("x", replace(own, findings={})) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "findings: must contain at least one"),
        ("not toml", "not valid TOML"),
        ("[findings.a]\nterms = 'x'", r"findings\.a\.terms: must be a list"),
        ("[findings.a]\nterms = ['(']", r"findings\.a\.terms: contains an invalid regular expression"),
        ("[findings.a]\nterm = ['x']", r"findings\.a: must be a table with the keys terms"),
        ("[findings.a]\nabnormal = true", r"findings\.a: must have terms or phrases"),
        ("[findings.a]\nterms = ['x']\nabnormal = 1", "abnormal must be true or false"),
        ("[findings.a]\nterms = ['x']\n[negation]\nbefore = [1]", r"negation\.before: must be a list"),
    ],
)
def test_invalid_lexicon_names_the_key(tmp_path, text, message):
    path = tmp_path / "own.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        lexicon.load(path)
    with pytest.raises(InputError, match="No such file"):
        lexicon.load(tmp_path / "absent.toml")
