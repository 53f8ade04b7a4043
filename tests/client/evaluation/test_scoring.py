"""``pedcxr eval`` through the command: figures worked out by hand, bad files, and what is never shown."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
import types
from xml.etree import ElementTree

import pytest

from pedcxr_client.cli.main import main
from pedcxr_client.evaluation import statistics, subgroups
from pedcxr_client.evaluation.statistics import holm

SECRET = "Popescu^Ana"
SICK, WELL = "Right pleural effusion.", "No pleural effusion."


def line(name: str, text: str | None = WELL, **more: object) -> dict[str, object]:
    return {"id": name, "text": text, "finish_reason": "stop", "model": "m", "model_revision": "r1", **more}


@pytest.fixture
def wrote(tmp_path):
    """Writes a run or a reference, and gives its path."""

    def write(name: str, rows: list, *, encoding: str = "utf-8", end: str = "\n") -> str:
        path = tmp_path / name
        if name.endswith(".jsonl"):
            path.write_bytes(
                end.join(json.dumps(row) if isinstance(row, dict) else row for row in rows).encode(encoding)
            )
        else:
            with path.open("w", encoding=encoding, newline="") as file:
                csv.writer(file, lineterminator=end).writerows(rows)
        return str(path)

    return write


def figures(capsys, *arguments: str) -> dict:
    assert main(["eval", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def counts(found: dict, name: str) -> tuple[int, ...]:
    return tuple(found["findings"][name]["counts"].values())


def test_counts_rates_and_intervals(wrote, capsys):
    """TP 8, FN 2, TN 5, FP 1. Wilson's interval of 8 in 10 is 0.490 to 0.943 (Newcombe 1998, formula 3)."""
    right = [*([SICK] * 10), *([WELL] * 6)]
    said = [*([SICK] * 8), WELL, WELL, *([WELL] * 5), SICK]
    run = wrote("run.jsonl", [line(f"f{at}", text) for at, text in enumerate(said)])
    reference = wrote("ref.csv", [["id", "reference"], *([f"f{at}", text] for at, text in enumerate(right))])
    found = figures(capsys, run, reference)
    assert counts(found, "pleural_effusion") == counts(found, "any abnormality") == (8, 1, 2, 5)
    sensitivity = found["findings"]["pleural_effusion"]["sensitivity"]
    assert sensitivity["value"] == 0.8
    assert (round(sensitivity["low"], 3), round(sensitivity["high"], 3)) == (0.490, 0.943)
    assert found["findings"]["pleural_effusion"]["specificity"]["value"] == pytest.approx(5 / 6)
    assert "pneumothorax" in found["unused"] and "pneumothorax" not in found["findings"]
    assert (found["distinct"], found["largest"], found["duplicates"]["hits"]) == (2, 9, 14)
    assert (found["all_normal"]["hits"], found["right_all_normal"]["hits"]) == (7, 6)
    assert found["models"] == ["m@r1"]
    assert len(found["lexicon_sha256"]) == 64


def test_columns_of_findings_and_cells_that_are_not_known(wrote, capsys):
    run = wrote("run.jsonl", [line("a", SICK), line("b", SICK), line("c"), line("d", "Pneumonia.")])
    reference = wrote(
        "ref.csv",
        [["id", "Pleural Effusion", "pneumothorax"], ["a", "1", "0"], ["b", "0", ""], ["c", "1", "0"], ["d", "0", "0"]],
    )
    found = figures(capsys, run, reference)
    assert list(found["findings"]) == ["pleural_effusion", "pneumothorax", "any abnormality"]
    assert counts(found, "pleural_effusion") == (1, 1, 1, 1)
    assert counts(found, "pneumothorax") == (0, 0, 0, 3), "an empty cell is not known, and not counted"
    assert counts(found, "any abnormality") == (1, 1, 1, 0), "b may have a pneumothorax; pneumonia says d is abnormal"
    assert found["overlap"] is None


def test_what_is_uncertain_counts_as_asked(wrote, capsys):
    run = wrote("run.jsonl", [line("a", "Possible effusion.")])
    reference = wrote("ref.csv", [["id", "pleural_effusion"], ["a", "1"]])
    assert counts(figures(capsys, run, reference), "pleural_effusion") == (1, 0, 0, 0)
    assert counts(figures(capsys, run, reference, "--uncertain", "negative"), "pleural_effusion") == (0, 0, 1, 0)


def test_a_normal_thymus_and_a_tube_in_place_are_nothing_abnormal(wrote, capsys):
    run = wrote("run.jsonl", [line("a", "Normal thymus. An endotracheal tube ends above the carina.")])
    found = figures(capsys, run, wrote("ref.csv", [["id", "thymus_normal"], ["a", "1"]]))
    assert counts(found, "thymus_normal") == (1, 0, 0, 0)
    assert (counts(found, "any abnormality"), found["all_normal"]["hits"]) == ((0, 0, 0, 1), 1)


def test_failures_are_counted_and_never_dropped(wrote, capsys):
    run = wrote(
        "run.jsonl",
        [
            line("a"),
            {"id": "b", "error": {"type": "TimedOut"}},
            line("c", "cut off", finish_reason="length"),
            {"id": "d", "error": "x"},
            line("d"),  # a later try
            line("only here"),
            {"id": "e", "error": "not in the reference"},
            line("blank", " "),
        ],
    )
    names = ["a", "b", "c", "d", "blank", "nowhere", "no where"]
    found = figures(capsys, run, wrote("ref.csv", [["id", "reference"], *([name, WELL] for name in names)]))
    assert (found["lines"], found["films"], found["finished"]["hits"]) == (8, 5, 2)
    assert (found["only_run"], found["only_reference"]) == (2, 2)


def test_groups_by_age_sex_and_view(wrote, capsys):
    run = wrote("run.jsonl", [line("a", age="3d", sex="F", view="AP"), line("b", age="3d", view="AP"), line("c", SICK)])
    reference = wrote(
        "ref.csv",
        [
            ["id", "reference", "age", "sex", "view"],
            ["a", SICK, "", "", "LL"],
            ["b", WELL, "5y", "m", ""],
            ["c", SICK, "", "", "XX"],
        ],
    )
    groups = figures(capsys, run, reference)["groups"]
    assert {key: list(found) for key, found in groups.items()} == {
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
def test_age_groups_are_the_training_codes(age, group):
    assert subgroups.age_group(age) == group


def test_overlap_of_words(wrote, capsys):
    text = "There is a right pleural effusion in the lower zone."
    reference = wrote("ref.csv", [["id", "reference"], ["a", text]])
    same = figures(capsys, wrote("run.jsonl", [line("a", text)]), reference)["overlap"]
    assert (round(same["bleu4"]), same["rouge_l"], same["count"]) == (100, 1.0, 1)
    assert "version" in same["bleu_signature"]
    other = figures(capsys, wrote("run.jsonl", [line("a", "There is a right pneumothorax.")]), reference)["overlap"]
    # Four of five words in order, of ten: precision 0.8, recall 0.4.
    assert other["rouge_l"] == pytest.approx(2 * 0.8 * 0.4 / 1.2)
    assert 0 < other["bleu4"] < 40


def test_two_runs_by_mcnemars_exact_test(wrote, capsys):
    """1 film only this run has right, 9 only the other: p = 2 * (1 + 10) / 2**10."""
    names = [f"f{at}" for at in range(30)]
    this = wrote("run.jsonl", [line(name, SICK if at == 0 else WELL) for at, name in enumerate(names)])
    other = wrote("other.jsonl", [line(name, SICK if 0 < at < 10 else WELL) for at, name in enumerate(names[:29])])
    right = [["id", "reference"], *([name, SICK if at < 10 else WELL] for at, name in enumerate(names))]
    found = figures(capsys, this, wrote("ref.csv", right), "--against", other)["against"]["pleural_effusion"]
    assert (found["count"], found["only_this"], found["only_other"]) == (29, 1, 9)
    assert found["p"] == pytest.approx(22 / 1024)
    assert found["p_holm"] == pytest.approx(2 * 22 / 1024), "two rows are compared: the finding, and any"


def test_holms_correction_steps_down():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}


def test_tables(wrote, capsys):
    run = wrote("run.jsonl", [line("a", SICK, age="5y"), line("b", age="5y"), {"id": "c", "error": "x"}])
    reference = wrote("ref.csv", [["id", "reference"], ["a", SICK], ["b", WELL], ["c", WELL]])
    assert main(["eval", run, reference, "--against", run]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^finished +66.7 % \(20.8-93.9\) of 3$", out, re.M)
    assert re.search(r"^pleural_effusion +2 +1 +0 +0 +1 +100.0 % \(20.7-100.0\) +100.0 % \(20.7-100.0\)$", out, re.M)
    for words in ("by age: any abnormality", "school age", "ROUGE-L", "McNemar p", "named by neither"):
        assert words in out


def test_nothing_that_stands_in_the_files_is_shown(wrote, tmp_path, capsys):
    named = f"{SECRET} has a pleural effusion."
    run = wrote("run.jsonl", [line(SECRET, named, request_id=SECRET), {"id": "b", "error": SECRET}])
    reference = wrote("ref.csv", [["id", "reference"], [SECRET, named], ["b", SECRET]])
    page = tmp_path / "out.html"
    for arguments in ([], ["--json"]):
        assert main(["eval", run, reference, "--html", str(page), *arguments]) == 0
    shown = capsys.readouterr()
    assert "Popescu" not in shown.out + shown.err + page.read_text()


def test_the_page_is_whole_escaped_and_asks_for_nothing(wrote, tmp_path, capsys):
    run = wrote("run.jsonl", [line("a", SICK, model='<script>alert(1)</script>&"'), line("b", WELL, model="m")])
    page = tmp_path / "out.html"
    reference = wrote("ref.csv", [["id", "reference"], ["a", SICK], ["b", WELL]])
    assert main(["eval", run, reference, "--against", run, "--html", str(page)]) == 0
    html = page.read_text()
    assert "<script" not in html and "&lt;script&gt;" in html
    assert not re.search(r"""(src|href)=|url\(|@import|https?://(?!www\.w3\.org/2000/svg)""", html)
    assert "default-src 'none'" in html and "Not for diagnosis" in html
    [drawn] = re.findall(r"<svg.*?</svg>", html, re.S)
    svg = "{http://www.w3.org/2000/svg}"
    tree = ElementTree.fromstring(drawn)
    points = [float(one.get("x")) + 4 for one in tree.iter(f"{svg}rect")]
    assert len(points) == 4, "two findings, sensitivity and specificity"
    # 100 % lies at the right end of each plot: where the axis has its fifth line.
    ends = {float(one.get("x1")) for one in tree.iter(f"{svg}line") if one.get("stroke") == "#ddd"}
    assert set(points) <= ends
    ElementTree.fromstring(re.sub(r"<!doctype html>|<meta[^>]*>", "", html))
    assert main(["eval", run, reference, "--html", str(tmp_path / "no" / "where.html")]) == 2


RUN = [line("a")]
REFERENCE = [["id", "reference"], ["a", WELL]]


@pytest.mark.parametrize(
    ("run", "says"),
    [
        ([], "contains no line"),
        ([line("a"), "{" + SECRET], "line 2: not a JSON object"),
        (["[1]"], "line 1: not a JSON object"),
        (["[" * 100_000], "line 1: not a JSON object"),
        ([{"text": SECRET}], 'line 1: "id" must be a string'),
        ([line("")], 'line 1: "id" must be a string that is not empty'),
        ([{"id": 7, "text": SECRET}], 'line 1: "id" must be a string'),
        ([{"id": SECRET}], 'line 1: has neither "text" nor "error"'),
        ([{"id": SECRET, "text": 5}], 'line 1: has neither "text" nor "error"'),
        ([line(SECRET), line("b"), line(SECRET)], "line 3: duplicate id, first report on line 1"),
        (['{"id": "' + "x" * 10_000_001 + '"}'], "line 1: longer than 10 million"),
    ],
)
def test_a_run_that_cannot_be_used_names_the_line(wrote, capsys, run, says):
    assert main(["eval", wrote("run.jsonl", run), wrote("ref.csv", REFERENCE)]) == 3
    err = capsys.readouterr().err
    assert says in err and "Popescu" not in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ([], 'the column "id" is absent'),
        ([["reference"], ["x"]], 'the column "id" is absent'),
        ([["id"], ["a"]], "nothing to compare with"),
        ([["id", "age"], ["a", "5y"]], "nothing to compare with"),
        ([["id", "reference"]], "contains no film"),
        ([["id", "reference", SECRET], ["a", "", ""]], "unknown column 3; rename or remove it"),
        ([["id", "reference", "ID"], ["a", "", ""]], 'duplicate column "id"'),
        ([["id;reference"], ["a;x"]], "not separated by commas"),
        ([["id", "reference"], ["a", "x"], [SECRET, "x"], [SECRET, "y"]], "line 4: duplicate id, first on line 3"),
        ([["id", "reference"], ["", SECRET]], "line 2: the id is empty"),
        ([["id", "reference"], ["a", "x", SECRET]], "line 2: has 3 cells, but the header has 2"),
        ([["id", "pneumothorax"], ["a", SECRET]], "line 2, column 2: a finding must be 1, 0 or empty"),
        ([["id", "reference", "age"], ["a", "x", "62"]], "line 2, column 3: the age must be"),
        ([["id", "reference", "sex"], ["a", "x", SECRET]], "line 2, column 3: the sex must be"),
        ([["id", "reference"], ["a", "x" * 10_000_001]], "line 2: invalid CSV"),
    ],
)
def test_a_reference_that_cannot_be_used_names_line_and_column(wrote, capsys, reference, says):
    assert main(["eval", wrote("run.jsonl", RUN), wrote("ref.csv", reference)]) == 3
    err = capsys.readouterr().err
    assert says in err and "Popescu" not in err and err.count("\n") == 1


def test_marks_and_ends_of_lines_that_other_programs_write(wrote, capsys):
    run = wrote("run.jsonl", [line("ă"), "", line("b", SICK)], encoding="utf-8-sig", end="\r\n")
    rows = [["id", "reference"], ["ă", "No effusion,\r\nand clear lungs."], [], ["b", SICK]]
    found = figures(capsys, run, wrote("ref.csv", rows, encoding="utf-8-sig", end="\r\n"))
    assert (found["films"], found["lines"]) == (2, 2)
    assert counts(found, "pleural_effusion") == (1, 0, 0, 1)


def test_other_encodings_and_missing_files(wrote, tmp_path, capsys):
    run, reference = wrote("run.jsonl", RUN), wrote("ref.csv", REFERENCE)
    assert main(["eval", str(tmp_path / "no.jsonl"), reference]) == 3
    assert main(["eval", run, str(tmp_path)]) == 3
    assert main(["eval", wrote("wide.jsonl", RUN, encoding="utf-16"), reference]) == 3
    assert main(["eval", run, wrote("wide.csv", REFERENCE, encoding="utf-16")]) == 3
    assert main(["eval", run]) == 2
    err = capsys.readouterr().err
    assert err.count("is not UTF-8") == 2 and "No such file" in err and "Is a directory" in err


def test_a_missing_package_names_the_line_to_type(wrote, capsys, monkeypatch):
    run, reference = wrote("run.jsonl", RUN), wrote("ref.csv", REFERENCE)
    for name in ("scipy", "sacrebleu", "rouge_score"):
        with monkeypatch.context() as patch:
            for module in [name, *(one for one in sys.modules if one.startswith(f"{name}."))]:
                patch.setitem(sys.modules, module, None)
            for module in ("scipy.stats", "sacrebleu.metrics", "rouge_score.rouge_scorer"):
                if module.startswith(name):
                    patch.setitem(sys.modules, module, None)
            assert main(["eval", run, reference]) == 2
        assert capsys.readouterr().err == f"pedcxr: pedcxr eval requires {name}: {statistics.INSTALL}\n"


def test_the_command_line_imports_nothing_of_it():
    code = "import sys, pedcxr_client.cli.main; print([m for m in sys.modules if 'scipy' in m or 'evaluation' in m])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_other_projects_scores(wrote, capsys, monkeypatch):
    """The two are not installed here, and download weights: stand-ins answer in the form their pages show."""
    run, reference = wrote("run.jsonl", RUN), wrote("ref.csv", REFERENCE)
    for name in ("radgraph", "radeval"):
        assert main(["eval", run, reference, "--with", name]) == 2
        assert f"--with {name}: the package is not installed: pip install {name}" in capsys.readouterr().err
    graph, every = types.ModuleType("radgraph"), types.ModuleType("RadEval")
    graph.F1RadGraph = lambda reward_level, model_type: lambda hyps, refs: ((0.7, 0.6, 0.5), [], [], [])
    every.RadEval = lambda do_radgraph, do_chexbert: lambda refs, hyps: {"bleu": 0.36, "texts": refs}
    monkeypatch.setitem(sys.modules, "radgraph", graph)
    monkeypatch.setitem(sys.modules, "RadEval", every)
    assert main(["eval", run, reference, "--with", "radgraph", "--with", "radeval"]) == 0
    assert "radgraph: simple 0.700, partial 0.600, complete 0.500\n\nradeval: bleu 0.360" in capsys.readouterr().out
    every.RadEval = lambda do_radgraph, do_chexbert: lambda refs, hyps: None
    assert main(["eval", run, reference, "--with", "radeval"]) == 2
    assert "the installed version is not compatible with the evaluator of RadEval 0.1" in capsys.readouterr().err
    columns = wrote("columns.csv", [["id", "pneumothorax"], ["a", "0"]])
    assert main(["eval", run, columns, "--with", "radgraph"]) == 2
