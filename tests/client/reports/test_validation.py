"""Validation of finished texts: loops, prompt echoes and texts that are not natural language."""

from __future__ import annotations

import importlib.metadata
import re
import tarfile
import time

import pytest
from hypothesis import given
from hypothesis import strategies as some

from pedcxr_client import LoopingReport, NotEnglish, NotReport, NotText, PromptEcho, ReportError, TruncatedReport
from pedcxr_client.reports.validation import Defect, defect, is_echo, is_loop, is_not_text, language, mentions_prior
from pedcxr_client.request.prompts import INSTRUCTION, card
from pedcxr_serve.demo import expected_report as phantom_report
from pedcxr_serve.demo.findings import sample
from tests.support.servers.fake_engine import Answer

NORMAL = "The lungs are clear. No focal consolidation, pleural effusion or pneumothorax. The heart size is normal."
REPORTS = [
    NORMAL,
    "Normal.",
    "Normal chest.",
    f"FINDINGS:\n{NORMAL}\n\nIMPRESSION:\n{NORMAL}",
    "**FINDINGS:**\n- **Lungs:** clear\n- **Heart:** normal\n\n**IMPRESSION:**\n1. No acute disease.",
    "No focal consolidation. " * 5,
    "Right lung: no focal consolidation. Left lung: no focal consolidation. Impression: no focal consolidation.",
    "Upper zone: clear. Mid zone: clear. Lower zone: clear. " * 2,
    "Fractures of the right 3rd, 4th, 5th, 6th, 7th, 8th, 9th and 10th ribs.",
    "T1 normal, T2 normal, T3 normal, T4 normal, T5 normal, T6 normal, T7 normal, T8 normal, T9 normal.",
    "Cardiothoracic ratio 0.48 (22.1/46.0). ETT tip 1.5 cm above the carina (T2).",
    "I cannot exclude pneumonia. I am unable to exclude a fracture.",
    "The effusion is clear to the left of the c\u0153ur en sabot, \u2265 5 mm.\r\n\tNormal.",
    "The thymus and the hilar contours look as expected.",
    "Cardiomegaly.",
    "Chest X-ray of a 5-year-old male: normal. INDICATION: cough.",
    "You are reminded that the patient is a child. Lungs clear.",
]
SYSTEM = "You are an expert paediatric radiologist who reads chest films. Describe lungs, heart and bones."


@pytest.mark.parametrize("text", REPORTS)
def test_reports_are_accepted(text):
    assert not is_loop(text)
    assert not is_echo(text, SYSTEM)
    assert not is_not_text(text)
    assert defect(text) is None
    assert language(text) == "en"


def test_reports_of_all_phantoms_are_accepted():
    texts = [phantom_report.text(sample(seed)) for seed in range(300)]
    assert len(set(texts)) > 100
    assert not [text for text in texts if is_loop(text) or is_not_text(text) or is_echo(text, card())]
    assert {(defect(text), language(text)) for text in texts} == {(None, "en")}


def test_reports_of_a_hospital_are_accepted():
    """Check the reports of Open-i (de-identified, MeSH XML), which a package of PyPI contains."""
    try:
        package = importlib.metadata.distribution("torchxrayvision")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("torchxrayvision is not installed; its wheel contains the reports of Open-i")
    accepted = 0
    with tarfile.open(str(package.locate_file("torchxrayvision/data/NLMCXR_reports.tgz"))) as archive:
        for member in archive:
            file = archive.extractfile(member)
            page = file.read().decode() if file is not None else ""
            texts = re.findall(r'<AbstractText Label="(FINDINGS|IMPRESSION)">([^<]+)<', page)
            if report := "\n".join(f"{label}: {text}" for label, text in texts):
                assert (defect(report), language(report)) == (None, "en"), member.name
                accepted += 1
    assert accepted == 3927


word = some.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=9)


@given(some.lists(word, min_size=1, max_size=60), some.lists(word, max_size=40), some.sampled_from([" ", ", ", "\n"]))
def test_repeated_unit_is_a_loop_at_any_position(unit, before, joint):
    times = max(4, -(-20 // len(unit)))
    assert is_loop(" ".join([*before, *unit * times]))
    assert is_loop(joint.join([*unit * times, *before]).upper())


@given(some.lists(word, max_size=300, unique=True), some.integers(1, 2))
def test_words_that_occur_at_most_twice_are_not_a_loop(words, times):
    assert not is_loop(" ".join(words * times))


@given(some.lists(some.sampled_from(NORMAL.split(". ") + REPORTS[6].split(". ")), max_size=12, unique=True))
def test_distinct_sentences_in_any_order_are_not_a_loop(sentences):
    assert not is_loop(". ".join(sentences))


@pytest.mark.parametrize(
    "text",
    [
        "no " * 20,
        "lungs clear " * 10,
        "No focal consolidation. " * 7,
        f"{NORMAL} " * 3,
        "FINDINGS: clear. IMPRESSION: " + "There is no pneumothorax. " * 5 + "There is",
        " ".join(f"{count}. There is a nodule of the lung." for count in range(1, 30)),
        "The lungs are clear. " + "the heart, " * 40,
    ],
)
def test_loops_are_detected(text):
    assert is_loop(text)
    assert not is_loop(text[: len(text) // 8])


def test_long_text_is_fast():
    words = [f"w{number * number % 977}" for number in range(8000)] + ["a", "b", "c"] * 3
    start = time.process_time()
    is_loop(" ".join(words))
    is_not_text("\u00e9" * 100_000)
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    "unit", ["\n", "\n- ", "-", " ", "_", "[a", ": ", "as a x y ", "i am ", "my ", "prior a b ", "no a "]
)
def test_repeated_characters_take_linear_time(unit):
    def seconds(length: int) -> float:
        text, start = unit * (length // len(unit)), time.process_time()
        for check in (defect, language, mentions_prior):
            check(text)
        return time.process_time() - start

    assert seconds(20_000) < 1, "a quadratic rule takes more than 5 s"


@pytest.mark.parametrize(
    "text",
    [
        "<start_of_turn>model\nNormal.",
        "Normal.<end_of_turn>",
        "<start_of_image>",
        "Normal. <image_soft_token>",
        card(),
        "user\n\n\n\n" + card().upper() + "\nmodel\nNormal chest.",
        INSTRUCTION.replace(" ", "\n"),
        f"{SYSTEM}\n\nNormal chest.",
        "Sure! You are an expert paediatric radiologist, who reads films.",
    ],
)
def test_prompt_echoes_are_detected(text):
    assert is_echo(text, SYSTEM)


def test_short_system_text_is_not_an_echo():
    assert not is_echo("Lungs clear.", "Lungs")
    assert is_echo("you are a radiologist!", "You are a radiologist.")


@pytest.mark.parametrize(
    "text",
    [
        "Lungs \ufffd clear.",
        "Lungs\x00clear",
        "\x1b[31mLungs clear",
        "Lungs \ud800",
        "\ue000\ue001",
        "!!!!!!! ....... ????? ---- normal",
        "0.1 0.2 0.3 0.4 0.5 mm",
        "<pad><pad><pad>",
        "<unused32>",
        "\u2028",
        "x" * 101,
    ],
)
def test_unnatural_text_is_detected(text):
    assert is_not_text(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("I'm sorry, but I cannot provide a radiology report. Please consult a doctor.", "refusal"),
        ("**I\u2019m sorry.**", "refusal"),
        ("I apologize, the lungs are not visible to me.", "refusal"),
        ("As an AI language model I am unable to interpret images.", "refusal"),
        ("The lungs are clear. As an AI, I cannot diagnose.", "refusal"),
        ("FINDINGS: I am unable to provide the state of the lungs.", "refusal"),
        ("I can't help with that, clear?", "refusal"),
        ("Unfortunately, I see no lungs.", "refusal"),
        ("I do not have access to the normal film.", "refusal"),
        ("Please upload the chest X-ray so that I can describe the lungs.", "refusal"),
        ("No image was provided. The lungs are not seen.", "refusal"),
        ("The", "no finding"),
        ("The lungs", "no finding"),
        ("N/A", "no finding"),
        ("FINDINGS:", "no finding"),
        ("**FINDINGS:**\n\n**IMPRESSION:**", "no finding"),
        ("Here is the report:", "no finding"),
        ("def f(x): return x", "no finding"),
        ("This is a chest X-ray of a 5-year-old male.", "no finding"),
        ("<unused94>thought\nThe lungs are clear.<unused95>Clear.", "thoughts"),
        ("thought\nThe user wants a report. Lungs clear.", "thoughts"),
        ("<think>Lungs?</think>The lungs are clear.", "thoughts"),
        ('```json\n{"findings": "clear"}\n```', "markup"),
        ('{"findings": "The lungs are clear."}', "markup"),
        ("<p>The lungs are clear.</p>", "markup"),
    ],
)
def test_texts_that_are_no_reports_are_detected(text, why):
    assert defect(text) == why


@pytest.mark.parametrize(
    ("text", "tag"),
    [
        ("Plămânii sunt clari. Opacitate alveolară în lobul inferior drept. Cordul este normal.", "ro"),
        ("FINDINGS: Plamanii sunt clari. Cord normal.\nIMPRESSION: Normal.", "ro"),
        ("双肺纹理清晰，未见明显实变影。心影大小正常。", "zh"),
        ("肺野に異常なし。", "ja"),
        ("Легкие без очаговых изменений.", "und-Cyrl"),
        ("Die Lunge ist frei. Herz normal groß. Kein Erguss.", "de"),
        ("Les poumons sont clairs. Le cœur est normal.", "fr"),
        ("Pulmones sin consolidaciones. Silueta cardiaca normal.", "es"),
        ("Normal akciğer grafisi. Efüzyon izlenmedi.", "tr"),
        ("Płuca bez zmian ogniskowych.", "pl"),
        ("Résultat normal", "und"),
        ("The lungs are clear, as in pneumonie à bascule.", "en"),
    ],
)
def test_language(text, tag):
    assert language(text) == tag


@pytest.mark.parametrize(
    ("text", "mentions"),
    [
        ("The effusion is unchanged.", True),
        ("Compared with ___, the effusion is smaller.", True),
        ("In comparison to the prior study, no change.", True),
        ("Similar to the previous\nchest x-ray.", True),
        ("Effusion, increased from the earlier film.", True),
        ("The opacity is AGAIN SEEN.", True),
        ("Interval removal of the tube.", True),
        ("New effusion since the last film.", True),
        ("A tube ends ___ cm above the carina.", True),
        ("Lungs clear, see XXXX.", True),
        ("Dr. [NAME] was informed.", True),
        ("No comparison is available.", False),
        ("Short interval follow-up is recommended.", False),
        ("Prior granulomatous disease. Previous surgery.", False),
        ("The patient is unstable.", False),
        ("__FINDINGS:__ Clear.\n\n___\n\n**IMPRESSION:** Normal [1].", False),
        (NORMAL, False),
    ],
)
def test_comparisons_and_placeholders_are_flagged(text, mentions):
    assert mentions_prior(text) is mentions


@given(some.text())
def test_checks_accept_any_text(text):
    assert {is_loop(text), is_echo(text, text), is_not_text(text), mentions_prior(text)} <= {True, False}
    assert language(text) and defect(text) in (None, *Defect.__args__)


@pytest.mark.parametrize(
    ("text", "finish", "kind", "outcome"),
    [
        ("No effusion, no edema. " * 30, "stop", LoopingReport, "looping"),
        ("No effusion, no edema. " * 30, "length", LoopingReport, "looping"),
        (NORMAL, "length", TruncatedReport, "truncated"),
        (card() + " Clear lungs.", "stop", PromptEcho, "prompt_echo"),
        ("Clear \ufffd lungs.", "stop", NotText, "not_text"),
        ("<pad>" * 99, "stop", NotText, "not_text"),
        ("**", "length", TruncatedReport, "truncated"),
        ("I'm sorry, but I cannot see a film.", "stop", NotReport, "not_report"),
        ("<unused94>thought\nLungs are clear.<unused95>", "stop", NotReport, "not_report"),
        ("FINDINGS:\n\nIMPRESSION:", "stop", NotReport, "not_report"),
        ("Cordul este normal. Plămânii sunt clari.", "stop", NotEnglish, "not_english"),
        ("I'm sorry, the lungs", "length", TruncatedReport, "truncated"),
    ],
)
def test_rejected_text_is_an_error_with_the_text(engine, film, twin, text, finish, kind, outcome):
    engine.answer = Answer(pieces=(text[:4], text[4:]), finish=finish)
    with pytest.raises(ReportError) as caught:
        twin.report(engine.url, film)
    error = caught.value
    assert type(error) is kind
    assert (error.text, error.finish_reason, error.outcome, error.exit_code) == (text, finish, outcome, 4)
    assert text[:20] not in str(error)
    assert len(engine.chats) == 1
