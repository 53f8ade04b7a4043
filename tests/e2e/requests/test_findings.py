"""The demo checkpoint finds what is drawn: 500 phantoms that it never saw, through the server, by ``pedcxr eval``."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest

from pedcxr_client import Client, FilmRequest
from pedcxr_client.cli.main import main
from pedcxr_serve.demo import drawing, expected_report
from tests.benchmarks.local_server import LocalServer
from tests.e2e.conftest import UNSEEN

pytestmark = pytest.mark.slow

FILMS, AT_ONCE = 500, 32
RATES, ENOUGH = ("sensitivity", "specificity"), 0.97
CASES = {str(seed): drawing.sample(seed) for seed in range(UNSEEN, UNSEEN + FILMS)}


@pytest.fixture(scope="module")
def run(running: LocalServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the server writes of them, as lines of a run."""

    path = tmp_path_factory.mktemp("findings") / "run.jsonl"
    requests = (
        FilmRequest(drawing.encode_png(drawing.render(case, int(name))), age=case.age, sex=case.sex, key=name)
        for name, case in CASES.items()
    )
    with Client(running.url) as client, path.open("w") as file:
        for result in client.reports(requests, concurrency=AT_ONCE):
            assert result.report is not None, result.error
            file.write(json.dumps({"id": result.request.key, **result.report.as_dict()}) + "\n")
    return path


@pytest.fixture(scope="module")
def reference(run: Path) -> Path:
    """The one right report of each."""
    path = run.with_name("reference.csv")
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "reference", "age", "sex"])
        rows.writerows(
            [name, expected_report.text(case), case.age or "", case.sex or ""] for name, case in CASES.items()
        )
    return path


@pytest.fixture(scope="module")
def drawn(run: Path) -> Path:
    """A lexicon of the demo's own findings, with side and zone: its sentences, word for word."""
    path = run.with_name("drawn.toml")
    sentences = {
        name: re.escape(" ".join(sentence.lower().split())) for name, sentence in expected_report.SENTENCES.items()
    }
    path.write_text("".join(f"[findings.{json.dumps(name)}]\nphrases = ['{one}']\n" for name, one in sentences.items()))
    return path


def figures(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    assert main(["eval", *arguments, "--json"]) == 0
    found: dict = json.loads(capsys.readouterr().out)
    assert found["finished"]["hits"] == found["films"] == FILMS
    return found


def low(found: dict) -> dict[str, list[float]]:
    """Findings whose sensitivity or specificity is below what is enough."""
    rates = {name: [one[kind]["value"] for kind in RATES] for name, one in found["findings"].items()}
    return {name: both for name, both in rates.items() if min(both) < ENOUGH}


def test_each_finding_of_the_lexicon(run: Path, reference: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = figures(capsys, str(run), str(reference))
    assert len(found["findings"]) >= 11
    assert all(one["counts"]["true_positive"] >= 20 for one in found["findings"].values())
    assert low(found) == {}
    assert found["overlap"]["bleu4"] > 99


def test_each_finding_that_can_be_drawn(
    run: Path, reference: Path, drawn: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = figures(capsys, str(run), str(reference), "--lexicon", str(drawn))
    assert set(expected_report.FINDINGS) <= set(found["findings"])
    assert low(found) == {}


def test_the_demo_model_looks_at_the_film(
    running: LocalServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sided = [name for name, case in CASES.items() if any(finding.side for finding in case.findings)][:6]
    for name in sided:
        (tmp_path / f"{name}.png").write_bytes(drawing.encode_png(drawing.render(CASES[name], int(name))))
    films = [str(tmp_path / f"{name}.png") for name in sided]
    assert main(["probe", *films, "--url", running.url, "--age", "5y", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["probes"]
    assert {probe: one["asked"] for probe, one in found.items()} == dict.fromkeys(found, len(films))
    changed = {probe: one["changed"] for probe, one in found.items()}
    assert changed["again"] == 0
    assert changed["black"] == changed["mirrored"] == len(films)
    assert changed["shuffled"] >= len(films) - 1, "two of them may show the same"
