"""``pedcxr eval`` as a command: figures calculated by hand, invalid files, and privacy of the output."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from pedcxr_client.cli.main import main
from pedcxr_client.evaluation import runs, statistics, subgroups

SECRET = "Popescu^Ana"
SICK, WELL = "Right pleural effusion.", "No pleural effusion."


def line(name: str, text: str | None = WELL, **more: object) -> dict[str, object]:
    return {"id": name, "text": text, "finish_reason": "stop", "model": "m", "model_revision": "r1", **more}


@pytest.fixture
def write(tmp_path):
    """Return a function that writes a run or a reference file and returns its path."""

    def write_rows(name: str, rows: list, *, encoding: str = "utf-8", end: str = "\n") -> str:
        path = tmp_path / name
        if name.endswith(".jsonl"):
            path.write_bytes(
                end.join(json.dumps(row) if isinstance(row, dict) else row for row in rows).encode(encoding)
            )
        else:
            with path.open("w", encoding=encoding, newline="") as file:
                csv.writer(file, lineterminator=end).writerows(rows)
        return str(path)

    return write_rows


def figures(capsys, *arguments: str) -> dict:
    assert main(["eval", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def counts(result: dict, name: str) -> tuple[int, ...]:
    return tuple(result["findings"][name]["counts"].values())


def test_counts_rates_and_intervals(write, capsys):
    """TP 8, FN 2, TN 5, FP 1. The Wilson interval of 8 of 10 is 0.490 to 0.943 (Newcombe 1998, formula 3)."""
    references = [*([SICK] * 10), *([WELL] * 6)]
    reports = [*([SICK] * 8), WELL, WELL, *([WELL] * 5), SICK]
    run = write("run.jsonl", [line(f"f{at}", text) for at, text in enumerate(reports)])
    reference = write("ref.csv", [["id", "reference"], *([f"f{at}", text] for at, text in enumerate(references))])
    result = figures(capsys, run, reference)
    assert counts(result, "pleural_effusion") == counts(result, "any abnormality") == (8, 1, 2, 5)
    sensitivity = result["findings"]["pleural_effusion"]["sensitivity"]
    assert sensitivity["value"] == 0.8
    assert (round(sensitivity["low"], 3), round(sensitivity["high"], 3)) == (0.490, 0.943)
    assert result["findings"]["pleural_effusion"]["specificity"]["value"] == pytest.approx(5 / 6)
    assert "pneumothorax" in result["unused"] and "pneumothorax" not in result["findings"]
    assert (result["distinct"], result["largest"], result["duplicates"]["hits"]) == (2, 9, 14)
    assert (result["all_normal"]["hits"], result["right_all_normal"]["hits"]) == (7, 6)
    assert result["models"] == ["m@r1"]
    assert len(result["lexicon_sha256"]) == 64


def test_finding_columns_with_empty_cells(write, capsys):
    run = write("run.jsonl", [line("a", SICK), line("b", SICK), line("c"), line("d", "Pneumonia.")])
    reference = write(
        "ref.csv",
        [["id", "Pleural Effusion", "pneumothorax"], ["a", "1", "0"], ["b", "0", ""], ["c", "1", "0"], ["d", "0", "0"]],
    )
    result = figures(capsys, run, reference)
    assert list(result["findings"]) == ["pleural_effusion", "pneumothorax", "any abnormality"]
    assert counts(result, "pleural_effusion") == (1, 1, 1, 1)
    assert counts(result, "pneumothorax") == (0, 0, 0, 3), "an empty cell is unknown and not counted"
    assert counts(result, "any abnormality") == (1, 1, 1, 1), "of the findings that the reference knows"
    assert result["overlap"] is None


def test_uncertain_option_decides_how_uncertain_findings_count(write, capsys):
    run = write("run.jsonl", [line("a", "Possible effusion.")])
    reference = write("ref.csv", [["id", "pleural_effusion"], ["a", "1"]])
    assert counts(figures(capsys, run, reference), "pleural_effusion") == (1, 0, 0, 0)
    assert counts(figures(capsys, run, reference, "--uncertain", "negative"), "pleural_effusion") == (0, 0, 1, 0)


def test_normal_thymus_and_tube_in_place_are_not_abnormal(write, capsys):
    run = write("run.jsonl", [line("a", "Normal thymus. An endotracheal tube ends above the carina.")])
    result = figures(capsys, run, write("ref.csv", [["id", "thymus_normal"], ["a", "1"]]))
    assert counts(result, "thymus_normal") == (1, 0, 0, 0)
    assert (counts(result, "any abnormality"), result["all_normal"]["hits"]) == ((0, 0, 0, 1), 1)


def test_failures_are_counted(write, capsys):
    run = write(
        "run.jsonl",
        [
            line("a"),
            {"id": "b", "error": {"type": "TimedOut"}},
            line("c", "cut off", finish_reason="length"),
            {"id": "d", "error": "x"},
            line("d"),  # from a later attempt
            line("only here"),
            {"id": "e", "error": "not in the reference"},
            line("blank", " "),
        ],
    )
    names = ["a", "b", "c", "d", "blank", "nowhere", "no where"]
    result = figures(capsys, run, write("ref.csv", [["id", "reference"], *([name, WELL] for name in names)]))
    assert (result["lines"], result["films"]) == (8, 5)
    assert (result["only_run"], result["only_reference"]) == (2, 2)
    assert (result["finished"]["hits"], result["finished"]["count"]) == (2, 7), "two films are missing from the run"


def test_any_abnormality_compares_the_findings_that_the_reference_knows(write, capsys):
    """Five reports rightly name pneumonia, which has no column. Two name pneumothorax, as the reference does."""
    texts = ["Right lower lobe pneumonia."] * 5 + ["Clear lungs."] * 5 + ["Right pneumothorax."] * 2
    run = write("run.jsonl", [line(f"f{at}", text) for at, text in enumerate(texts)])
    rows = [["id", "pneumothorax"], *([f"f{at}", int(at >= 10)] for at in range(12))]
    result = figures(capsys, run, write("ref.csv", rows))
    assert counts(result, "any abnormality") == (2, 0, 0, 10)
    assert result["all_normal"]["value"] == result["right_all_normal"]["value"] == pytest.approx(10 / 12)
    rows = [["id", "pneumothorax", "consolidation"], ["f0", "0", ""], ["f1", "", ""], ["f2", "0", "1"]]
    result = figures(capsys, run, write("ref.csv", rows))
    assert counts(result, "any abnormality") == (1, 0, 0, 1), "f0 is compared without consolidation, f1 not at all"


def test_film_without_a_report_counts_as_a_disagreement(write, capsys):
    """Four films with the finding, of which two have a report; two films without it, of which one has a report."""
    run = write("run.jsonl", [line("a", SICK), line("b", SICK), {"id": "c", "error": "x"}, line("e")])
    rows = [["id", "pleural_effusion"], *([name, int(name < "e")] for name in "abcdef")]
    result = figures(capsys, run, write("ref.csv", rows))
    assert counts(result, "pleural_effusion") == (2, 0, 0, 1)
    for name in ("pleural_effusion", "any abnormality"):
        assert tuple(result["findings_with_failures"][name]["counts"].values()) == (2, 1, 2, 1)
    assert result["findings_with_failures"]["pleural_effusion"]["sensitivity"]["value"] == 0.5
    assert main(["eval", run, str(write("ref.csv", rows))]) == 0
    assert re.search(r"^pleural_effusion +6 +2 +1 +2 +1 +50.0 %", capsys.readouterr().out, re.M)


def test_side_is_compared_where_both_texts_name_one(write, capsys):
    texts = {
        "same": ("Right effusion.", "Effusion on the right."),
        "other": ("Left effusion.", "Right effusion."),
        "both": ("Right effusion.", "Bilateral effusions."),
        "none": ("Effusion.", "Right effusion."),
        "absent": ("No right effusion.", "Right effusion."),
        "sentences": ("Right effusion. Left effusion.", "Bilateral effusions."),
    }
    run = write("run.jsonl", [line(name, report) for name, (report, _) in texts.items()])
    references = [["id", "reference"], *([name, text] for name, (_, text) in texts.items())]
    result = figures(capsys, run, write("ref.csv", references))
    assert list(result["sides"]) == ["pleural_effusion"]
    assert (result["sides"]["pleural_effusion"]["hits"], result["sides"]["pleural_effusion"]["count"]) == (2, 4)
    assert main(["eval", run, write("ref.csv", references)]) == 0
    assert re.search(r"^pleural_effusion .* 2 of 4$", capsys.readouterr().out, re.M)


@pytest.mark.parametrize("where", ["patient", "study", "run"])
def test_patients_and_studies_cluster_the_intervals(write, capsys, where):
    """Twenty films of five patients, which agree within a patient: no more certain than five films."""
    texts = [SICK if at < 12 else WELL for at in range(20)]
    more = [{"study": f"{SECRET}{at // 4}"} if where == "run" else {} for at in range(20)]
    run = write("run.jsonl", [line(f"f{at}", text, **more[at]) for at, text in enumerate(texts)])
    rows = [["id", "reference", "patient" if where == "run" else where]]
    rows += [[f"f{at}", SICK, "" if where == "run" else f"{SECRET}{at // 4}"] for at in range(20)]
    result = figures(capsys, run, write("ref.csv", rows), "--against", run)
    assert (result["clustered_by"], result["clusters"]) == ("study" if where == "run" else where, 5)
    alone = figures(capsys, run, write("ref.csv", [row[:2] for row in rows])) if where != "run" else None
    sensitivity = result["findings"]["pleural_effusion"]["sensitivity"]
    assert (sensitivity["value"], sensitivity["count"]) == (0.6, 20)
    assert sensitivity["high"] - sensitivity["low"] > 0.75
    if alone:
        assert (alone["clustered_by"], alone["clusters"]) == (None, None)
        narrow = alone["findings"]["pleural_effusion"]["sensitivity"]
        assert narrow["high"] - narrow["low"] < 0.45
    assert main(["eval", run, write("ref.csv", rows)]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^intervals by +(patient|study), 5 in all$", out, re.M) and "Popescu" not in out
    assert result == figures(capsys, run, write("ref.csv", rows), "--against", run), "the seed is fixed"


def test_films_of_different_patients_are_not_clustered(write, capsys):
    run = write("run.jsonl", [line("a", study="1"), line("b", study="2"), line("c", study=None)])
    reference = write("ref.csv", [["id", "reference"], ["a", WELL], ["b", WELL], ["c", WELL], ["d", WELL]])
    assert figures(capsys, run, reference)["clustered_by"] is None
    run = write("run.jsonl", [{"id": "a", "error": "x"}])
    reference = write("ref.csv", [["id", "reference", "patient"], ["a", WELL, "p"], ["b", SICK, "p"]])
    result = figures(capsys, run, reference)
    assert (result["clustered_by"], result["clusters"], result["finished"]["hits"]) == ("patient", 1, 0)


def test_rate_of_reports_that_mention_another_film(write, capsys):
    run = write("run.jsonl", [line("a", mentions_prior=True), line("b", mentions_prior=False), line("c")])
    reference = write("ref.csv", [["id", "reference"], *([name, WELL] for name in "abc")])
    assert figures(capsys, run, reference)["mentions_prior"]["hits"] == 1
    assert figures(capsys, run, reference)["mentions_prior"]["count"] == 2, "an older line does not state it"
    assert main(["eval", run, reference]) == 0
    assert re.search(r"^mentions another film +50.0 %", capsys.readouterr().out, re.M)
    assert figures(capsys, write("run.jsonl", [line("a")]), reference)["mentions_prior"] is None


def test_groups_by_age_sex_and_view(write, capsys):
    run = write("run.jsonl", [line("a", age="3d", sex="F", view="AP"), line("b", age="3d", view="AP"), line("c", SICK)])
    reference = write(
        "ref.csv",
        [
            ["id", "reference", "age", "sex", "view"],
            ["a", SICK, "", "", "LL"],
            ["b", WELL, "5y", "m", ""],
            ["c", SICK, "", "", "XX"],
        ],
    )
    groups = figures(capsys, run, reference)["groups"]
    assert {key: list(group) for key, group in groups.items()} == {
        "age": ["neonate", "school age", "unknown"], "sex": ["M", "F", "unknown"], "view": ["AP", "lateral", "other"],
    }  # fmt: skip
    assert groups["view"]["lateral"]["any abnormality"]["sensitivity"]["value"] == 0.0
    assert groups["view"]["other"]["any abnormality"]["sensitivity"]["value"] == 1.0
    assert groups["view"]["AP"]["any abnormality"]["sensitivity"]["value"] is None


@pytest.mark.parametrize(
    ("age", "group"),
    [
        ("28d", "neonate"), ("29d", "infant"), ("23m", "infant"), ("2y", "preschool"), ("4y", "preschool"),
        ("5y", "school age"), ("11y", "school age"), ("12y", "adolescent"), ("17y", "adolescent"), ("18y", "adult"),
        ("62", "unknown"), (None, "unknown"),
    ],
)  # fmt: skip
def test_age_groups_match_the_training_code(age, group):
    assert subgroups.age_group(age) == group


@pytest.mark.parametrize(
    ("view", "group"),
    [
        ("AP", "AP"), ("PA", "PA"), ("LL", "lateral"), ("RL", "lateral"), ("L", "lateral"), ("LAT", "lateral"),
        ("LATERAL", "lateral"), (" lateral ", "lateral"), ("pa", "PA"), ("LLD", "other"), ("RLO", "other"),
        ("A", "other"), (" ", "unknown"), ("", "unknown"), (None, "unknown"),
    ],
)  # fmt: skip
def test_view_groups(view, group):
    assert subgroups.view(view) == group


@pytest.mark.parametrize(
    ("sex", "group"), [("M", "M"), ("F", "F"), (" f ", "F"), ("O", "unknown"), ("", "unknown"), (None, "unknown")]
)
def test_sex_groups(sex, group):
    assert subgroups.sex(sex) == group


def test_text_overlap(write, capsys):
    text = "There is a right pleural effusion in the lower zone."
    reference = write("ref.csv", [["id", "reference"], ["a", text]])
    same = figures(capsys, write("run.jsonl", [line("a", text)]), reference)["overlap"]
    assert (round(same["bleu4"]), same["rouge_l"], same["count"]) == (100, 1.0, 1)
    assert "version" in same["bleu_signature"]
    other = figures(capsys, write("run.jsonl", [line("a", "There is a right pneumothorax.")]), reference)["overlap"]
    # The longest common subsequence has 4 words, the report 5, the reference 10: precision 0.8, recall 0.4.
    assert other["rouge_l"] == pytest.approx(2 * 0.8 * 0.4 / 1.2)
    assert 0 < other["bleu4"] < 40
    assert other["bleu4_interval"] is None, "one patient"


def test_text_overlap_intervals_contain_the_corpus_score(write, capsys):
    from sacrebleu.metrics import BLEU

    sentences = [
        "There is a right pleural effusion in the lower zone.",
        "The heart is enlarged, with clear lungs.",
        "Left lower lobe consolidation with air bronchograms is seen.",
        "Normal chest without effusion.",
    ]
    targets = [sentences[at % 4] for at in range(24)]
    texts = [targets[at] if at % 3 else targets[at].replace("is ", "was ").replace("with", "and") for at in range(24)]
    run = write("run.jsonl", [line(f"f{at}", text) for at, text in enumerate(texts)])
    rows = [["id", "reference", "patient"], *([f"f{at}", text, at // 4] for at, text in enumerate(targets))]
    result = figures(capsys, run, write("ref.csv", rows))["overlap"]
    assert result["bleu4"] == pytest.approx(BLEU().corpus_score(texts, [targets]).score)
    assert result["bleu4_interval"][0] < result["bleu4"] < result["bleu4_interval"][1] <= 100
    assert result["rouge_l_interval"][0] < result["rouge_l"] < result["rouge_l_interval"][1] <= 1


def test_two_runs_are_compared_with_mcnemars_exact_test(write, capsys):
    """Only this run is right on 1 film, only the other on 9 films: p = 2 * (1 + 10) / 2**10."""
    names = [f"f{at}" for at in range(30)]
    this = write("run.jsonl", [line(name, SICK if at == 0 else WELL) for at, name in enumerate(names)])
    other = write("other.jsonl", [line(name, SICK if 0 < at < 10 else WELL) for at, name in enumerate(names[:29])])
    references = [["id", "reference"], *([name, SICK if at < 10 else WELL] for at, name in enumerate(names))]
    result = figures(capsys, this, write("ref.csv", references), "--against", other)
    sensitivity, specificity = (result["against"]["pleural_effusion"][name] for name in ("sensitivity", "specificity"))
    assert [sensitivity[name] for name in ("count", "only_this", "only_other", "value")] == [10, 1, 9, -0.8]
    assert sensitivity["p"] == pytest.approx(22 / 1024)
    assert sensitivity["p_holm"] == pytest.approx(4 * 22 / 1024), "corrected for two findings and two measures"
    assert (specificity["count"], specificity["only_this"], specificity["only_other"]) == (19, 0, 0)
    failures = result["against_with_failures"]["pleural_effusion"]["specificity"]
    assert (failures["count"], failures["only_this"], failures["only_other"]) == (20, 1, 0), (
        "the other run lacks a film"
    )


def test_opposite_errors_of_two_runs_do_not_cancel(write, capsys):
    """One run misses five effusions, the other invents five. Both are right on 15 of 20 films."""
    names = [f"f{at}" for at in range(20)]
    truth = {name: SICK if at < 10 else WELL for at, name in enumerate(names)}
    misses = write("run.jsonl", [line(name, WELL if at < 5 else truth[name]) for at, name in enumerate(names)])
    invents = write("other.jsonl", [line(name, SICK if at >= 15 else truth[name]) for at, name in enumerate(names)])
    reference = write("ref.csv", [["id", "reference"], *truth.items()])
    result = figures(capsys, misses, reference, "--against", invents)["against"]["pleural_effusion"]
    assert (result["sensitivity"]["value"], result["specificity"]["value"]) == (-0.5, 0.5)
    assert result["sensitivity"]["p"] == result["specificity"]["p"] == pytest.approx(2 / 2**5)


def test_tables_contain_rates_and_groups(write, capsys):
    run = write("run.jsonl", [line("a", SICK, age="5y"), line("b", age="5y"), {"id": "c", "error": "x"}])
    reference = write("ref.csv", [["id", "reference"], ["a", SICK], ["b", WELL], ["c", WELL]])
    assert main(["eval", run, reference, "--against", run]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^finished +66.7 % \(20.8-93.9\) of 3$", out, re.M)
    assert re.search(r"^pleural_effusion +2 +1 +0 +0 +1 +100.0 % \(20.7-100.0\) +100.0 % \(20.7-100.0\)$", out, re.M)
    for words in (
        "By age: any abnormality",
        "school age",
        "F1 (95 %)",
        "PPV (95 %)",
        "those without a report",
        "ROUGE-L",
        "McNemar p",
        "in neither file",
    ):
        assert words in out


def test_output_contains_no_id_and_no_text_of_the_files(write, tmp_path, capsys):
    """Only the page names films, and only where report and reference disagree."""
    report = f"{SECRET} has a pleural effusion."
    run = write("run.jsonl", [line(SECRET, report, request_id=SECRET, study=SECRET), {"id": "b", "error": SECRET}])
    reference = write("ref.csv", [["id", "reference", "patient"], [SECRET, report, SECRET], ["b", SECRET, SECRET]])
    page = tmp_path / "out.html"
    for arguments in ([], ["--json"]):
        assert main(["eval", run, reference, "--html", str(page), *arguments]) == 0
    output = capsys.readouterr()
    assert "Popescu" not in output.out + output.err + page.read_text()


def test_html_page_is_well_formed_escaped_and_self_contained(write, tmp_path, capsys):
    run = write("run.jsonl", [line("a", SICK, model='<script>alert(1)</script>&"'), line("b", WELL, model="m")])
    page = tmp_path / "out.html"
    reference = write("ref.csv", [["id", "reference"], ["a", SICK], ["b", WELL]])
    assert main(["eval", run, reference, "--against", run, "--html", str(page)]) == 0
    html = page.read_text()
    assert "<script" not in html and "&lt;script&gt;" in html
    assert not re.search(r"""(src|href)=|url\(|@import|https?://(?!www\.w3\.org/2000/svg)""", html)
    assert "default-src 'none'" in html and "Not for diagnosis" in html
    [plot] = re.findall(r"<svg.*?</svg>", html, re.S)
    svg = "{http://www.w3.org/2000/svg}"
    tree = ElementTree.fromstring(plot)
    points = [float(square.get("x")) + 4 for square in tree.iter(f"{svg}rect")]
    assert len(points) == 4, "sensitivity and specificity of two findings"
    # All rates are 100 %, so every point must be on a grid line of the axis.
    grid_lines = {float(part.get("x1")) for part in tree.iter(f"{svg}line") if part.get("stroke") == "#ddd"}
    assert set(points) <= grid_lines
    ElementTree.fromstring(re.sub(r"<!doctype html>|<meta[^>]*>", "", html))
    assert main(["eval", run, reference, "--html", str(page)]) == 0, "an earlier page is replaced"
    assert main(["eval", run, reference, "--html", str(tmp_path / "no" / "where.html")]) == 2
    assert "--html: its folder does not exist" in capsys.readouterr().err
    notes = write("notes.html", [["my notes"]])
    texts = [Path(file).read_text() for file in (reference, notes)]
    for file, words in ((reference, "is another file of this command"), (notes, "is no page of this command")):
        assert main(["eval", run, reference, "--html", file]) == 2
        assert words in capsys.readouterr().err
    assert [Path(file).read_text() for file in (reference, notes)] == texts


def test_html_page_has_counts_and_examples_of_disagreement(write, tmp_path, capsys):
    missed = [f"missed {at}" for at in range(12)]
    run = write(
        "run.jsonl",
        [
            line("<added&>", SICK),
            line("side", "Left effusion."),
            *(line(name) for name in missed),
            {"id": "c", "error": 1},
        ],
    )
    rows = [["id", "reference"], ["<added&>", WELL], ["side", SICK], *([name, SICK] for name in missed), ["c", SICK]]
    page = tmp_path / "out.html"
    assert main(["eval", run, write("ref.csv", rows), "--html", str(page)]) == 0
    tree = ElementTree.fromstring(re.sub(r"<!doctype html>|<meta[^>]*>", "", page.read_text()))
    cells = [["".join(cell.itertext()) for cell in row] for row in tree.iter("tr")]
    assert ["pleural_effusion", "14", "1", "1", "12", "0"] in [row[:6] for row in cells]
    assert ["pleural_effusion", "15", "1", "1", "13", "0"] in [row[:6] for row in cells], "with the failure"
    assert ["pleural_effusion", f"{', '.join(missed[:10])} and 2 more", "<added&>", "side"] in cells
    output = capsys.readouterr().out
    assert "missed 1" not in output and "added" not in output, "ids are on the page only"


RUN = [line("a")]
REFERENCE = [["id", "reference"], ["a", WELL]]


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ([], "contains no line"),
        ([line("a"), "{" + SECRET], "line 2: not a JSON object"),
        (["[1]"], "line 1: not a JSON object"),
        (["[" * 100_000], "line 1: not a JSON object"),
        ([{"text": SECRET}], 'line 1: "id" must be a non-empty string'),
        ([line("")], 'line 1: "id" must be a non-empty string'),
        ([{"id": 7, "text": SECRET}], 'line 1: "id" must be a non-empty string'),
        ([{"id": SECRET}], 'line 1: has neither "text" nor "error"'),
        ([{"id": SECRET, "text": 5}], 'line 1: has neither "text" nor "error"'),
        ([line(SECRET), line("b"), line(SECRET)], "line 3: duplicate id, first report on line 1"),
        (['{"id": "' + "x" * 10_000_001 + '"}'], "line 1: longer than 10 million"),
    ],
)
def test_invalid_run_names_the_line(write, capsys, run, message):
    assert main(["eval", write("run.jsonl", run), write("ref.csv", REFERENCE)]) == 3
    err = capsys.readouterr().err
    assert message in err and "Popescu" not in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ([], 'the column "id" is missing'),
        ([["reference"], ["x"]], 'the column "id" is missing'),
        ([["id"], ["a"]], "nothing to compare with"),
        ([["id", "age"], ["a", "5y"]], "nothing to compare with"),
        ([["id", "reference"]], "contains no film"),
        ([["id", "reference", SECRET], ["a", "", ""]], "unknown column 3; rename or remove it"),
        ([["id", "reference", "ID"], ["a", "", ""]], 'the column "id" appears twice'),
        ([["id", "reference"], ["a", "x"], [SECRET, "x"], [SECRET, "y"]], "line 4: duplicate id, first on line 3"),
        ([["id", "reference"], ["", SECRET]], "line 2: the id is empty"),
        ([["id", "reference"], ["a", "x", SECRET]], "line 2: has 3 cells but the header has 2"),
        ([["id", "pneumothorax"], ["a", SECRET]], "line 2, column 2: a finding must be 1, 0 or empty"),
        ([["id", "reference", "age"], ["a", "x", "62"]], "line 2, column 3: the age must be"),
        ([["id", "reference", "sex"], ["a", "x", SECRET]], "line 2, column 3: the sex must be"),
        ([["id", "reference"], ["a", "x" * 131_073]], "line 2: a cell is longer than 131072"),
    ],
)
def test_invalid_reference_names_line_and_column(write, capsys, reference, message):
    assert main(["eval", write("run.jsonl", RUN), write("ref.csv", reference)]) == 3
    err = capsys.readouterr().err
    assert message in err and "Popescu" not in err and err.count("\n") == 1


def test_byte_order_mark_and_crlf_are_accepted(write, capsys):
    run = write("run.jsonl", [line("ă"), "", line("b", SICK)], encoding="utf-8-sig", end="\r\n")
    rows = [["id", "reference"], ["ă", "No effusion,\r\nand clear lungs."], [], ["b", SICK]]
    result = figures(capsys, run, write("ref.csv", rows, encoding="utf-8-sig", end="\r\n"))
    assert (result["films"], result["lines"]) == (2, 2)
    assert counts(result, "pleural_effusion") == (1, 0, 0, 1)


def test_a_reference_in_excels_forms_is_accepted(write, capsys):
    """UTF-16 with tabs is "Unicode text"; a semicolon separates where the comma is decimal."""
    run = write("run.jsonl", [line("a"), line("b", SICK)])
    tabs = write("tabs.csv", [["id\tPleural effusion"], ["a\t0"], ["b\t1"]], encoding="utf-16")
    semicolons = write("semicolons.csv", [["sep=;"], ["id;pleural-effusion"], ["a;0"], ["b;1"]])
    for reference in (tabs, semicolons):
        assert counts(figures(capsys, run, reference), "pleural_effusion") == (1, 0, 0, 1)


def test_other_encodings_and_absent_files_are_input_errors(write, tmp_path, capsys):
    run, reference = write("run.jsonl", RUN), write("ref.csv", REFERENCE)
    assert main(["eval", str(tmp_path / "no.jsonl"), reference]) == 3
    assert main(["eval", run, str(tmp_path)]) == 3
    assert main(["eval", write("wide.jsonl", RUN, encoding="utf-16"), reference]) == 3
    assert main(["eval", run, write("latin.csv", [["id", "reference"], ["a", "é"]], encoding="latin-1")]) == 3
    assert main(["eval", run]) == 2
    err = capsys.readouterr().err
    assert err.count("is not UTF-8") == 2 and "No such file" in err and "Is a directory" in err


def test_absent_package_names_the_install_command(write, capsys, monkeypatch):
    run, reference = write("run.jsonl", RUN), write("ref.csv", REFERENCE)
    for name in ("sacrebleu", "rouge_score"):
        with monkeypatch.context() as patch:
            for module in [name, *(loaded for loaded in sys.modules if loaded.startswith(f"{name}."))]:
                patch.setitem(sys.modules, module, None)
            for module in ("sacrebleu.metrics", "rouge_score.rouge_scorer"):
                if module.startswith(name):
                    patch.setitem(sys.modules, module, None)
            assert main(["eval", run, reference]) == 2
        assert capsys.readouterr().err == f"pedcxr: pedcxr eval requires {name}: {statistics.INSTALL}\n"


def test_command_line_does_not_import_the_evaluation():
    code = "import sys, pedcxr_client.cli.main; print([m for m in sys.modules if 'scipy' in m or 'evaluation' in m])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_skipped_films_do_not_count_and_another_model_replaces_a_report(write, tmp_path):
    """``pedcxr batch`` writes both: with ``--one-per-study`` and with ``--redo``."""
    skipped = {"id": "b", "error": {"kind": "skipped", "message": "lateral"}}
    run = runs.read(Path(write("run.jsonl", [line("a"), skipped, line("a", SICK, model_revision="r2")])))
    assert run.reports["a"].text == SICK and run.failed == frozenset() and run.models == ("m@r2",)
