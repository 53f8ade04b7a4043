"""The films of a training: prepared as the client sends them, checked, and split by patient."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
from PIL import Image

from pedcxr_client import inspect
from pedcxr_client.checks import inspection
from pedcxr_client.request.film_request import FilmRequest
from pedcxr_serve.demo import drawing
from pedcxr_serve.demo.findings import sample
from pedcxr_serve.errors import DataError
from pedcxr_serve.finetune import dataset, table
from pedcxr_serve.finetune.dataset import Dataset
from pedcxr_serve.finetune.table import Row
from tests.support.films import dicom_maker


def phantom(seed: int) -> bytes:
    return drawing.encode_png(drawing.render(sample(seed), seed))


def request(row: Row) -> FilmRequest:
    return FilmRequest(row.entry.path, age=row.entry.age, sex=row.entry.sex, allow=row.entry.allow)


Prepare = Callable[..., Dataset]


@pytest.fixture
def prepare(tmp_path: Path) -> Prepare:
    """Return a function that prepares films: (name, bytes, other cells) each."""

    def run(*films: tuple[str, bytes, dict[str, str]], **options: object) -> Dataset:
        columns = list(dict.fromkeys(["path", "report", *(key for _, _, cells in films for key in cells)]))
        with (tmp_path / "data.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            for name, data, cells in films:
                (tmp_path / name).write_bytes(data)
                writer.writerow({"path": name, "report": f"Report of {name}.", **cells})
        rows = table.read(tmp_path / "data.csv")
        settings = {"validation": 0.25, "seed": 0, **options}
        return dataset.prepare(tmp_path / "data.csv", rows, request, tmp_path / "films", **settings)

    return run


def test_pixels_and_prompt_are_those_of_the_client(prepare: Prepare, tmp_path: Path) -> None:
    film = dicom_maker.film(PatientID=None)
    data = prepare(("a.dcm", film, {"age": "5y", "split": "train"}))
    [example] = data.train
    sent = inspect(tmp_path / "a.dcm", age="5y")
    assert sent.image is not None
    assert sent.prompt is not None
    assert (tmp_path / "films" / example.film).read_bytes() == inspection.image_file(sent.image)
    assert example.film.startswith(sent.image.sha256)
    assert (
        example.prompt == sent.prompt.user == "Generate a radiology report for this chest X-ray of a 5-year-old female."
    )


def test_the_split_keeps_patients_together_and_depends_on_the_seed(prepare: Prepare) -> None:
    films = [(f"{seed}.png", phantom(seed), {"patient": str(seed // 2)}) for seed in range(16)]
    splits = []
    for seed in (0, 0, 1):
        data = prepare(*films, seed=seed)
        train, held = ({example.patient for example in part} for part in (data.train, data.validation))
        assert not train & held
        assert (len(data.train), len(data.validation), data.patients) == (12, 4, 8)
        splits.append(held)
    assert splits[0] == splits[1] != splits[2]


def test_copies_of_a_film_are_in_one_split(prepare: Prepare) -> None:
    """Two patients share a film, once as PNG and once as TIFF: all their films are in one split."""
    buffer = io.BytesIO()
    Image.open(io.BytesIO(phantom(0))).save(buffer, "TIFF")
    for seed in range(8):
        data = prepare(
            ("a.png", phantom(0), {"patient": "1"}),
            ("b.tiff", buffer.getvalue(), {"patient": "2"}),
            ("c.png", phantom(2), {"patient": "3"}),
            seed=seed,
            validation=0.5,
        )
        held = {example.patient for example in data.validation}
        assert held in ({"1", "2"}, {"3"})
        assert "2 lines repeat 1 films" in data.notes
        assert "1 of the repeated films have reports that differ" in data.notes


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({"patient": "7", "split": "train"}, {"patient": "7", "split": "test"}, "the same patient is in test"),
        ({"patient": "1", "split": "train"}, {"patient": "2", "split": "val"}, "the same film (equal pixels) is in"),
    ],
)
def test_splits_that_share_a_patient_or_a_film_are_refused(
    prepare: Prepare, first: dict[str, str], second: dict[str, str], message: str
) -> None:
    other = phantom(1) if first["patient"] == "7" else phantom(0)
    with pytest.raises(DataError) as error:
        prepare(("a.png", phantom(0), first), ("b.png", other, second))
    assert f"line 3: {message}" in str(error.value)
    assert "line 2" in str(error.value)


def test_blocked_films_are_refused_or_left_out(prepare: Prepare) -> None:
    films = (
        ("a.dcm", dicom_maker.film(BodyPartExamined="HAND"), {"split": "train"}),
        ("b.dcm", dicom_maker.film(PatientAge="044Y"), {"split": "train"}),
        ("c.dcm", dicom_maker.film(), {"split": "train"}),
    )
    with pytest.raises(DataError) as error:
        prepare(*films)
    assert "line 2: the film is outside the intended use. body-part" in str(error.value)
    assert "line 3: the film is outside the intended use. age" in str(error.value)
    assert str(error.value).count("; remove the line, or use --skip-blocked") == 2
    data = prepare(*films, skip_blocked=True)
    assert len(data.train) == 1
    assert data.skipped == {"body-part": 1, "age": 1}


def test_a_film_that_cannot_be_read_is_never_left_out_silently(prepare: Prepare) -> None:
    with pytest.raises(DataError, match="line 2: the film"):
        prepare(("a.png", b"\x89PNG cut", {}), skip_blocked=True)


def test_headers_that_identify_a_patient_are_refused(prepare: Prepare) -> None:
    named = {"PatientName": "Doe^Jane", "PatientID": "1234"}
    cells = {"split": "train"}
    with pytest.raises(DataError) as error:
        prepare(("a.dcm", dicom_maker.film(**named), cells))
    assert "the header identifies a patient (PatientName, PatientID)" in str(error.value)
    assert "Doe" not in str(error.value)
    assert len(prepare(("a.dcm", dicom_maker.film(**named), cells), allow_identifiers=True).train) == 1
    removed = dicom_maker.film(PatientID="1234", PatientIdentityRemoved="YES")
    [example] = prepare(("a.dcm", removed, cells)).train
    assert example.patient == "1234"


def test_a_report_with_the_patients_name_is_refused(prepare: Prepare) -> None:
    film = dicom_maker.film(PatientName="Doe^Jane")
    with pytest.raises(DataError, match="contains the PatientName"):
        prepare(("a.dcm", film, {"report": "Jane has clear lungs."}), allow_identifiers=True)


def test_the_digest_follows_the_content_and_not_names_or_order(prepare: Prepare) -> None:
    one, two = {"split": "train", "report": "A."}, {"split": "train", "report": "B."}
    films = [("a.png", phantom(0), one), ("b.png", phantom(1), two)]
    digest = prepare(*films).sha256
    assert prepare(("z.png", phantom(1), two), films[0]).sha256 == digest
    assert prepare(("a.png", phantom(0), one | {"report": "C."}), films[1]).sha256 != digest
    assert len(digest) == len(sha256().hexdigest())
