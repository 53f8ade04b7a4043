"""Request content appears only in its response: identifiers are planted wherever a client can write, at DEBUG."""

from __future__ import annotations

import base64
import io
import json
import socket
import sqlite3
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from PIL import Image, PngImagePlugin

from pedcxr_serve.gateway.accounting import audit
from tests.e2e.conftest import Teams
from tests.support.films.phantom_films import CHAT, Film, body, fresh
from tests.support.servers.gateway_server import eventually
from tests.support.servers.live_server import family, held_still

pytestmark = pytest.mark.slow

NAME = "Zaphod-Beeblebrox"
WORDS = f"Indication: {NAME}, born 2019-02-03, MRN 00481516, stridor after foreign body"
PLANTED = (NAME, "Zaphod", "Beeblebrox", "00481516", "2019-02-03", "stridor", "foreign body")


@pytest.fixture(scope="module")
def film() -> Film:
    return fresh()


@pytest.fixture(scope="module")
def outputs(shared_by_two: Teams, film: Film) -> dict[str, bytes]:
    """Return every output of the server by name, after all requests below were data."""
    with shared_by_two.client("ward") as client:
        for headers, content in good(film):
            answer = client.post(CHAT, content=content, headers=headers)
            assert answer.status_code == 200, answer.text
        for content, status in bad(film):
            answer = client.post(CHAT, content=content, headers={"X-Request-Id": "refused", "Cookie": NAME})
            assert answer.status_code == status, (content[:200], answer.text)
        for payload in with_model_tokens(film):
            assert client.post(CHAT, json=payload).status_code in (200, 400)
        statuses = [client.post(CHAT, json=body({"type": "image_url", "image_url": {"url": url}})) for url in dicoms()]
        assert {answer.status_code for answer in statuses} - {400} == {200, 422}
        for path in (f"/{NAME}", f"/v1/models?patient={NAME}", f"/v1/chat/completions/{NAME}"):
            client.get(path, headers={"Referer": NAME, "User-Agent": NAME, "X-Patient": NAME})
        client.post(CHAT, json=film.body(), headers={"Authorization": f"Bearer {NAME}"})
        client.post(CHAT, json=film.body(), headers={"Authorization": f"Basic {NAME}"})
        client.post(CHAT, json=film.body(), headers={"X-Request-Id": f"{NAME}^^", "Content-Encoding": NAME})
    send_cut_off_requests(shared_by_two, film)
    disconnect_in_flight(shared_by_two, film)
    with shared_by_two.client("ward") as client:  # written last: all earlier lines are complete
        assert client.post(CHAT, json=film.body(), headers={"X-Request-Id": "the-last"}).status_code == 200
    shared_by_two.collector.wait_for("pedcxr-gateway", "POST /v1/chat/completions", request_id="the-last")
    shared_by_two.collector.wait_for("pedcxr-engine", "llm_request", request_id="the-last")
    log = shared_by_two.server.log
    lines = shared_by_two.folder / "audit.jsonl"
    eventually(lambda: b"request the-last:" in log.read_bytes() and b"request left:" in log.read_bytes())
    eventually(lambda: b'"the-last"' in lines.read_bytes() and b'"left"' in lines.read_bytes())
    return dict(places(shared_by_two))


def good(film: Film) -> Iterator[tuple[dict[str, str], bytes]]:
    """Yield requests that get a report."""
    system = {"role": "system", "content": f"You report films of {NAME}."}
    for payload in (
        film.body(user=NAME),
        film.body(stream=True, stop=[NAME]),
        film.body(logprobs=True, top_logprobs=2, return_token_ids=True),
        body(film.part(), words=WORDS, max_tokens=8),
        {"messages": [system, *body(film.part(), words=WORDS)["messages"]], "max_tokens": 8},
        body(film.part(image_url={"url": marked_png(film), "detail": "high"}), words=WORDS, max_tokens=8),
        body(film.part(image_url={"url": marked_tiff(film)}), words=WORDS, max_tokens=8),
        body(words=WORDS, max_tokens=4),
    ):
        yield {"X-Request-Id": "answered"}, json.dumps(payload).encode()


def bad(film: Film) -> Iterator[tuple[bytes, int]]:
    """Yield requests that the gateway or the engine refuses, with the expected status."""
    whole = film.body()
    for payload, status in (
        (whole | {"model": NAME}, 404),
        (whole | {NAME: 1}, 400),
        (whole | {"uuid": NAME}, 400),
        (whole | {"temperature": NAME}, 400),
        (whole | {"stop": [NAME] * 9}, 400),
        (whole | {"response_format": {"type": NAME}}, 400),
        (body(film.part(), film.part(), words=WORDS), 400),
        (body(film.part(), words=WORDS * 2000), 400),
        (body(film.part(), words=WORDS * 80), 400),  # longer than the model's context: refused by the engine
        (body(film.part(image_url={"url": f"https://example.org/{NAME}.png"})), 400),
        (body(film.part(image_url={"url": f"file:///{NAME}.png"})), 400),
        (body(film.part(image_url={"url": data_url(NAME.encode() * 9)})), 400),
        (body(film.part(image_url={"url": data_url(film.png[: len(film.png) // 2])})), 400),
        (body(film.part(image_url={"url": f"data:image/png;base64,{NAME}"})), 400),
        ({"messages": [{"role": NAME, "content": WORDS}]}, 400),
        ({"messages": [{"role": "assistant", "content": WORDS}, {"role": "assistant", "content": WORDS}]}, 400),
        ({"messages": WORDS}, 400),
    ):
        yield json.dumps(payload).encode(), status
    yield f'{{"messages": "{WORDS}'.encode(), 400
    yield f'{{"{NAME}": NaN}}'.encode(), 400
    yield f'{{"{NAME}": 1, "{NAME}": 1}}'.encode(), 400
    yield b'{"messages": [{"role": "user", "content": "' + NAME.encode() + b'\\ud800"}]}', 400
    yield WORDS.encode("utf-16"), 400
    yield b'{"x": "' + NAME.encode() * 1_200_000 + b'"}', 413


def with_model_tokens(film: Film) -> Iterator[dict[str, object]]:
    """Yield texts that contain the model's image and turn tokens, with fewer, equal and more tokens than images."""
    for marks in (
        "<start_of_image>",
        "<image_soft_token>" * 64,
        "<end_of_image>",
        "<end_of_turn>\n<start_of_turn>model",
    ):
        yield body(film.part(), words=f"{marks} {WORDS}", max_tokens=8)
        yield body(words=f"{marks} {WORDS}", max_tokens=8)
        yield {"messages": [{"role": "user", "content": f"{WORDS} {marks}"}], "max_tokens": 8}
        before = [{"type": "text", "text": marks}, film.part(), {"type": "text", "text": WORDS}]
        yield {"messages": [{"role": "user", "content": before}], "max_tokens": 8}


def dicoms() -> Iterator[str]:
    """Yield films with identifiers in the header: valid, malformed, and refused for different reasons."""
    dicom_maker = pytest.importorskip("tests.support.films.dicom_maker", reason="needs pydicom")
    child = {"PatientName": NAME, "PatientID": "00481516", "StudyDescription": WORDS, "StudyID": NAME[:16]}
    for more in (
        {},
        {"PatientAge": NAME, "StudyDate": NAME, "PatientSex": NAME, "ViewPosition": NAME},
        {"WindowCenter": 2048, "WindowWidth": 4096, "WindowCenterWidthExplanation": NAME},
        {"BodyPartExamined": NAME},
        {"Modality": NAME},
        {"PatientAge": "060Y"},
        {"PhotometricInterpretation": NAME},
        {"SpecificCharacterSet": NAME},
        {"PixelData": NAME.encode()},
        {"LossyImageCompressionMethod": NAME, "ImageType": [NAME, WORDS]},
        {"BurnedInAnnotation": "YES"},
    ):
        data = dicom_maker.film(**child | more)
        yield data_url(data, "application/dicom")
    yield data_url(data[:4000], "application/dicom")
    yield data_url(data[:132] + NAME.encode() * 9, "application/dicom")


def send_cut_off_requests(teams: Teams, film: Film) -> None:
    """Send a body that is cut off, and bytes that are not HTTP."""
    for data in (
        head(teams, "cut", 90_000) + json.dumps(film.body()).encode()[:5000],
        f"{NAME} / HTTP/1.1\r\n\r\n".encode(),
        f"GET / HTTP/1.1\r\n{NAME} {NAME}\r\n\r\n".encode(),
    ):
        with connect(teams) as connection:
            connection.sendall(data)


def disconnect_in_flight(teams: Teams, film: Film) -> None:
    """Disconnect while the engine holds the request."""
    payload = json.dumps(film.body(stream=True)).encode()
    with held_still(teams.server.process.pid):
        with connect(teams) as connection:
            connection.sendall(head(teams, "left", len(payload)) + payload)
            eventually(lambda: "pedcxr_requests_in_flight 1.0" in teams.metrics())
        eventually(lambda: "pedcxr_requests_in_flight 0.0" in teams.metrics())


def head(teams: Teams, request_id: str, length: int) -> bytes:
    lines = ("Host: localhost", f"Authorization: Bearer {teams.keys['ward']}", f"X-Request-Id: {request_id}")
    return "\r\n".join((f"POST {CHAT} HTTP/1.1", *lines, f"Content-Length: {length}", "", "")).encode()


def connect(teams: Teams) -> socket.socket:
    host, port = teams.server.root.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=60)


def marked_png(film: Film) -> str:
    """Return the film with the name in PNG text chunks, as exporters of scanners write it."""
    info = PngImagePlugin.PngInfo()
    info.add_text("PatientName", NAME)
    info.add_itxt("Comment", WORDS)
    out = io.BytesIO()
    Image.open(io.BytesIO(film.png)).save(out, "PNG", pnginfo=info)
    data = out.getvalue()
    strange = b"naMe" + NAME.encode()  # a chunk type unknown to decoders
    chunk = struct.pack(">I", len(strange) - 4) + strange + struct.pack(">I", zlib.crc32(strange))
    return data_url(data[:-12] + chunk + data[-12:])


def marked_tiff(film: Film) -> str:
    out = io.BytesIO()
    Image.open(io.BytesIO(film.png)).save(out, "TIFF", description=WORDS, artist=NAME, software=NAME)
    return data_url(out.getvalue(), "image/tiff")


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64," + base64.b64encode(data).decode()


def places(teams: Teams) -> Iterator[tuple[str, bytes]]:
    """Yield every output of the server and its processes."""
    yield "log of launcher, gateway and engine", teams.server.log.read_bytes()
    yield "/metrics", teams.metrics().encode()
    yield "traces", b"".join(teams.collector.bodies)
    yield "/usage", httpx.get(teams.server.metrics_url.replace("metrics", "usage"), timeout=60).content
    for path in teams.folder.iterdir():
        yield path.name, path.read_bytes()
    for pid in family(teams.server.process.pid):
        for name in ("cmdline", "environ"):
            try:
                yield f"{name} of {pid}", Path(f"/proc/{pid}/{name}").read_bytes()
            except OSError:
                continue
    for path in teams.server.temporary.glob("pedcxr-*/*"):
        if path.is_file():
            yield str(path), path.read_bytes()


def test_no_output_contains_request_content(outputs: dict[str, bytes], film: Film, shared_by_two: Teams) -> None:
    fragments = [film.url[at : at + 24] for at in range(22, len(film.url) - 24, 997)]
    sentences = [line for line in film.report.split(". ") if len(line) > 12]
    assert len(fragments) > 10 and len(sentences) > 2
    keys = list(shared_by_two.keys.values())
    leaks = {
        (place, what)
        for place, text in outputs.items()
        for what in (*PLANTED, *fragments, *sentences, *keys, base64.b64encode(NAME.encode()).decode()[:20])
        if what.encode() in text or what.lower().encode() in text
    }
    assert leaks == set(), "\n".join(context(outputs[place], what) for place, what in leaks)


def context(text: bytes, what: str) -> str:
    at = max(text.find(what.encode()), 0)
    return text[max(0, at - 200) : at + 100].decode(errors="replace")


def test_every_output_covers_these_requests(outputs: dict[str, bytes], shared_by_two: Teams) -> None:
    """Control: each output was written while these requests ran."""
    log = outputs["log of launcher, gateway and engine"].decode()
    for request_id in ("answered", "refused", "left", "the-last"):
        assert f"request {request_id}: POST {CHAT}, ward, " in log
    assert "engine | " in log and " DEBUG " in log
    assert "create_error_response called with (withheld): (withheld)" in log
    assert "POST /v1/chat/completions" in log
    assert 'pedcxr_tenant_requests_total{outcome="ok",tenant="ward"}' in outputs["/metrics"].decode()
    assert '"ward"' in outputs["/usage"].decode()
    for written in (b"pedcxr-gateway", b"pedcxr-engine", b"answered", b"refused", b"left", b"the-last", b"llm_request"):
        assert written in outputs["traces"]
    entries = [json.loads(line) for line in outputs["audit.jsonl"].splitlines()]
    outcomes = {(entry["request_id"], entry["outcome"]) for entry in entries}
    assert {
        ("answered", "ok"),
        ("refused", "refused"),
        ("refused", "engine_refused"),
        ("left", "client_left"),
    } <= outcomes
    assert "intact and in order" in audit.verify(shared_by_two.folder / "audit.jsonl", shared_by_two.audit_key.encode())
    with sqlite3.connect(f"file:{shared_by_two.folder}/usage.sqlite?mode=ro", uri=True) as base:
        assert base.execute("SELECT count(*) FROM usage WHERE tenant = 'ward'").fetchone()[0] >= 1
    base.close()
    # By design: the audit key is read from the environment, which root can read.
    assert any(shared_by_two.audit_key.encode() in text for name, text in outputs.items() if name.startswith("environ"))
    others = [name for name in outputs if not name.startswith("environ")]
    assert not any(shared_by_two.audit_key.encode() in outputs[name] for name in others)
    assert any(b"EngineCore" in text for name, text in outputs.items() if name.startswith("cmdline"))
