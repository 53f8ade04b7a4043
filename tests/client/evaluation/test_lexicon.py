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
        ("Fluid in the right pleural space.", {"pleural_effusion"}),
        ("Pleurisy on the left.", {"pleural_effusion"}),
        ("Air in the pleural space on the right.", {"pneumothorax"}),
        ("Collapsed right upper lobe.", {"atelectasis"}),
        ("Left retrocardiac opacity.", {"consolidation"}),
        ("Hazy opacity on the left side.", {"consolidation"}),
        ("White-out of the left hemithorax.", {"consolidation"}),
        ("Opacity of costal intensity in the right lower lobe.", {"consolidation"}),
        ("Coin lesion in the right lung.", {"mass_or_nodule"}),
        ("Cavity in the left upper lobe.", {"mass_or_nodule"}),
        ("Hyperlucent left lung.", {"hyperinflation"}),
        ("Lobar emphysema on the left.", {"hyperinflation"}),
        ("Flattening of both hemidiaphragms.", {"hyperinflation"}),
        ("Mild dextroscoliosis.", {"scoliosis"}),
        ("The heart is moderately to severely enlarged.", {"cardiomegaly"}),
        ("Opacity within the right middle and lower lobes.", {"consolidation"}),
        ("Vague opacity in the left base, bibasilar opacities.", {"consolidation"}),
        ("Cardiothoracic index is increased (0.6).", {"cardiomegaly"}),
        ("Accentuated bronchovascular pattern.", {"bronchial_thickening"}),
        ("Wide superior mediastinum due to thymus.", {"thymus_normal"}),
        ("Thymus is prominent, normal for age.", {"thymus_normal"}),
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
        "Negative for pneumothorax, pleural effusion, or focal airspace consolidation.",
        "Lungs negative for consolidation or effusion.",
        "Absent pleural effusion.",
        "Effusion absent. Pneumothorax absent.",
        "Pneumothorax: No. Pleural effusion: no; consolidation: nil",
        "Consolidation - none. Effusion - negative.",
        "Pneumothorax (-). Effusion (–)",
        "No: pneumothorax",
        "1.No evidence of pneumonia.",
        "Unlikely pneumonia.",
        "Pneumonia unlikely.",
        "Pneumonia is less likely.",
        "History of pneumonia. Lungs clear.",
        "Clinical correlation for pneumonia is recommended.",
        "Normal chest. If symptoms persist, rule out foreign body.",
        "Evaluation for pneumothorax is limited.",
        "The overlying soft tissues could obscure a small nodule.",
        "There has been clearing of left base airspace opacities.",
        "Chest tube removed.",
        "Status post removal of chest tube, no residual pneumothorax.",
        "No focal consolidation, large pleural effusion or pneumothorax is identified.",
        "No focal consolidation, pneumothorax, or large effusion.",
        "The pleural cavity is normal. The bony thoracic cavity is intact. Cavity of the heart is normal.",
        "No mass effect.",
        "Soft tissue edema of the neck. Subcutaneous emphysema.",
        "Heart failure, chronic obstructive pulmonary disease, chronic lung disease.",
        "Impacted fracture of the left femur. Catheter fracture.",
        "INDICATION: pneumonia? effusion?\nFINDINGS: Clear lungs.",
        "INDICATION: pneumonia? effusion? FINDINGS: Clear lungs. IMPRESSION: Normal.",
        "COMPARISON: known effusion. Pneumonia of last week. IMPRESSION: Normal chest.",
        "INDICATION:\nKnown pneumothorax.\nFINDINGS: Clear.",
        "Chest AP INDICATION: pneumonia FINDINGS: clear",
        "Indication: pneumonia. Normal chest.",
        "Indication: pneumonia",
        "**INDICATION:**\n\nFever.\nPneumonia on the left.\n\nThe lungs are clear.",
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
        ("No pneumothorax, moderate right pleural effusion.", {"pleural_effusion"}),
        ("No pneumothorax and small left pleural effusion.", {"pleural_effusion"}),
        ("No effusion, mild cardiomegaly.", {"cardiomegaly"}),
        ("Atelectasis rather than pneumonia.", {"atelectasis"}),
        ("No pleural effusion is seen on the right, but present on the left.", {"pleural_effusion"}),
        ("Pleural effusion absent on the right and present on the left.", {"pleural_effusion"}),
        ("Partial clearing of the pneumonia.", {"consolidation"}),
        ("1. No pneumonia. 2. Cardiomegaly.", {"cardiomegaly"}),
        ("1) No effusion 2) Pneumothorax on the left", {"pneumothorax"}),
        ("Heart size 3. Pneumothorax on the right.", {"pneumothorax"}),
        ("ET tube tip at T3. Pneumothorax on the right.", {"endotracheal_tube", "pneumothorax"}),
        ("Compared with 12.03.2019. Pneumonia on the right.", {"consolidation"}),
        ("There is pneumonia - right lower lobe.", {"consolidation"}),
        ("COMPARISON: None. FINDINGS: There is a large right pneumothorax. IMPRESSION: As above.", {"pneumothorax"}),
        ("EXAMINATION: Chest AP. FINDINGS: Left pleural effusion.", {"pleural_effusion"}),
        ("Comparison: none. Pneumonia on the right.", {"consolidation"}),
        ("Technique: AP view. There is a right pneumothorax.", {"pneumothorax"}),
        ("INDICATION: cough\nThere is a right pneumothorax.", {"pneumothorax"}),
        ("CHEST AP FINDINGS: Effusion.", {"pleural_effusion"}),
        ("COMPARISON: Effusion.\n\nThere is a right pneumothorax.\n\nIMPRESSION: As above.", {"pneumothorax"}),
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
        "? pneumonia",
        "Clear lungs, ?pneumonia",
        "Pneumonia suspected.",
        "Question pneumonia.",
    ],
)
def test_uncertain_findings(report):
    assert mentioned(report) == {"consolidation": "uncertain"}


@pytest.mark.parametrize(
    ("report", "sides"),
    [
        ("Left pleural effusion.", {"pleural_effusion": {"left"}}),
        ("Pleural effusion on the right.", {"pleural_effusion": {"right"}}),
        ("Bilateral effusions.", {"pleural_effusion": {"left", "right"}}),
        ("Bibasilar opacities.", {"consolidation": {"left", "right"}}),
        ("Blunting of the left costophrenic angle.", {"pleural_effusion": {"left"}}),
        ("Opacity in the right lower lobe.", {"consolidation": {"right"}}),
        ("Pneumonia in the left and right lower lobes.", {"consolidation": {"left", "right"}}),
        ("Left and right effusions.", {"pleural_effusion": {"left", "right"}}),
        ("Effusion in both hemithoraces.", {"pleural_effusion": {"left", "right"}}),
        ("The upright film shows an effusion.", {"pleural_effusion": set()}),
        (
            "Small left effusion and right lower lobe consolidation.",
            {"pleural_effusion": {"left"}, "consolidation": {"right"}},
        ),
        ("Right pneumothorax with a left effusion.", {"pneumothorax": {"right"}, "pleural_effusion": {"left"}}),
        (
            "Pneumonia in the left lower lobe, right effusion.",
            {"consolidation": {"left"}, "pleural_effusion": {"right"}},
        ),
        (
            "Pneumonia in the left lower lobe and right effusion.",
            {"consolidation": {"left"}, "pleural_effusion": {"right"}},
        ),
    ],
)
def test_side_of_a_finding(report, sides):
    assert {mention.finding: set(mention.sides) for mention in negation.mentions(report, SHIPPED)} == sides


def test_strongest_mention_counts():
    assert mentioned("Possible pneumonia. No effusion. Consolidation in the left lung.") == {"consolidation": "present"}
    assert mentioned("No pneumonia. Pneumonia cannot be excluded.") == {"consolidation": "uncertain"}


def test_bundled_lexicon_has_version_and_digest():
    assert SHIPPED.version == "2"
    assert SHIPPED.sha256 == hashlib.sha256(lexicon.SHIPPED.read_bytes()).hexdigest()
    assert {name for name, finding in SHIPPED.findings.items() if not finding.abnormal} == {
        "thymus_normal", "endotracheal_tube", "enteric_tube", "central_line", "chest_tube",
    }  # fmt: skip


def test_custom_lexicon(tmp_path):
    path = tmp_path / "own.toml"
    text = "version = '7'\n[findings.stripe]\nterms = ['stripes?']\n[negation]\nbefore = ['sans']\n"
    path.write_text(text, encoding="utf-8-sig")  # as an editor may save it
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
