"""MANIFEST.csv and folders: which films a batch finds, and how it reports other files and mistakes."""

from __future__ import annotations

import os

import pytest

from pedcxr_client import Age, InputError
from pedcxr_client.batch import folder, manifest
from pedcxr_client.batch.manifest import Entry, SkippedFile
from pedcxr_client.cli.main import main


@pytest.fixture
def write(tmp_path):
    def write(data: str | bytes) -> str:
        path = tmp_path / "manifest.csv"
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return str(path)

    return write


PLAIN = "path,id,age,sex\na.png,1,5y,M\nb/c.png,2,,\n"


@pytest.mark.parametrize(
    "data",
    [
        PLAIN,
        PLAIN.replace("\n", "\r\n"),
        "\ufeff" + PLAIN,
        PLAIN.replace("path", " Path ").replace("sex", "SEX").replace(",M", ", m "),
        PLAIN.replace("\n", "\n\n,,,\n"),
        PLAIN.rstrip("\n"),
        PLAIN.replace("a.png", '"a.png"'),
        PLAIN.replace("5y", "05Y"),
        PLAIN.replace(",", ";"),
        PLAIN.replace(",", "\t"),
        "sep=,\n" + PLAIN,
        "\ufeffSEP=;\r\n" + PLAIN.replace(",", ";"),
        '"sep=\t"\n' + PLAIN.replace(",", "\t"),
        b"\xff\xfe" + PLAIN.encode("utf-16-le"),
        b"\xfe\xff" + PLAIN.replace(",", "\t").replace("\n", "\r\n").encode("utf-16-be"),
    ],
    ids=[
        "plain",
        "crlf",
        "bom",
        "header",
        "blank",
        "end",
        "quoted",
        "05Y",
        "semicolon",
        "tab",
        "sep-comma",
        "sep-semicolon",
        "sep-tab",
        "utf-16-le",
        "utf-16-be",
    ],
)
def test_csv_dialects_give_the_same_films(write, tmp_path, data):
    path = write(data)
    assert manifest.check(path) == 2
    first, second = manifest.read(path)
    assert (first.id, first.path, first.age, first.sex) == ("1", str(tmp_path / "a.png"), Age(5, "Y"), "M")
    assert (second.id, second.path, second.age, second.sex) == ("2", str(tmp_path / "b/c.png"), None, None)


def test_every_column_is_read_and_the_path_is_the_default_id(write):
    [entry] = manifest.read(write("allow,assume_chest,path\nage  quality,YES,x.dcm\n"))
    assert (entry.id, entry.assume_chest, entry.allow) == ("x.dcm", True, ("age", "quality"))


@pytest.mark.parametrize(("yes", "no"), [("TRUE", "FALSE"), ("WAHR", "FALSCH"), ("VRAI", "FAUX"), ("ADEVĂRAT", "FALS")])
def test_truth_values_of_excel_in_four_languages(write, yes, no):
    entries = manifest.read(write(f"path;assume_chest\na.png;{yes}\nb.png;{no}\nc.png;\n"))
    assert [entry.assume_chest for entry in entries] == [True, False, False]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("", '"path" is missing'),
        ("id,age\n1,5y\n", '"path" is missing'),
        ("path|age\na.png|5y\n", "unknown column 1"),
        ("path,age;sex\na.png,5y;M\n", "unknown column 2"),
        ("sep=|\npath|age\na.png|5y\n", "line 1: sep= must name a comma"),
        ("sep=;\npath;id\na.png;7\nb.png;7\n", "line 4: id is already used on line 3"),
        ("path,id,age\na.png,1,5y\nb.png,2,Popescu Ana\n", "line 3: age must be a number and one of d, w, m, y"),
        ("path,age\na.png,0y\n", "line 2: age must be"),
        ("path,age\na.png,62\n", "line 2: age must be"),
        ("path,sex\na.png,Popescu\n", "line 2: sex must be M or F"),
        ("path,allow\na.png,age Popescu\n", "line 2: allow must name checks, separated by spaces: modality,"),
        ("path,age\n" + "a.png,Popescu\n" * 12, "and 2 more"),
        ("path,gender\na.png,M\n", "unknown column 2; rename or remove it"),
        ("path,age,AGE\na.png,5y,5y\n", '"age" appears twice'),
        ("path\n", "lists no film"),
        ("path,id\na.png,7\nb.png,8\nc.png,7\n", "line 4: id is already used on line 2"),
        ("path\na.png\na.png\n", "line 3: id is already used on line 2"),
        ("path,id\na.png\n", "line 2: has 1 cells but the header has 2"),
        ("path,id\n,7\n", "line 2: path is empty"),
        ("path,id\na.png,\n", "line 2: id is empty"),
        ("path,assume_chest\na.png,perhaps\n", "line 2: assume_chest must be yes or no"),
        ("path\n../a.png\n", "line 2: path leads outside the manifest's folder"),
        ("path\n/etc/passwd\n", "line 2: path leads outside the manifest's folder"),
        ("path\nb/../../a.png\n", "line 2: path leads outside the manifest's folder"),
        ("path\nout/a.png\n", "line 2: path leads outside the manifest's folder"),
        ("path\na\0.png\n", "line 2: path contains a NUL character"),
        ("path,id\na.png," + "Popescu" * 1_500_000 + "\n", "line 2: a cell is longer than 131072"),
        ('path,id\na.png,"Popescu\nb.png,2\n', "not valid CSV"),
        (b"path\n\xff\xfe.png\n", "not UTF-8"),
        ("path\nBăiat.png\n".encode("cp1250"), "save it as CSV UTF-8"),
        ("path\na.png\n".encode("utf-16")[:-1], "not UTF-8"),
        ("path\na.png\n".encode("utf-16-le"), "unknown column 1"),
        ("path\na.png\n".encode("utf-32"), "unknown column 1"),
        ("path\n" + "../Popescu.png\n" * 15, "and 5 more"),
    ],
)
def test_errors_give_the_line_but_not_the_content(write, tmp_path, capsys, data, message):
    (tmp_path / "out").symlink_to("/usr")
    path = write(data)
    with pytest.raises(InputError, match=r"^the manifest: ") as raised:
        manifest.check(path)
    assert message in str(raised.value)
    assert "Popescu" not in str(raised.value)
    assert len(str(raised.value)) < 2000
    assert main(["batch", path, "-o", str(tmp_path / "out.jsonl")]) == 3
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists(), "the output is not created before the manifest is valid"


def test_missing_manifest(tmp_path, capsys):
    assert main(["batch", str(tmp_path / "missing.csv"), "-o", str(tmp_path / "o")]) == 3
    assert "No such file" in capsys.readouterr().err


def test_allow_outside_accepts_films_outside_the_folder(write, tmp_path):
    [entry] = manifest.read(write("path\n../a.png\n"), allow_outside=True)
    assert os.path.realpath(entry.path) == str(tmp_path.parent / "a.png")


def test_read_raises_at_an_invalid_row(write):
    with pytest.raises(InputError, match="line 3"):
        list(manifest.read(write("path\na.png\n../b.png\n")))


@pytest.fixture
def tree(tmp_path, film):
    """A folder with films, other files, links and a pipe."""
    top = tmp_path / "films"
    (top / "b/deep").mkdir(parents=True)
    (top / "empty-folder").mkdir()
    (top / "a.png").write_bytes(film)
    (top / "b/deep/no-suffix").write_bytes(b"\0" * 128 + b"DICM" + b"\x02\0\0\0UL\x04\0\0\0\0\0")
    (top / "b/lies.txt").write_bytes(film)
    (top / "b/notes.png").write_text("Popescu Ana, 5 years")
    (top / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM" + b"\x02\0\x02\0UI\x14\0" + b"1.2.840.10008.1.3.10\0")
    (top / "zero.dcm").touch()
    os.mkfifo(top / "pipe")
    (tmp_path / "elsewhere.png").write_bytes(film)
    (top / "link-in.png").symlink_to("a.png")
    (top / "link-out.png").symlink_to("../elsewhere.png")
    (top / "link-nowhere").symlink_to("gone.png")
    (top / "b/up").symlink_to("..", target_is_directory=True)
    (top / os.fsdecode(b"caf\xe9.png")).write_bytes(film)
    return top


SKIPPED_FILES = {
    "DICOMDIR": "a DICOMDIR, the index of other files",
    "b/notes.png": "neither DICOM nor an image",
    "b/up": "a link to a folder",
    "link-nowhere": "a broken link",
    "link-out.png": "a link to a file outside the folder",
    "pipe": "not a regular file",
    "zero.dcm": "empty",
}
FILMS = ["a.png", "b/deep/no-suffix", "b/lies.txt", "caf\\udce9.png", "link-in.png"]


def test_magic_bytes_decide_what_is_a_film(tree):
    entries = list(folder.walk(str(tree), exclude=str(tree / "a-run.jsonl")))
    assert [entry.id for entry in entries if isinstance(entry, Entry)] == FILMS
    assert {entry.id: entry.reason for entry in entries if isinstance(entry, SkippedFile)} == SKIPPED_FILES
    assert all(os.path.isfile(entry.path) for entry in entries if isinstance(entry, Entry))


def test_output_is_excluded_and_outside_links_may_be_allowed(tree):
    walk = folder.walk(str(tree), allow_outside=True, exclude=str(tree / "b/notes.png"))
    entries = {entry.id: entry for entry in walk}
    assert "b/notes.png" not in entries
    assert isinstance(entries["link-out.png"], Entry)


def test_dry_run_lists_all_files_and_sends_nothing(tree, engine, capsys):
    assert main(["batch", str(tree), "--dry-run", "--url", engine.url]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sorted(lines) == sorted(
        [f"film\t{name}" for name in FILMS] + [f"left out\t{name}\t{reason}" for name, reason in SKIPPED_FILES.items()]
    )
    assert not engine.requests


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_file_that_cannot_be_opened_counts_as_a_film(tree):
    (tree / "a.png").chmod(0)
    assert folder.skip_reason(str(tree / "a.png")) is None
