"""The rows of a training's data: manifests and folders, and the mistakes in them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pedcxr_serve.errors import ConfigError, DataError
from pedcxr_serve.finetune import table


@pytest.fixture
def manifest(tmp_path: Path):
    def write(text: str, name: str = "data.csv") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_a_csv_and_a_jsonl_have_the_same_rows(manifest) -> None:
    cells = {"path": "a.png", "age": "5y", "sex": "F", "report": "Lungs clear.\nHeart normal.", "patient": "7"}
    csv = manifest('path,age,sex,report,patient\na.png,5y,F,"Lungs clear.\r\nHeart normal.",7\n')
    jsonl = manifest(json.dumps(cells) + "\n", "data.jsonl")
    for path in (csv, jsonl):
        [row] = table.read(path)
        assert (row.report, row.patient, row.split, str(row.entry.age)) == (cells["report"], "7", None, "5y")
        assert row.entry.path == str(path.parent / "a.png")


def test_splits_have_synonyms(manifest) -> None:
    path = manifest("path,report,split\na.png,A.,train\nb.png,B.,val\nc.png,C.,TEST\n")
    assert [row.split for row in table.read(path)] == ["train", "validation", "test"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,age\na.png,5y\nb.png,5y\n", "line 1: the column report is missing; add it"),
        ("path,report\na.png,A.\nb.png,\n", "line 3: report is empty"),
        ("path,report\na.png,   \n", "line 2: report is empty"),
        ("path,findings,impression\na.png,A.,B.\n", "findings and impression); join them into one column"),
        ("path,report,impression\na.png,A.,B.\n", "impression and report); join them"),
        ("path,report,report\na.png,A.,B.\n", '"report" appears twice'),
        ("path,report,patient_name\na.png,A.,Doe\n", "unknown column 3"),
        ("path,report\na.png,A <end_of_turn> B.\n", "line 2: report contains <end_of_turn>"),
        ("path,report\na.png,A\x07B.\n", "not printable"),
        ("path,report,split\na.png,A.,training\n", "split must be train, validation or test"),
        ("path,report,split\na.png,A.,train\nb.png,B.,\n", "line 3: split is empty"),
        ("path,report\n../a.png,A.\n", "leads outside"),
        ("path,report\n", "holds no film. Write one line per film below the header"),
    ],
)
def test_mistakes_in_a_csv(manifest, text: str, message: str) -> None:
    with pytest.raises(DataError) as error:
        table.read(manifest(text))
    assert message in str(error.value)
    assert error.value.exit_code == 3


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1: is not valid JSON"),
        ("[1]", "line 1: is not a JSON object"),
        ('{"report": "A."}', "line 1: path is missing"),
        ('{"path": "a.png"}', "line 1: the column report is missing"),
        ('{"path": "a.png", "report": 7}', "line 1: report must be a text"),
        ('{"path": "a.png", "report": "A.", "name": "Doe"}', "line 1: unknown key 3"),
    ],
)
def test_mistakes_in_a_jsonl(manifest, line: str, message: str) -> None:
    with pytest.raises(DataError) as error:
        table.read(manifest(line + "\n", "data.jsonl"))
    assert message in str(error.value)
    assert "Doe" not in str(error.value)


def test_at_most_ten_problems_are_listed(manifest) -> None:
    with pytest.raises(DataError, match="and 2 more"):
        table.read(manifest("path,report\n" + "a.png,\n" * 12))


def test_a_folder_has_a_text_file_beside_each_film(tmp_path: Path) -> None:
    for name in ("one/a.png", "one/b.png", "c.png"):
        film = tmp_path / name
        film.parent.mkdir(exist_ok=True)
        film.write_bytes(b"\x89PNG")
        film.with_suffix(".txt").write_text(f"Report of {name}.\n")
    rows = table.read(tmp_path)
    assert [(row.where, row.patient) for row in rows] == [("c.png", ""), ("one/a.png", "one"), ("one/b.png", "one")]
    (tmp_path / "c.txt").unlink()
    with pytest.raises(DataError, match=r"c\.png: its report is missing"):
        table.read(tmp_path)


def test_what_every_line_lacks_is_said_once(manifest) -> None:
    with pytest.raises(DataError) as error:
        table.read(manifest("path,age\na.png,5y\nb.png,5y\n"))
    assert str(error.value).count("the column report is missing") == 1


def test_a_folder_without_films_or_reports_names_the_manifest_in_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no film\. Give a manifest .* or a folder with NAME\.txt"):
        table.read(tmp_path)
    (tmp_path / "reports.csv").write_text("path,report\na.png,A.\n")
    with pytest.raises(DataError, match=r"holds no film\. If reports\.csv in it lists films and reports, give that"):
        table.read(tmp_path)
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    with pytest.raises(DataError, match=r"no film has a report .*a\.png: its report is missing.* If reports\.csv"):
        table.read(tmp_path)


def test_a_missing_path_is_an_error_of_usage(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file or folder"):
        table.read(tmp_path / "none.csv")
