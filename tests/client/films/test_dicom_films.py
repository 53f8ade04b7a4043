"""The real films of shared/data/cxr match their MANIFEST, and all variants of one film render alike."""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pedcxr_client import InputError
from pedcxr_client.checks import rules
from pedcxr_client.checks.rules import CallerFacts
from pedcxr_client.films.film import encode, load, prepare, read
from pedcxr_client.films.header.elements import silence_pydicom
from tests.support.paths import REAL_FILMS, ROOT

pytest.importorskip("pydicom")

import pydicom
from pydicom import Dataset
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian, JPEG2000Lossless, RLELossless

from tests.support.films import unusual_films
from tests.support.films.dicom_maker import dataset, sequence, to_bytes
from tests.support.films.dicom_maker import film as dicom_film

FILMS = REAL_FILMS
MANIFEST = FILMS / "MANIFEST.tsv"
ABSENT = "the real films are absent: shared/data/cxr must be beside the checkout"

# The expectations that follow from the notes of the MANIFEST. BLOCKED: the checks that block. REFUSED: the error of a
# film that cannot be decoded.
BLOCKED = {
    "dicom_chest/RG1_J2KR.dcm": "age",  # born 1940, filmed 2004
    "dicom_chest/RG1_JLSN.dcm": "age",
    "dicom_chest/chrJapMulti.dcm": "age",  # born 1800
    "dicom_other/highdicom_dx_image_CANINE_005Y_F.dcm": "human quality",
    "dicom_other/CT_small.dcm": "modality body-part age quality",
    "dicom_other/MR_small.dcm": "modality body-part age quality",
    "dicom_other/MR_truncated.dcm": "modality body-part age",
    "dicom_other/examples_rgb_color.dcm": "modality body-part age",
    "dicom_other/test-SR.dcm": "modality body-part age",
    "dicom_other/highdicom_sr_document.dcm": "modality body-part age",
    "dicom_other/waveform_ecg.dcm": "modality body-part age",
    "dicom_other/JPEG2000.dcm": "modality body-part age burned-in-text",
    "dicom_other/mlut_18.dcm": "modality body-part age burned-in-text quality",  # a test pattern of few levels
    "dicom_other/RG3_JPLL.dcm": "body-part orientation age",
    "dicom_other/RG3_JPLY.dcm": "body-part orientation age",
    "dicom_derived/d21_sc_rgb_screenshot.dcm": "modality burned-in-text",
    "dicom_derived/m05_age_malformed_62.dcm": "age",
    "dicom_derived/m06_age_adult_045Y.dcm": "age",
    "dicom_derived/m08_age_missing_all.dcm": "age",
    "dicom_derived/m15_body_HAND.dcm": "body-part",
    "dicom_derived/m16_burned_in_YES.dcm": "burned-in-text",
    "dicom_derived/m19_modality_CT_chest.dcm": "modality",
    "dicom_derived/m20_qc_image.dcm": "quality",
}
REFUSED = {
    "dicom_chest/chrJapMulti.dcm": "holds no pixels",
    "dicom_other/examples_rgb_color.dcm": "is RGB",
    "dicom_other/test-SR.dcm": "holds no pixels",
    "dicom_other/waveform_ecg.dcm": "holds no pixels",
    "dicom_other/highdicom_sr_document.dcm": "holds no pixels",
    "dicom_other/MR_truncated.dcm": "cut short",
    "dicom_other/RG3_JPLY.dcm": "pylibjpeg-libjpeg|damaged",  # "damaged" if pylibjpeg-libjpeg is installed
    "dicom_derived/d20_dx_multiframe_2.dcm": "NumberOfFrames .* is 2",
    "dicom_derived/d21_sc_rgb_screenshot.dcm": "is RGB",
    "dicom_derived/d24_dx_truncated.dcm": "cut short",
}
WARNED = {
    "dicom_derived/m11_view_LL.dcm": "view",
    "dicom_derived/m12_view_missing.dcm": "view",
    "dicom_other/mlut_18.dcm": "view orientation",
    "dicom_derived/d20_dx_multiframe_2.dcm": "quality",  # its pixels were not measured
    "dicom_derived/d24_dx_truncated.dcm": "quality",
}
PROMPTED = {
    "dicom_derived/m01_age_018M.dcm": ("18-month-old", "F"),
    "dicom_derived/m03_age_010D.dcm": ("10-day-old", "F"),
    "dicom_derived/m10_sex_missing.dcm": ("5-year-old", None),
    "dicom_derived/d02_cr_mono1_12bit_implicitLE.dcm": ("7-year-old", "M"),
}


def rows() -> list[dict[str, str]]:
    if not MANIFEST.exists():
        return []
    with MANIFEST.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


@pytest.mark.skipif(not MANIFEST.exists(), reason=ABSENT)
@pytest.mark.parametrize("row", rows(), ids=[row["path"] for row in rows()])
def test_each_film_matches_its_manifest_row(row):
    name = row["path"]
    undecoded = read(FILMS / name)
    stats = None
    if name in REFUSED:
        with pytest.raises(InputError, match=REFUSED[name]):
            undecoded.render()
    else:
        film = undecoded.render()
        stats = film.stats
        assert film.pixels.mode == "L" or film.original is not None
        sent = encode(film)
        assert (sent.facts, sent.stats) == (undecoded.facts, stats)
    checks = {check.name: check for check in rules.check(undecoded.facts, CallerFacts(), stats)}
    assert tuple(checks) == rules.NAMES
    assert {name for name, check in checks.items() if check.blocks} == {*BLOCKED.get(name, "").split()}
    assert all(check.why and len(check.why) < 250 for check in checks.values())
    if name.endswith(".png"):
        warnings = {name for name, check in checks.items() if check.status == "warn"}
        assert warnings == {*rules.NAMES} - {"quality"}
    elif name not in BLOCKED or name in WARNED:
        assert {name for name, check in checks.items() if check.status == "warn"} == {*WARNED.get(name, "").split()}
    if name in PROMPTED or (name.startswith("dicom_derived/") and name not in BLOCKED):
        words, sex = PROMPTED.get(name, ("5-year-old", "F"))
        assert undecoded.facts.age is not None
        assert (undecoded.facts.age.words, undecoded.facts.sex) == (words, sex)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(load(path).pixels).astype(int)


def variant(films: Path, number: str) -> np.ndarray:
    return pixels(next(films.glob(f"dicom_derived/d{number}_*")))


def test_inverted_implicit_vr_copy_renders_equally(films):
    assert np.array_equal(variant(films, "01"), variant(films, "02"))


@pytest.mark.parametrize(
    ("number", "levels"),
    [("06", 0), ("09", 0), ("10", 0), ("13", 0), ("04", 5), ("07", 10)],
    ids=["rle", "big-endian", "jpeg-lossless", "multi-window", "j2k-lossy", "jpeg-baseline"],
)
def test_every_transfer_syntax_renders_equally(films, number, levels):
    """Lossless syntaxes render identically, lossy ones within their quantisation error."""
    difference = abs(variant(films, number) - variant(films, "03"))
    assert difference.max() <= levels
    assert difference.mean() < 1


def test_small_film_equals_downscaled_large_film(films):
    large = Image.fromarray(variant(films, "01").astype(np.uint8))
    small = variant(films, "03")
    shrunk = np.asarray(large.resize((384, 320), Image.Resampling.BILINEAR)).astype(int)
    assert abs(shrunk - small).mean() < 1


def test_voi_lut_is_monotone_in_the_linear_rendering(films):
    curved, linear = variant(films, "11"), variant(films, "03")
    mean = [curved[linear == level].mean() for level in np.unique(linear)]
    assert np.all(np.diff(mean) >= 0)
    assert np.corrcoef(curved.ravel(), linear.ravel())[0, 1] > 0.98


def test_lead_markers_do_not_compress_the_range_without_a_window(films):
    """The markers have the minimum and the maximum; scaling to them would use a fifth of the range for the film."""
    grey = variant(films, "14")
    low, high = np.percentile(grey, [5, 95])
    assert high - low > 150


def test_padding_is_black_and_other_pixels_are_unchanged(films):
    padded, linear = variant(films, "15"), variant(films, "03")
    inside = padded > 0
    assert 0.5 < inside.mean() < 1
    assert np.array_equal(padded[inside], linear[inside])
    assert not padded[0].any() and not padded[:, 0].any()


def test_pixels_with_aspect_ratio_two_become_square(films):
    resampled, linear = variant(films, "19"), variant(films, "03")
    assert resampled.shape == linear.shape
    assert abs(resampled - linear).mean() < 2, "the file omits every other row, which is interpolated"


def test_near_lossless_and_lossless_films_agree(films):
    near_lossless, lossless = (pixels(films / f"dicom_chest/RG1_{kind}.dcm") for kind in ("J2KR", "JLSN"))
    assert abs(near_lossless - lossless).max() <= 1
    assert lossless.shape == (1955, 1841)


@pytest.mark.slow
def test_independent_reader_agrees(films):
    """radreader (Apache-2.0) implements PS3.3 C.11 independently; without a window it uses the full range instead."""
    radreader = pytest.importorskip("radreader")

    compared = 0
    for path in sorted(films.glob("dicom_*/*.dcm")):
        try:
            film = load(path)
        except InputError:
            continue
        if any("no window" in note for note in film.how) or "made square" in " ".join(film.how):
            continue
        expected = radreader.read(path, out_range=(0.0, 255.0), qc="off").pixels
        assert abs(np.asarray(film.pixels) - expected).max() <= 1, path.name
        compared += 1
    assert compared > 25


def test_decoding_in_threads_gives_the_same_results(films):
    """The async client decodes several films at a time in threads, with decoders written in C."""
    paths = [
        path for path in sorted(films.glob("dicom_derived/*.dcm")) if path.parent.name + "/" + path.name not in REFUSED
    ]
    sequential = [prepare(path).sha256 for path in paths]
    with ThreadPoolExecutor(8) as pool:
        in_threads = [encoded.sha256 for encoded in pool.map(prepare, paths * 3)]
    assert in_threads == sequential * 3


# Forms of one film that devices and archives write, and films that are damaged.


@pytest.mark.parametrize("name", unusual_films.accepted())
def test_unusual_form_shows_the_same_picture_and_is_noted(name):
    data, note = unusual_films.accepted()[name]
    film = load(data)
    assert np.array_equal(np.asarray(film.pixels), np.asarray(load(unusual_films.accepted()["native"][0]).pixels))
    assert len(film.how) == (3 if note else 2)
    assert note in " ".join(film.how)
    assert read(data).facts.modality.value == "DX"


@pytest.mark.parametrize("name", unusual_films.refused())
def test_damaged_film_raises_the_reason(name):
    data, message = unusual_films.refused()[name]
    with pytest.raises(InputError, match=message):
        load(data)


@pytest.mark.parametrize("name", [name for name in unusual_films.refused() if "file cut" in name])
def test_header_of_a_film_cut_in_its_pixels_is_read(name):
    facts = read(unusual_films.refused()[name][0]).facts
    assert (facts.modality.value, facts.body.value, str(facts.age)) == ("DX", "chest", "5y")


def test_rendering_twice_gives_the_same_film():
    undecoded = read(unusual_films.accepted()["2 bytes after JPEG 2000"][0])
    first, second = undecoded.render(), undecoded.render()
    assert first.how == second.how
    assert first.pixels.tobytes() == second.pixels.tobytes()


def test_odd_number_of_8_bit_pixels_with_and_without_its_pad_byte():
    pixels = (np.arange(257 * 255) % 251).astype(np.uint8).reshape(257, 255)
    padded = dicom_film(pixels, bits=8, WindowCenter=128, WindowWidth=256)
    length = pixels.size.to_bytes(4, "little")
    at = padded.rindex((pixels.size + 1).to_bytes(4, "little"))
    unpadded = padded[:at] + length + padded[at + 4 : -1]
    assert np.array_equal(np.asarray(load(padded).pixels), pixels)
    assert np.array_equal(np.asarray(load(unpadded).pixels), pixels)


@pytest.mark.parametrize("charset", [b"ISO_IR 999", b"ISO_IR 192", b"\\", b"\\GB18030", b"x" * 10, b"\x1b$B\xff"])
@pytest.mark.parametrize("text", [b"\xff\xfe\x1b$", b"\x1b$B\x80\x1b\\", bytes(range(128, 160))], ids=len)
def test_undecodable_charset_does_not_change_the_film(charset, text):
    filler = "X" * len(text)
    names = dict.fromkeys(["StudyDescription", "SeriesDescription", "PatientName", "ProtocolName"], filler)
    codes = sequence(CodeMeaning=filler)
    data = dicom_film(SpecificCharacterSet="ISO_IR 100", ProcedureCodeSequence=codes, ViewCodeSequence=codes, **names)
    data = data.replace(filler.encode(), text).replace(b"ISO_IR 100", charset.ljust(10))
    assert load(data).pixels.tobytes() == load(dicom_film()).pixels.tobytes()
    with silence_pydicom():
        ds = pydicom.dcmread(io.BytesIO(data))
    assert read(ds).facts == read(data).facts


# A film as a pydicom.Dataset, and as bytes of other types.

SYNTAXES = (ImplicitVRLittleEndian, ExplicitVRBigEndian, JPEG2000Lossless, RLELossless)


def with_syntax(syntax: str) -> bytes:
    elements = {"PhotometricInterpretation": "MONOCHROME1", "ViewCodeSequence": sequence(CodeValue="x")}
    if syntax in SYNTAXES[:2]:
        return dicom_film(syntax=syntax, **elements)
    ds = dataset(**elements)
    ds.compress(syntax, generate_instance_uid=False)
    return to_bytes(ds)


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_dataset_gives_the_film_of_its_file_and_is_not_changed(syntax, tmp_path):
    data = with_syntax(syntax)
    (tmp_path / "film.dcm").write_bytes(data)
    expected = load(data)
    decoded, deferred = pydicom.dcmread(io.BytesIO(data)), pydicom.dcmread(tmp_path / "film.dcm", defer_size=100)
    decoded.decode()
    decoded.pixel_array  # pydicom keeps the array  # noqa: B018
    for ds in (pydicom.dcmread(io.BytesIO(data)), decoded, deferred):
        before, meta = dict(zip(ds.keys(), map(ds.get_item, ds.keys()), strict=True)), ds.file_meta.to_json()
        film = load(ds)
        assert (film.facts, film.how, film.pixels.tobytes()) == (
            expected.facts,
            expected.how,
            expected.pixels.tobytes(),
        )
        assert all(ds.get_item(tag) is element for tag, element in before.items())
        assert (len(ds), ds.file_meta.to_json()) == (len(before), meta)


def test_changes_of_a_dataset_after_it_was_read_have_no_effect():
    ds = dataset(PhotometricInterpretation="MONOCHROME1")
    undecoded = read(ds)
    ds.PixelData, ds.PhotometricInterpretation = bytes(len(ds.PixelData)), "MONOCHROME2"
    ds.file_meta.TransferSyntaxUID = JPEG2000Lossless
    assert (
        undecoded.render().pixels.tobytes()
        == load(dicom_film(PhotometricInterpretation="MONOCHROME1")).pixels.tobytes()
    )


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_dataset_without_file_meta(syntax):
    ds = pydicom.dcmread(io.BytesIO(with_syntax(syntax)))
    del ds.file_meta
    if syntax in SYNTAXES[:2]:
        assert load(ds).pixels.tobytes() == load(with_syntax(syntax)).pixels.tobytes()
    else:
        with pytest.raises(InputError, match=r"compressed, but TransferSyntaxUID \(0002,0010\) is absent"):
            load(ds)


def test_dataset_made_by_a_program():
    made = Dataset()
    made.update({element.tag: element for element in dataset()})
    assert load(made).pixels.tobytes() == load(dicom_film()).pixels.tobytes()
    with pytest.raises(InputError, match="holds no pixels"):
        load(Dataset())
    made.PixelData = io.BytesIO(made.PixelData)
    with pytest.raises(InputError, match="are not bytes"):
        load(made)


def test_pixel_array_of_a_monochrome1_film_is_a_negative():
    """The documented limit: an array has no header."""
    ds = dataset(PhotometricInterpretation="MONOCHROME1", WindowCenter=2048, WindowWidth=4096)
    film, array = np.asarray(load(ds).pixels).astype(int), np.asarray(load(ds.pixel_array).pixels).astype(int)
    assert abs(film + array - 255).max() <= 4


@pytest.mark.parametrize("make", [bytearray, memoryview, lambda data: memoryview(b"".join(zip_zero(data)))[::2]])
def test_bytes_of_other_types(make):
    data = dicom_film()
    assert load(make(data)).pixels.tobytes() == load(data).pixels.tobytes()
    with pytest.raises(InputError, match="is empty"):
        load(make(b""))


def zip_zero(data: bytes) -> list[bytes]:
    return [bytes((byte, 0)) for byte in data]


def test_released_memoryview_raises():
    view = memoryview(dicom_film())
    view.release()
    with pytest.raises(InputError, match="memoryview is released"):
        load(view)


# Names beside the user's script that packages import.

SCRIPT = """
import sys
sys.path[1:1] = [{client!r}]
import pedcxr_client
from pedcxr_client.films.film import load
try:
    print(load(sys.argv[1]).how[0])
except pedcxr_client.InputError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("files", "line"),
    [
        (("dl/train.py", "DLFCN/train.py", "jpeg_ls/train.py", "rle/train.py"), "rendered as 8-bit grey"),
        (("gdcm.py",), "the import of gdcm raised ZeroDivisionError; a file or folder beside the script"),
        pytest.param(("dl.py",), "rendered as 8-bit grey", marks=pytest.mark.slow),
        pytest.param(("openjpeg.py",), "the import of openjpeg raised ZeroDivisionError", marks=pytest.mark.slow),
    ],
)
def test_module_beside_the_script_does_not_break_the_decoders(files, line, tmp_path):
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("1 / 0" if file in ("gdcm.py", "openjpeg.py") else "")
    (tmp_path / "script.py").write_text(SCRIPT.format(client=str(ROOT / "client")))
    (tmp_path / "film.dcm").write_bytes(to_bytes(unusual_films.encoded(unusual_films.JPEGLosslessSV1)))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "script.py", "film.dcm"]
    process = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (process.returncode, process.stderr) == (0, "")
    assert line in process.stdout
