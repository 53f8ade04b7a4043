"""``pedcxr probe`` with models that use the image and models that ignore it."""

from __future__ import annotations

import hashlib
import io
import json
import re
import threading
from base64 import b64decode
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image, ImageOps

from pedcxr_client.cli.main import main

Model = Callable[[bytes, str], str]


class Server:
    """An OpenAI-compatible server whose reports are a function of the pixels and the prompt."""

    def __init__(self) -> None:
        self.model: Model = lambda film, words: ""
        self.requests: list[tuple[bytes, str]] = []

    def report(self, body: bytes) -> str:
        image, words = json.loads(body)["messages"][0]["content"]
        data = b64decode(image["image_url"]["url"].partition(",")[2])
        film = Image.open(io.BytesIO(data)).convert("L").tobytes()
        self.requests.append((film, words["text"]))
        return self.model(film, words["text"])


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

        def do_GET(self) -> None:
            self.answer("application/json", json.dumps({"object": "list", "data": [{"id": "m"}]}).encode())

        def do_POST(self) -> None:
            text = server.report(self.rfile.read(int(self.headers["content-length"])))
            delta = {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": "stop"}]}
            self.answer("text/event-stream", f"data: {json.dumps(delta)}\n\ndata: [DONE]\n\n".encode())

        def answer(self, kind: str, body: bytes) -> None:
            self.send_response(200)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
    thread.start()
    server.url = f"http://127.0.0.1:{listening.server_address[1]}/v1"  # type: ignore[attr-defined]
    yield server
    listening.shutdown()
    thread.join()
    listening.server_close()


def picture(seed: int) -> Image.Image:
    """Return an image that differs from its mirror image."""
    return ImageOps.invert(Image.linear_gradient("L").rotate(90)).point(lambda value: max(0, value - 20 * seed))


@pytest.fixture
def films(tmp_path) -> list[str]:
    for at in range(3):
        picture(at).save(tmp_path / f"film{at}.png")
    return [str(tmp_path / f"film{at}.png") for at in range(3)]


def sees(film: bytes, words: str) -> str:
    return f"Effusion on the right, {hashlib.sha256(film).hexdigest()}."


def sees_no_sides(film: bytes, words: str) -> str:
    return f"Effusion on the right, {sum(film)}."


def sees_nothing(film: bytes, words: str) -> str:
    return f"Effusion on the right. {words}"


def probe(capsys, server: Server, films: list[str], *more: str) -> tuple[int, str]:
    code = main(["probe", *films, "--url", server.url, "--age", "5y", "--sex", "F", *more])
    output = capsys.readouterr()
    assert output.err == ""
    return code, output.out


def test_model_that_uses_the_image_passes(server, films, capsys):
    server.model = sees
    code, out = probe(capsys, server, films)
    assert code == 0 and "the reports depend on the film" in out
    assert out.splitlines()[-2].split() == ["changed", "0", "of", "3", "3", "of", "3", "3", "of", "3", "3", "of", "3"]
    assert len(server.requests) == 15 and len({words for _, words in server.requests}) == 1


def test_images_sent_for_each_film(server, films, capsys):
    server.model = sees
    probe(capsys, server, films)
    pixels = [film for film, _ in server.requests[:5]]
    own, following = picture(0), picture(1)
    assert pixels == [
        own.tobytes(), own.tobytes(), bytes(256 * 256), ImageOps.mirror(own).tobytes(), following.tobytes(),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("model", "probes"),
    [(sees_nothing, ("black", "shuffled", "mirrored")), (sees_no_sides, ("mirrored",))],
    ids=["nothing", "no-sides"],
)
def test_model_that_ignores_the_image_exits_5(server, films, capsys, model, probes):
    server.model = model
    code, out = probe(capsys, server, films)
    assert code == 5
    assert [line.split()[0] for line in out.splitlines()[5:]] == list(probes)
    code, out = probe(capsys, server, films, "--json")
    result = json.loads(out)
    assert code == 5 and len(result["failings"]) == len(probes)
    assert result["probes"]["again"] == {"changed": 0, "asked": 3, "again": 0}
    assert all(film["changed"]["mirrored"] is False for film in result["films"])


def test_random_reports_do_not_pass(server, films, capsys):
    """Every report of this model differs, even for the same image."""
    numbers = iter(range(1000))
    server.model = lambda film, words: f"Effusion on the left, {next(numbers)}."
    code, out = probe(capsys, server, films)
    assert code == 5 and "not reproducible" in out


def test_mirrored_probe_counts_only_reports_with_a_side(server, films, capsys):
    server.model = lambda film, words: f"{'Normal' if sum(film) else 'Nothing'} {sum(film[:256])} chest."
    code, out = probe(capsys, server, films)
    assert out.splitlines()[-2].split() == ["changed", "0", "of", "3", "3", "of", "3", "0", "of", "0", "3", "of", "3"]
    assert code == 0


@pytest.mark.parametrize(
    ("text", "compared"),
    [
        ("The right and left lungs are clear.", 0),
        ("The right lung is clear. No left effusion.", 0),
        ("A chest tube on the right.", 0),
        ("Bilateral effusions.", 0),
        ("Effusion on the right.", 3),
        ("Possible pneumonia in the left lower lobe.", 3),
    ],
)
def test_mirrored_probe_counts_only_sides_of_abnormal_findings(server, films, capsys, text, compared):
    server.model = lambda film, words: f"{text} {hashlib.sha256(film).hexdigest()}"
    code, out = probe(capsys, server, films, "--json")
    assert code == 0 and json.loads(out)["probes"]["mirrored"]["asked"] == compared


def test_each_probe_is_compared_with_the_control_of_the_same_films(server, films, capsys):
    """Two reports without a side are not reproducible. That is no reason to fail the mirrored third film."""
    numbers = iter(range(1000))
    unstable = [view.tobytes() for seed in (0, 1) for view in (picture(seed), ImageOps.mirror(picture(seed)))]
    server.model = lambda film, words: f"Clear, {next(numbers)}." if film in unstable else sees(film, words)
    code, out = probe(capsys, server, films, "--json")
    assert json.loads(out)["probes"]["again"] == {"changed": 2, "asked": 3, "again": 2}
    assert json.loads(out)["probes"]["mirrored"] == {"changed": 1, "asked": 1, "again": 0}
    assert code == 0
    code, out = probe(capsys, server, films)
    assert re.search(r"^again, same films +2 +2 +0 +2$", out, re.M)


def test_rejected_text_counts_as_a_changed_report(server, films, capsys):
    server.model = lambda film, words: sees(film, words) if any(film) else ""
    assert probe(capsys, server, films)[0] == 0


def test_single_film_cannot_be_shuffled(server, films, capsys):
    server.model = sees
    code, out = probe(capsys, server, films[:1])
    assert code == 0 and out.splitlines()[1].split()[1:] == ["same", "changed", "changed", "-"]


def test_every_film_is_read_before_the_first_request(server, films, tmp_path, capsys):
    assert main(["probe", *films, str(tmp_path / "no.png"), "--url", server.url]) == 3
    assert main(["probe", *films, "--url", server.url, "--age", "40y"]) == 3
    assert not server.requests


def test_prompt_uses_the_header_of_the_film_for_every_probe(server, tmp_path, capsys):
    pytest.importorskip("pydicom")
    from tests.support.films.dicom_maker import film, ramp

    server.model = sees
    for name, age in (("a.dcm", "005Y"), ("b.dcm", "010Y")):
        pixels = ramp() if name == "a.dcm" else ramp()[:, ::-1].copy()
        (tmp_path / name).write_bytes(film(pixels, PatientAge=age, WindowCenter=2048, WindowWidth=4096))
    assert main(["probe", str(tmp_path / "a.dcm"), str(tmp_path / "b.dcm"), "--url", server.url]) == 0
    words = [words for _, words in server.requests]
    assert all("5-year-old" in text for text in words[:5]) and all("10-year-old" in text for text in words[5:])
