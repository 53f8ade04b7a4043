"""Identifiers of a header are in no picture, no output, no log, no repr, no error and no byte on the wire."""

from __future__ import annotations

import base64
import io
import logging
import threading
import traceback
import warnings
import zlib

import pytest
from PIL import Image

from pedcxr_client import InputError, RequestError
from pedcxr_client.checks import rules
from pedcxr_client.cli.main import main
from pedcxr_client.films.film import EncodedImage, encode, load, prepare, read
from pedcxr_client.films.header import silence_pydicom

pytest.importorskip("pydicom")

from pydicom.datadict import DicomDictionary

from tests.support.dicom_maker import dataset, film, written

M17 = ("DOE", "JANE", "MRN0012345", "20190101", "2019", "SYNTHETIC", "HOSPITAL", "SMITH", "JOHN", "999-99-9999", "SYN-")
SECRET = "Popescu^Ana"
TEXT_VRS = {"AE", "LO", "LT", "PN", "SH", "ST", "UC", "UT", "UR"}


def planted() -> bytes:
    """A film with a name in every element of text that DICOM has, some of them malformed."""
    made = dataset(WindowCenter=2048, WindowWidth=4096)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for tag, (vr, _, _, _, keyword) in DicomDictionary.items():
            animal = any(word in keyword for word in ("Respons", "Species", "Breed"))
            if vr in TEXT_VRS and keyword and tag >> 16 not in (0, 2, 4) and not animal:
                made.add_new(tag, vr, SECRET)
        made.private_block(0x0011, "ACME", create=True).add_new(1, "LO", SECRET)
        made.PatientBirthDate, made.PatientID, made.StudyInstanceUID = "20190317", SECRET, "1.2.999.4711"
        return written(made)


def wire(engine) -> bytes:
    return b"".join(b"".join((seen.body, str(seen.headers).encode(), seen.path.encode())) for seen in engine.requests)


def deep(sent: EncodedImage) -> bytes:
    """The image file, and the pixels it unpacks to."""
    data = base64.b64decode(sent.base64)
    at, packed = 8, b""
    while at < len(data):
        length = int.from_bytes(data[at : at + 4])
        packed += data[at + 8 : at + 8 + length] if data[at + 4 : at + 8] == b"IDAT" else b""
        at += 12 + length
    return data + zlib.decompress(packed)


def caught(data: object) -> str:
    """The error with all it drags along."""
    with pytest.raises(InputError) as error:
        encode(load(data))
    chain, one = [], error.value
    while one is not None:
        chain += [str(one), repr(one), *map(str, vars(one).values())]
        one = one.__cause__ or one.__context__
    return " ".join(chain) + "".join(traceback.format_exception(error.value))


def test_the_film_with_planted_identifiers(films, engine, twin, capfd, caplog, tmp_path):
    """m17 of the film set."""
    path = tmp_path / "film.dcm"
    path.write_bytes((films / "dicom_derived/m17_phi_present.dcm").read_bytes())
    caplog.set_level(logging.DEBUG)
    said = [repr(twin.report(engine.url, str(path))), str(twin.report(engine.url, str(path)).as_dict())]
    for command in (
        ["inspect", str(path)],
        ["inspect", str(path), "--json"],
        ["report", str(path), "--url", engine.url],
    ):
        assert main(command) == 0
    sent = prepare(path)
    undecoded = read(path)
    said += [*map(repr, (sent, sent.facts, load(path), undecoded, undecoded._source)), str(sent.how)]
    said += [
        str(rules.check(sent.facts, rules.CallerFacts(), sent.stats)),
        deep(sent).decode("latin-1"),
        wire(engine).decode(),
    ]
    said += [*capfd.readouterr(), *(record.getMessage() for record in caplog.records)]
    for secret in M17:
        assert not any(secret in line for line in said), secret


def test_a_name_in_every_element_shows_up_nowhere(engine, twin, capfd, caplog, tmp_path):
    path = tmp_path / "film.dcm"
    path.write_bytes(planted())
    caplog.clear()  # what pydicom said while it wrote
    caplog.set_level(logging.DEBUG)
    report = twin.report(engine.url, str(path))
    assert main(["inspect", str(path)]) == 0
    assert main(["inspect", str(path), "--json"]) == 0
    sent = prepare(path)
    said = [*capfd.readouterr(), *(record.getMessage() for record in caplog.records), repr(read(path))]
    said += [str(report.as_dict()), repr(sent.facts), deep(sent).decode("latin-1"), wire(engine).decode()]
    for secret in ("Popescu", "20190317", "1.2.999.4711", "ACME"):
        assert not any(secret in line for line in said), secret


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[:1500],
        lambda data: data.replace(b"005Y", b"POPE"),
        lambda data: data.replace(b"2048.0", b"Popesc"),
        lambda data: data.replace(b"MONOCHROME2", b"Popescu^Ana"),
        lambda data: data.replace(b"1.2.840.10008.1.2.1\0", b"1.2.Popescu^Ana\0\0\0\0\0"),
        lambda data: data.replace(b"DX", b"^A"),
        lambda data: data[:-70000],
    ],
)
def test_errors_and_warnings_do_not_quote_the_header(spoil, caplog, capfd, tmp_path):
    data = spoil(
        film(PatientName=SECRET, PatientID=SECRET, SpecificCharacterSet="Popescu", WindowCenter=2048.0, WindowWidth=9)
    )
    caplog.clear()
    caplog.set_level(logging.DEBUG)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            said = [str(read(data).facts), *load(data).how]
        except InputError:
            said = [caught(data)]
    path = tmp_path / "film.dcm"
    path.write_bytes(data)
    assert main(["inspect", str(path)]) in (0, 3)
    said += [record.getMessage() for record in caplog.records] + [str(one.message) for one in warned]
    said += capfd.readouterr()
    assert not any("Popesc" in line for line in said), said
    assert not warned


def test_pydicom_may_still_talk_to_others(caplog):
    log = logging.getLogger("pydicom.misc")
    with silence_pydicom():
        log.warning("ours")
        other = threading.Thread(target=log.warning, args=("theirs",))
        other.start()
        other.join()
    log.warning("later")
    assert [record.getMessage() for record in caplog.records] == ["theirs", "later"]


def test_overlapping_threads_leave_the_warning_filters_as_they_were():
    before = list(warnings.filters)
    first_in, second_in, release = threading.Event(), threading.Event(), threading.Event()

    def first() -> None:
        with silence_pydicom():
            first_in.set()
            second_in.wait(5)

    def second() -> None:
        first_in.wait(5)
        with silence_pydicom():
            second_in.set()
            release.wait(5)

    threads = [threading.Thread(target=run) for run in (first, second)]
    for thread in threads:
        thread.start()
    threads[0].join()
    release.set()
    threads[1].join()
    assert warnings.filters == before


def test_nothing_but_pixels_is_in_the_picture():
    sent = prepare(planted())
    picture = Image.open(io.BytesIO(base64.b64decode(sent.base64)))
    assert (picture.format, picture.mode, picture.info) == ("PNG", "L", {})


def test_server_errors_hold_nothing_either(engine, twin):
    from tests.support.fake_engine import Answer

    engine.answer = Answer(status=400)
    with pytest.raises(RequestError) as error:
        twin.report(engine.url, planted())
    assert "Popescu" not in repr(error.value) + str(vars(error.value))
