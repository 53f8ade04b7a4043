"""Identifiers of a header appear in no image, output, log, repr, error or request."""

from __future__ import annotations

import base64
import io
import logging
import re
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
from pedcxr_client.films.header.elements import silence_pydicom

pytest.importorskip("pydicom")

from pydicom.datadict import DicomDictionary

from tests.support.films.dicom_maker import dataset, film, to_bytes

M17 = ("DOE", "JANE", "MRN0012345", "20190101", "2019", "SYNTHETIC", "HOSPITAL", "SMITH", "JOHN", "999-99-9999", "SYN-")
SECRET = "Popescu^Ana"
TEXT_VRS = {"AE", "LO", "LT", "PN", "SH", "ST", "UC", "UT", "UR"}


def film_with_identifiers() -> bytes:
    """Return a film with a name in every text element of DICOM; some of the values are malformed."""
    ds = dataset(WindowCenter=2048, WindowWidth=4096)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for tag, (vr, _, _, _, keyword) in DicomDictionary.items():
            animal = any(word in keyword for word in ("Respons", "Species", "Breed"))
            if vr in TEXT_VRS and keyword and tag >> 16 not in (0, 2, 4) and not animal:
                ds.add_new(tag, vr, SECRET)
        ds.private_block(0x0011, "ACME", create=True).add_new(1, "LO", SECRET)
        ds.PatientBirthDate, ds.PatientID, ds.StudyInstanceUID = "20190317", SECRET, "1.2.999.4711"
        return to_bytes(ds)


def request_bytes(engine) -> bytes:
    return b"".join(
        b"".join((request.body, str(request.headers).encode(), request.path.encode())) for request in engine.requests
    )


def png_and_pixels(encoded: EncodedImage) -> bytes:
    """Return the PNG file followed by its uncompressed pixel data."""
    data = base64.b64decode(encoded.base64)
    at, packed = 8, b""
    while at < len(data):
        length = int.from_bytes(data[at : at + 4])
        packed += data[at + 8 : at + 8 + length] if data[at + 4 : at + 8] == b"IDAT" else b""
        at += 12 + length
    return data + zlib.decompress(packed)


def error_texts(data: object) -> str:
    """Return the texts of the error, of its chain and of its traceback."""
    with pytest.raises(InputError) as error:
        encode(load(data))
    chain, one = [], error.value
    while one is not None:
        chain += [str(one), repr(one), *map(str, vars(one).values())]
        one = one.__cause__ or one.__context__
    return " ".join(chain) + "".join(traceback.format_exception(error.value))


def test_identifiers_of_the_m17_film_appear_nowhere(films, engine, twin, capfd, caplog, tmp_path):
    """Use film m17 of the film set, which has identifiers."""
    path = tmp_path / "film.dcm"
    path.write_bytes((films / "dicom_derived/m17_phi_present.dcm").read_bytes())
    caplog.set_level(logging.DEBUG)
    texts = [repr(twin.report(engine.url, str(path))), str(twin.report(engine.url, str(path)).as_dict())]
    for command in (
        ["inspect", str(path)],
        ["inspect", str(path), "--json"],
        ["report", str(path), "--url", engine.url],
    ):
        assert main(command) == 0
    encoded = prepare(path)
    undecoded = read(path)
    texts += [*map(repr, (encoded, encoded.facts, load(path), undecoded, undecoded._source)), str(encoded.how)]
    texts += [
        str(rules.check(encoded.facts, rules.CallerFacts(), encoded.stats)),
        png_and_pixels(encoded).decode("latin-1"),
        request_bytes(engine).decode(),
    ]
    texts += [*capfd.readouterr(), *(record.getMessage() for record in caplog.records)]
    for secret in M17:
        # Request ids, ports, addresses and times may hold the digits of a year within longer numbers.
        pattern = re.compile(rf"(?<![0-9a-f.]){secret}(?![0-9a-f])" if secret.isdigit() else re.escape(secret))
        assert not any(pattern.search(line) for line in texts), secret


def test_identifiers_in_every_element_appear_nowhere(engine, twin, capfd, caplog, tmp_path):
    path = tmp_path / "film.dcm"
    path.write_bytes(film_with_identifiers())
    caplog.clear()  # pydicom logs while it writes the film
    caplog.set_level(logging.DEBUG)
    report = twin.report(engine.url, str(path))
    assert main(["inspect", str(path)]) == 0
    assert main(["inspect", str(path), "--json"]) == 0
    encoded = prepare(path)
    texts = [*capfd.readouterr(), *(record.getMessage() for record in caplog.records), repr(read(path))]
    texts += [
        str(report.as_dict()),
        repr(encoded.facts),
        png_and_pixels(encoded).decode("latin-1"),
        request_bytes(engine).decode(),
    ]
    for secret in ("Popescu", "20190317", "1.2.999.4711", "ACME"):
        assert not any(secret in line for line in texts), secret


@pytest.mark.parametrize(
    "damage",
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
def test_errors_and_warnings_do_not_quote_the_header(damage, caplog, capfd, tmp_path):
    data = damage(
        film(PatientName=SECRET, PatientID=SECRET, SpecificCharacterSet="Popescu", WindowCenter=2048.0, WindowWidth=9)
    )
    caplog.clear()
    caplog.set_level(logging.DEBUG)
    with warnings.catch_warnings(record=True) as warning_records:
        warnings.simplefilter("always")
        try:
            texts = [str(read(data).facts), *load(data).how]
        except InputError:
            texts = [error_texts(data)]
    path = tmp_path / "film.dcm"
    path.write_bytes(data)
    assert main(["inspect", str(path)]) in (0, 3)
    texts += [record.getMessage() for record in caplog.records] + [str(one.message) for one in warning_records]
    texts += capfd.readouterr()
    assert not any("Popesc" in line for line in texts), texts
    assert not warning_records


def test_pydicom_logs_of_other_threads_are_kept(caplog):
    log = logging.getLogger("pydicom.misc")
    with silence_pydicom():
        log.warning("ours")
        other = threading.Thread(target=log.warning, args=("theirs",))
        other.start()
        other.join()
    log.warning("later")
    assert [record.getMessage() for record in caplog.records] == ["theirs", "later"]


def test_overlapping_threads_restore_the_warning_filters():
    before = list(warnings.filters)
    first_in, second_in, release = threading.Event(), threading.Event(), threading.Event()

    def first() -> None:
        with silence_pydicom():
            first_in.set()
            second_in.wait(30)

    def second() -> None:
        first_in.wait(30)
        with silence_pydicom():
            second_in.set()
            release.wait(30)

    threads = [threading.Thread(target=run) for run in (first, second)]
    for thread in threads:
        thread.start()
    threads[0].join()
    release.set()
    threads[1].join()
    assert warnings.filters == before


def test_encoded_image_has_no_metadata():
    encoded = prepare(film_with_identifiers())
    picture = Image.open(io.BytesIO(base64.b64decode(encoded.base64)))
    assert (picture.format, picture.mode, picture.info) == ("PNG", "L", {})


def test_server_errors_hold_no_identifiers(engine, twin):
    from tests.support.servers.fake_engine import Answer

    engine.answer = Answer(status=400)
    with pytest.raises(RequestError) as error:
        twin.report(engine.url, film_with_identifiers())
    assert "Popescu" not in repr(error.value) + str(vars(error.value))
