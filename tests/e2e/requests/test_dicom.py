"""DICOM files png_image unchanged over plain HTTP to a real server."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from pedcxr_client.films import film as image
from pedcxr_client.films.age import Age
from pedcxr_client.request import prompts
from pedcxr_serve.checkpoint import revision
from pedcxr_serve.demo import CHECKPOINT, drawing, expected_report
from pedcxr_serve.demo.findings import Case, Finding, Kind
from tests.support.paths import ROOT
from tests.support.servers.local_server import LocalServer

pytest.importorskip("pydicom")

from pydicom import dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless

from tests.support.films import dicom_maker

pytestmark = pytest.mark.slow

CHAT = "/v1/chat/completions"
CASES = [
    Case(Age(5, "Y"), "F", ()),
    Case(Age(5, "Y"), "F", (Finding(Kind.CONSOLIDATION, "right", "lower"),)),
    Case(Age(5, "Y"), "F", (Finding(Kind.CONSOLIDATION, "left", "upper"),)),
]


def grey(case: Case, seed: int = 3) -> np.ndarray:
    picture = Image.open(io.BytesIO(drawing.encode_png(drawing.render(case, seed)))).convert("L")
    return np.asarray(picture.resize((512, 512)))


def dicom(case: Case = CASES[1], **elements: Any) -> bytes:
    """Return a 12-bit MONOCHROME1 film that needs all steps of PS3.3 C.11 to be rendered."""
    stored = 4095 - grey(case).astype(np.uint16) * 16
    display = {"PhotometricInterpretation": "MONOCHROME1", "WindowCenter": 2048, "WindowWidth": 4096}
    return dicom_maker.film(stored, **display | elements)


def compressed(case: Case) -> bytes:
    """Return the same film in JPEG 2000, which the server decodes in a worker process."""
    dataset = dcmread(io.BytesIO(dicom(case)))
    stream = io.BytesIO()
    Image.fromarray(dataset.pixel_array).save(stream, "JPEG2000", no_jp2=True)
    dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless
    dataset.PixelData = encapsulate([stream.getvalue()])
    dataset["PixelData"].is_undefined_length = True
    return dicom_maker.to_bytes(dataset)


def payload(data: bytes, kind: str = "application/dicom", **more: object) -> dict[str, object]:
    url = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    return {"messages": prompts.messages(prompts.card(Age(5, "Y"), "F"), url), "return_token_ids": True, **more}


@pytest.fixture(scope="module")
def client(running: LocalServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=running.root, timeout=60) as client:
        yield client


def tokens(answer: httpx.Response) -> list[int]:
    assert answer.status_code == 200, answer.text
    ids: list[int] = answer.json()["choices"][0]["token_ids"]
    return ids


@pytest.mark.parametrize("case", CASES, ids=["normal", "right", "left"])
@pytest.mark.parametrize("kind", ["application/dicom", "application/octet-stream", "image/png"])
def test_the_report_equals_that_of_the_clients_png(client: httpx.Client, case: Case, kind: str) -> None:
    data = dicom(case)
    png_image = image.prepare(data)
    png = client.post(CHAT, json=payload(base64.b64decode(png_image.base64), png_image.mime))
    film = client.post(CHAT, json=payload(data, kind))
    assert tokens(film) == tokens(png)
    assert film.json()["choices"][0]["message"]["content"] == expected_report.text(case)


def test_the_report_of_a_compressed_film_equals_that_of_the_clients_png(client: httpx.Client) -> None:
    for data in (compressed(CASES[1]), compressed(CASES[1]), compressed(CASES[2])):
        png_image = image.prepare(data)
        png = client.post(CHAT, json=payload(base64.b64decode(png_image.base64), png_image.mime))
        assert tokens(client.post(CHAT, json=payload(data))) == tokens(png)


def test_streamed_dicom(client: httpx.Client) -> None:
    with client.stream("POST", CHAT, json=payload(dicom(), stream=True)) as answer:
        page = answer.read().decode()
    assert answer.status_code == 200
    assert page.rstrip().endswith("data: [DONE]")


BLOCKED = {
    "a hand": ({"BodyPartExamined": "HAND"}, 422, "film_blocked", "body-part: BodyPartExamined (0018,0015) is HAND"),
    "a CT": ({"Modality": "CT"}, 422, "film_blocked", "modality: Modality (0008,0060) is CT"),
    "raw values": ({"PresentationIntentType": "FOR PROCESSING"}, 422, "film_blocked", "presentation: "),
    "a name in the picture": ({"BurnedInAnnotation": "YES"}, 422, "film_blocked", "burned-in-text: "),
    "a dog": ({"PatientSpeciesDescription": "CANINE"}, 422, "film_blocked", "human: "),
    "two frames": ({"NumberOfFrames": 2}, 422, "film_unreadable", "NumberOfFrames (0028,0008) is 2"),
    "no pixels": ({"PixelData": None}, 422, "film_unreadable", "holds no pixels"),
    "60,000 x 60,000": ({"Rows": 60_000, "Columns": 60_000}, 422, "film_unreadable", "million pixels"),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", BLOCKED)
def test_a_film_outside_the_intended_use_is_422(client: httpx.Client, name: str, stream: bool) -> None:
    elements, status, code, message = BLOCKED[name]
    identifiers = {"PatientName": "Popescu^Ana", "PatientID": "MRN-4711"}
    answer = client.post(CHAT, json=payload(dicom(**elements, **identifiers), stream=stream))
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code)
    assert message in error["message"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == "messages[].content[].image_url.url"
    assert not any(secret in answer.text for secret in ("Popescu", "MRN-4711"))
    assert answer.elapsed.total_seconds() < 20, "it is refused before its pixels are decoded"
    assert answer.headers["x-request-id"]


def test_the_content_decides_not_the_mime_type(client: httpx.Client) -> None:
    png = drawing.encode_png(drawing.render(CASES[1], 3))
    assert tokens(client.post(CHAT, json=payload(png, "application/dicom"))) == tokens(
        client.post(CHAT, json=payload(png, "image/png"))
    )
    answer = client.post(CHAT, json=payload(b"\0" * 128 + b"DICM" + b"noise" * 100, "image/png"))
    assert (answer.status_code, answer.json()["error"]["code"]) in {(422, "film_unreadable"), (422, "film_blocked")}


def test_a_refused_plain_image_has_an_error_code(client: httpx.Client) -> None:
    answer = client.post(CHAT, json=payload(b"hello", "image/png"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "film_refused")


def test_concurrent_dicom_and_plain_images(client: httpx.Client) -> None:
    data = dicom(CASES[2])
    png_image = image.prepare(data)
    bodies = [payload(data), payload(base64.b64decode(png_image.base64), png_image.mime)] * 8
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda body: tokens(client.post(CHAT, json=body)), bodies))
    assert answers == [answers[0]] * 16


def test_no_header_value_is_logged(running: LocalServer, client: httpx.Client) -> None:
    client.post(CHAT, json=payload(dicom(PatientName="Popescu^Ana", Modality="Popescu^Ana", StudyDate="Popescu")))
    damaged = dicom(PatientName="Popescu^Ana").replace(b"2048", b"Popx")  # WindowCenter is not a number
    client.post(CHAT, json=payload(damaged))
    assert not any(identifiers in running.log.read_text() for identifiers in ("Popescu", "Popx"))


def test_models_reports_image_size_and_revision(client: httpx.Client) -> None:
    (model,) = client.get("/v1/models").json()["data"]
    served = {"image_size": [224, 224], "revision": revision.of(Path(CHECKPOINT)), "demo": True}
    assert model["pedcxr"] == served | {"adapter": False, "default": True}


def test_the_example_in_the_docs(running: LocalServer, tmp_path: Path) -> None:
    page = (ROOT / "docs/films.md").read_text()
    [example] = [block for block in re.findall(r"^```sh\n(.*?)^```", page, re.DOTALL | re.MULTILINE) if "curl" in block]
    (tmp_path / "film.dcm").write_bytes(dicom(CASES[1]))
    script = example.replace("http://127.0.0.1:8000", running.root)
    completed = subprocess.run(["bash"], input=script, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert json.loads(completed.stdout)["choices"][0]["message"]["content"] == expected_report.text(CASES[1])
