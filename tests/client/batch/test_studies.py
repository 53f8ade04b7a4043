"""``pedcxr batch --one-per-study``, and the study of each film in OUT.jsonl."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian

from pedcxr_client.batch.manifest import Entry
from pedcxr_client.batch.study_selection import StudySelection
from pedcxr_client.checks.rules import CallerFacts
from pedcxr_client.cli.main import main
from pedcxr_client.films import dicom, film
from pedcxr_client.films.header.elements import Fact
from pedcxr_client.films.header.facts import Facts, study_digest
from tests.client.batch.helpers import batch, lines, reported
from tests.support.films import dicom_maker
from tests.support.films.dicom_maker import ramp

UID = "1.2.826.0.1.3680043.8.498.7"
PA, AP = {"ViewPosition": "PA"}, {"ViewPosition": "AP"}
LATERAL = {"ViewPosition": "LL", "PatientOrientation": ["A", "F"]}
UNSTATED = {"ViewPosition": "", "PatientOrientation": ""}
RAW = {"PresentationIntentType": "FOR PROCESSING"}
ABDOMEN = {"BodyPartExamined": "ABDOMEN"}
ADULT = {"PatientAge": "045Y"}


def write(folder: Path, **films: dict[str, Any]) -> None:
    folder.mkdir(exist_ok=True)
    for number, (name, elements) in enumerate(films.items()):
        elements = {"StudyInstanceUID": UID, **elements}
        (folder / name).write_bytes(dicom_maker.film(ramp(top=4000 + number), **elements))


@pytest.mark.parametrize(
    ("films", "choice"),
    [
        ({"a": LATERAL, "b": PA}, "b"),
        ({"a": AP, "b": PA}, "b"),
        ({"a": AP, "b": LATERAL, "c": AP}, "a"),
        ({"c": PA, "b": PA}, "b"),
        ({"a": UNSTATED, "b": AP}, "b"),
        ({"a": LATERAL, "b": UNSTATED}, "b"),
        ({"a": LATERAL, "b": LATERAL}, "a"),
        ({"a": PA | RAW, "b": AP}, "b"),
        ({"a": PA | ABDOMEN, "b": LATERAL}, "b"),
        ({"a": PA | ADULT, "b": PA | ADULT}, None),
    ],
)
def test_film_of_a_study(engine, out, tmp_path, films, choice):
    write(tmp_path / "study", **films)
    assert batch(tmp_path / "study", out, engine.url, "--one-per-study") == (0 if choice else 3)
    assert list(reported(out)) == ([choice] if choice else [])
    assert sorted(line["id"] for line in lines(out)) == sorted(films)
    [study] = {line["study"] for line in lines(out)}
    assert study and UID not in out.read_text()


REASONS = {
    "abdomen": "--one-per-study: it is outside the intended use or cannot be read",
    "ap": "--one-per-study: another film comes before it in the order PA, AP, other views, lowest id",
    "lateral": "--one-per-study: it is lateral",
    "unstated": "--one-per-study: its header does not state a frontal view",
}


def test_every_other_film_gets_its_reason_once(engine, out, tmp_path, film, capsys):
    folder = tmp_path / "films"
    write(folder, abdomen=PA | ABDOMEN, ap=AP, lateral=LATERAL, pa=PA, unstated=UNSTATED)
    write(folder, other=LATERAL | {"StudyInstanceUID": UID + ".1"}, none=PA | {"StudyInstanceUID": None})
    write(folder, invalid=AP | {"StudyInstanceUID": "X-1"}, none2=AP | {"StudyInstanceUID": ""})
    (folder / "plain.png").write_bytes(film)
    (folder / "broken.dcm").write_bytes(dicom_maker.film()[:140])
    assert main(["batch", str(folder), "--dry-run", "--one-per-study"]) == 0
    listing = capsys.readouterr().out.splitlines()
    arguments = (folder, out, engine.url, "--one-per-study", "--age", "5y")
    assert batch(*arguments) == 3, "broken.dcm"
    assert sorted(reported(out)) == ["invalid", "none", "none2", "other", "pa", "plain.png"]
    skipped = {line["id"]: line["error"] for line in lines(out) if line.get("error", {}).get("kind") == "skipped"}
    messages = {name: f"{reason}; the report is that of id pa" for name, reason in REASONS.items()}
    assert {name: error["message"] for name, error in skipped.items()} == messages
    assert sorted(line for line in listing if line.startswith("left out")) == [
        f"left out\t{name}\t{message}" for name, message in sorted(messages.items())
    ]
    err = capsys.readouterr().err
    assert all(f"skipped: 1 x {reason}\n" in err for reason in REASONS.values())
    before = out.read_bytes()
    assert batch(*arguments) == 3
    assert out.read_bytes() == before


def test_progress_of_the_headers(engine, out, tmp_path, capsys):
    write(tmp_path / "study", a=PA, b=LATERAL)
    assert batch(tmp_path / "study", out, engine.url, "--one-per-study", "--progress") == 0
    err = capsys.readouterr().err
    assert "2/2 [" in err and "headers/s" in err and "1/1 [" in err


def test_resumed_run_keeps_the_film_that_has_a_report(engine, out, tmp_path):
    folder = tmp_path / "study"
    write(folder, b=AP)
    assert batch(folder, out, engine.url, "--one-per-study") == 0
    write(folder, a=PA, c=LATERAL)
    assert batch(folder, out, engine.url, "--one-per-study") == 0
    assert list(reported(out)) == ["b"]


def test_frontal_film_that_arrives_after_a_lateral_one_is_reported(engine, out, tmp_path):
    folder = tmp_path / "study"
    write(folder, a=LATERAL)
    assert batch(folder, out, engine.url, "--one-per-study") == 0
    write(folder, b=PA)
    assert batch(folder, out, engine.url, "--one-per-study") == 0
    assert list(reported(out)) == ["a", "b"]
    assert len(lines(out)) == 2, "a line of an error would follow the report of the same id"


def test_film_whose_pixels_are_damaged_gives_way_to_the_next_in_the_next_run(engine, out, tmp_path):
    folder = tmp_path / "study"
    write(folder, a=PA, b=AP)
    data = (folder / "a").read_bytes()
    (folder / "a").write_bytes(data[:-1000])
    assert batch(folder, out, engine.url, "--one-per-study") == 3
    assert not reported(out)
    assert batch(folder, out, engine.url, "--one-per-study") == 0
    assert list(reported(out)) == ["b"]


def test_caller_facts_of_the_manifest_count(engine, out, tmp_path):
    write(tmp_path / "study", a=PA | ADULT, b=AP)
    manifest = tmp_path / "manifest.csv"
    manifest.write_text("path;allow\nstudy/a;age\nstudy/b;\n")
    assert batch(manifest, out, engine.url, "--one-per-study") == 0
    assert list(reported(out)) == ["study/a"]


def test_study_is_salted_for_each_file_and_kept_by_a_resume(engine, out, tmp_path, film):
    folder = tmp_path / "films"
    write(folder, a=PA, b=LATERAL, c=PA | {"StudyInstanceUID": UID + ".1"})
    (folder / "plain.png").write_bytes(film)
    assert batch(folder, out, engine.url) == 0
    write(folder, d=AP)
    assert batch(folder, out, engine.url) == 0
    studies = {line["id"]: line["study"] for line in lines(out)}
    assert studies["a"] == studies["b"] == studies["d"] != studies["c"]
    assert studies["plain.png"] is None
    other = tmp_path / "other.jsonl"
    assert batch(folder, other, engine.url) == 0
    assert not {line["study"] for line in lines(other)} - {None} & set(studies.values())
    assert study_digest(dicom_maker.dataset(StudyInstanceUID=UID)) not in out.read_text()


def test_one_uid_for_all_films_is_reported(tmp_path, capsys):
    write(tmp_path / "films", **{f"{number:02}": PA for number in range(21)})
    assert main(["batch", str(tmp_path / "films"), "--dry-run", "--one-per-study"]) == 0
    assert "21 films have the same StudyInstanceUID" in capsys.readouterr().err


BARE = dicom_maker.film(syntax=ImplicitVRLittleEndian, StudyInstanceUID=UID)


@pytest.mark.parametrize(
    "data",
    [
        dicom_maker.film(StudyInstanceUID=UID),
        dicom_maker.film(syntax=ImplicitVRLittleEndian, StudyInstanceUID=UID),
        dicom_maker.film(syntax=DeflatedExplicitVRLittleEndian, StudyInstanceUID=UID),
        dicom_maker.film(syntax="1.2.840.10008.1.2.2", StudyInstanceUID=UID),
        BARE[BARE.index(b"\x08\0\x16\0", 132) :],
        dicom_maker.film(PatientAge="Popescu", StudyInstanceUID=None),
    ],
    ids=["explicit", "implicit", "deflated", "big endian", "bare", "no study"],
)
def test_header_alone_gives_the_same_facts(tmp_path, data):
    path = tmp_path / "film.dcm"
    path.write_bytes(data)
    facts = dicom.read(data).facts
    assert dicom.read_facts(str(path)) == facts
    assert dicom.read_study(data) == facts.study
    assert bool(facts.study) == (b"Popescu" not in data)


def test_header_of_real_films(films):
    for path in sorted(films.glob("dicom_*/*")):
        data = path.read_bytes()
        if dicom.is_dicom(data):
            facts = film.read(data).facts
            assert dicom.read_facts(str(path)) == facts
            assert dicom.read_study(data) == facts.study


def test_pixels_are_not_read(tmp_path):
    path = tmp_path / "film.dcm"
    path.write_bytes(dicom_maker.film(ramp(2000, 2000), StudyInstanceUID=UID))
    tracemalloc.start()
    try:
        assert dicom.read_facts(str(path)).study
        assert tracemalloc.get_traced_memory()[1] < path.stat().st_size / 4
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_memory_of_20_000_films():
    facts = [
        Facts(kind="dicom", view=Fact(view, ""), study=f"{number:032x}")
        for number in range(10_000)
        for view in ("PA", "LL")
    ]
    tracemalloc.start()
    try:
        selection = StudySelection(lambda _: CallerFacts(), reported=(), refused=())
        for number, fact in enumerate(facts):
            selection.add(Entry(id=f"some/folder/{number}.dcm", path=""), fact)
        size = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    print(f"\n{size / 20_000:.0f} bytes per film")
    assert size < 20_000 * 600
    assert selection.reason_to_skip(Entry(id="some/folder/0.dcm", path="")) is None
    assert selection.reason_to_skip(Entry(id="some/folder/1.dcm", path="")) is not None
