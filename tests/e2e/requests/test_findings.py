"""Sensitivity and specificity of the demo checkpoint on 500 unseen phantoms, through the server and ``pedcxr eval``."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest

from pedcxr_client import Client, FilmRequest
from pedcxr_client.cli.main import main
from pedcxr_serve.demo import drawing, expected_report
from pedcxr_serve.demo.findings import sample
from tests.e2e.served_reports import UNSEEN
from tests.support.servers.local_server import LocalServer

pytestmark = pytest.mark.slow

FILMS, CONCURRENCY = 500, 32
RATES, TARGET = ("sensitivity", "specificity"), 0.97
CASES = {str(seed): sample(seed) for seed in range(UNSEEN, UNSEEN + FILMS)}


@pytest.fixture(scope="module")
def run(running: LocalServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run file with the reports of all phantoms."""
    path = tmp_path_factory.mktemp("findings") / "run.jsonl"
    requests = (
        FilmRequest(drawing.encode_png(drawing.render(case, int(name))), age=case.age, sex=case.sex, key=name)
        for name, case in CASES.items()
    )
    with Client(running.url) as client, path.open("w") as file:
        for result in client.reports(requests, concurrency=CONCURRENCY):
            assert result.report is not None, result.error
            file.write(json.dumps({"id": result.request.key, **result.report.as_dict()}) + "\n")
    return path


@pytest.fixture(scope="module")
def reference(run: Path) -> Path:
    """Return the reference file with the correct report of each phantom."""
    path = run.with_name("reference.csv")
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "reference", "age", "sex"])
        rows.writerows(
            [name, expected_report.text(case), case.age or "", case.sex or ""] for name, case in CASES.items()
        )
    return path


@pytest.fixture(scope="module")
def drawn_lexicon(run: Path) -> Path:
    """Return a lexicon of the demo's findings with side and zone; phrases are its sentences, word for word."""
    path = run.with_name("drawn_lexicon.toml")
    sentences = {
        name: re.escape(" ".join(sentence.lower().split())) for name, sentence in expected_report.SENTENCES.items()
    }
    path.write_text("".join(f"[findings.{json.dumps(name)}]\nphrases = ['{one}']\n" for name, one in sentences.items()))
    return path


def figures(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    assert main(["eval", *arguments, "--json"]) == 0
    result: dict = json.loads(capsys.readouterr().out)
    assert result["finished"]["hits"] == result["films"] == FILMS
    return result


def below_target(result: dict) -> dict[str, list[float]]:
    """Return the findings whose sensitivity or specificity is below the target."""
    rates = {name: [one[kind]["value"] for kind in RATES] for name, one in result["findings"].items()}
    return {name: both for name, both in rates.items() if min(both) < TARGET}


def test_each_finding_of_the_lexicon(run: Path, reference: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = figures(capsys, str(run), str(reference))
    assert len(result["findings"]) >= 11
    assert all(one["counts"]["true_positive"] >= 20 for one in result["findings"].values())
    assert below_target(result) == {}
    assert result["overlap"]["bleu4"] > 99


def test_each_drawable_finding(
    run: Path, reference: Path, drawn_lexicon: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = figures(capsys, str(run), str(reference), "--lexicon", str(drawn_lexicon))
    assert set(expected_report.FINDINGS) <= set(result["findings"])
    assert below_target(result) == {}


def test_the_probe_confirms_that_the_demo_model_uses_the_film(
    running: LocalServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The impression names only abnormal findings.
    impressions = {name: expected_report.text(case).partition("IMPRESSION")[2] for name, case in CASES.items()}
    sided = [name for name, text in impressions.items() if re.search(r"\b(left|right)\b", text, re.I)][:6]
    for name in sided:
        (tmp_path / f"{name}.png").write_bytes(drawing.encode_png(drawing.render(CASES[name], int(name))))
    films = [str(tmp_path / f"{name}.png") for name in sided]
    assert main(["probe", *films, "--url", running.url, "--age", "5y", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)["probes"]
    assert {probe: one["asked"] for probe, one in result.items()} == dict.fromkeys(result, len(films))
    changed = {probe: one["changed"] for probe, one in result.items()}
    assert changed["again"] == 0
    assert changed["black"] == changed["mirrored"] == len(films)
    assert changed["shuffled"] >= len(films) - 1, "two films may show the same finding"
