"""MANIFEST.csv and folders: what a batch takes for its films, and what it says of everything else."""

from __future__ import annotations

import os

import pytest

from pedcxr_client import InputError
from pedcxr_client.batch import folder, manifest
from pedcxr_client.batch.manifest import Entry, LeftOut
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
    ],
    ids=["plain", "crlf", "bom", "header", "blank", "end", "quoted"],
)
def test_the_same_films_however_it_was_saved(write, tmp_path, data):
    path = write(data)
    assert manifest.check(path) == 2
    one, two = manifest.read(path)
    assert (one.id, one.path, one.age, one.sex) == ("1", str(tmp_path / "a.png"), "5y", "M")
    assert (two.id, two.path, two.age, two.sex) == ("2", str(tmp_path / "b/c.png"), None, None)


def test_every_column_and_the_path_for_an_id(write):
    [one] = manifest.read(write("allow,assume_chest,path\nage  quality,YES,x.dcm\n"))
    assert (one.id, one.assume_chest, one.allow) == ("x.dcm", True, ("age", "quality"))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("", '"path" is missing'),
        ("id,age\n1,5y\n", '"path" is missing'),
        ("path;age\na.png;5y\n", "not separated by commas"),
        ("path,gender\na.png,M\n", "column 2 is none that is known"),
        ("path,age,AGE\na.png,5y,5y\n", '"age" is there twice'),
        ("path\n", "names no film"),
        ("path,id\na.png,7\nb.png,8\nc.png,7\n", "line 4: its id is on line 2 already"),
        ("path\na.png\na.png\n", "line 3: its id is on line 2 already"),
        ("path,id\na.png\n", "line 2: has 1 cells, the header 2"),
        ("path,id\n,7\n", "line 2: its path is empty"),
        ("path,id\na.png,\n", "line 2: its id is empty"),
        ("path,assume_chest\na.png,perhaps\n", "line 2: assume_chest is neither"),
        ("path\n../a.png\n", "line 2: its path leads out"),
        ("path\n/etc/passwd\n", "line 2: its path leads out"),
        ("path\nb/../../a.png\n", "line 2: its path leads out"),
        ("path\nout/a.png\n", "line 2: its path leads out"),
        ("path\na\0.png\n", "line 2: its path holds a NUL"),
        ("path,id\na.png," + "Popescu" * 1_500_000 + "\n", "line 2: a cell is longer than 131072"),
        ('path,id\na.png,"Popescu\nb.png,2\n', "no CSV"),
        (b"path\n\xff\xfe.png\n", "not UTF-8"),
        ("path\n" + "../Popescu.png\n" * 15, "and 5 more"),
    ],
)
def test_what_is_wrong_is_said_with_its_line_and_without_its_content(write, tmp_path, capsys, data, says):
    (tmp_path / "out").symlink_to("/usr")
    path = write(data)
    with pytest.raises(InputError, match=r"^the manifest: ") as caught:
        manifest.check(path)
    assert says in str(caught.value)
    assert "Popescu" not in str(caught.value)
    assert len(str(caught.value)) < 2000
    assert main(["batch", path, "-o", str(tmp_path / "out.jsonl")]) == 3
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists(), "nothing is begun before the manifest is right"


def test_a_manifest_that_is_not_there(tmp_path, capsys):
    assert main(["batch", str(tmp_path / "missing.csv"), "-o", str(tmp_path / "o")]) == 3
    assert "No such file" in capsys.readouterr().err


def test_films_from_outside_may_be_allowed(write, tmp_path):
    [one] = manifest.read(write("path\n../a.png\n"), allow_outside=True)
    assert os.path.realpath(one.path) == str(tmp_path.parent / "a.png")


def test_a_wrong_row_found_late_is_said_too(write):
    with pytest.raises(InputError, match="line 3"):
        list(manifest.read(write("path\na.png\n../b.png\n")))


@pytest.fixture
def tree(tmp_path, film):
    """A folder as they come."""
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


LEFT_OUT = {
    "DICOMDIR": "a DICOMDIR, the index of other files",
    "b/notes.png": "neither DICOM nor an image",
    "b/up": "a link to a folder",
    "link-nowhere": "a link that leads nowhere",
    "link-out.png": "a link that leads out of the folder",
    "pipe": "not a regular file",
    "zero.dcm": "empty",
}
FILMS = ["a.png", "b/deep/no-suffix", "b/lies.txt", "caf\\udce9.png", "link-in.png"]


def test_a_folder_is_walked_and_magic_bytes_decide(tree):
    found = list(folder.walk(str(tree), leave=str(tree / "a-run.jsonl")))
    assert [entry.id for entry in found if isinstance(entry, Entry)] == FILMS
    assert {entry.id: entry.reason for entry in found if isinstance(entry, LeftOut)} == LEFT_OUT
    assert all(os.path.isfile(entry.path) for entry in found if isinstance(entry, Entry))


def test_the_output_is_not_mentioned_and_links_may_be_allowed(tree):
    found = {entry.id: entry for entry in folder.walk(str(tree), allow_outside=True, leave=str(tree / "b/notes.png"))}
    assert "b/notes.png" not in found
    assert isinstance(found["link-out.png"], Entry)


def test_a_dry_run_lists_everything_and_sends_nothing(tree, engine, capsys):
    assert main(["batch", str(tree), "--dry-run", "--url", engine.url]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sorted(lines) == sorted(
        [f"film\t{name}" for name in FILMS] + [f"left out\t{name}\t{reason}" for name, reason in LEFT_OUT.items()]
    )
    assert not engine.requests


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_what_cannot_be_opened_may_be_a_film(tree):
    (tree / "a.png").chmod(0)
    assert folder.why_no_film(str(tree / "a.png")) is None
