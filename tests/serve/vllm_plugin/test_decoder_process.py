"""Compressed films in a process apart: the same pixels, and a decoder that dies or hangs takes one film with it."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pedcxr_client import InputError
from pedcxr_client.films import film as image
from pedcxr_serve.vllm_plugin import decoder_process, image_decoder
from pedcxr_serve.vllm_plugin.decoder_process import Darkroom

pytest.importorskip("pydicom")

from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless

from tests.support import dicom_maker

PICTURE = Image.effect_noise((300, 260), 60)
JPEG = dicom_maker.jpeg_film(PICTURE)


def jpeg_2000() -> bytes:
    stream = io.BytesIO()
    PICTURE.save(stream, "JPEG2000", no_jp2=True)
    made = dicom_maker.dataset(np.asarray(PICTURE), bits=8, syntax=JPEG2000Lossless)
    made.PixelData = encapsulate([stream.getvalue()])
    made["PixelData"].is_undefined_length = True
    return dicom_maker.to_bytes(made)


def worker(code: str, **limits: float) -> tuple[str, ...]:
    """A worker whose decoder runs `code` over a film that holds the word spoilt."""
    given = ", ".join(f"{name}={value}" for name, value in limits.items())
    script = (
        "import os, signal\n"
        "from pedcxr_serve.vllm_plugin import decoder_process\n"
        "develop = decoder_process._developed\n"
        f"def developed(data):\n    if b'spoilt' in data:\n        {code}\n    return develop(data)\n"
        f"decoder_process._developed = developed\ndecoder_process.work({given})"
    )
    return sys.executable, "-c", script


@pytest.fixture
def room() -> Iterator[Darkroom]:
    with contextlib.closing(Darkroom()) as room:
        yield room


@pytest.mark.parametrize("data", [JPEG, jpeg_2000()], ids=["JPEG", "JPEG 2000"])
def test_the_pixels_are_those_of_this_process(room: Darkroom, data: bytes) -> None:
    here = image.load(data)
    pixels, stats = room.develop(data)
    assert np.array_equal(np.asarray(pixels), np.asarray(here.pixels)) and stats == here.stats
    assert np.array_equal(np.asarray(image_decoder.decode(data, max_pixels=10**6))[..., 0], np.asarray(here.pixels))


def test_what_is_not_compressed_stays_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(Darkroom, "_start", lambda self: asked.append(1))
    monkeypatch.setattr(image_decoder.dicom_decoder, "_darkroom", Darkroom())
    assert image_decoder.decode(dicom_maker.film(), max_pixels=10**6).size == (256, 256)
    with pytest.raises(AttributeError):
        image_decoder.decode(JPEG, max_pixels=10**6)
    assert asked == [1]


def test_an_error_s_words_come_back_and_the_worker_stays(room: Darkroom) -> None:
    with pytest.raises(InputError, match="compressed pixels are damaged or cut short"):
        room.develop(dicom_maker.jpeg_film(PICTURE, cut=9))
    [kept] = room._idle
    room.develop(JPEG)
    assert room._idle == [kept] and kept.poll() is None


@pytest.mark.parametrize(
    ("code", "limits"),
    [
        ("os.abort()", {}),
        ("os.kill(os.getpid(), signal.SIGSEGV)", {}),
        ("while True: pass", {"deadline": 5}),
        ("os.write(3, b'x'); os._exit(0)", {}),
    ],
    ids=["aborts", "crashes", "hangs", "lies"],
)
def test_a_worker_that_ends_is_one_film_s_error(code: str, limits: dict[str, float]) -> None:
    with contextlib.closing(Darkroom(worker(code, **limits))) as room:
        room.develop(JPEG)
        began = time.monotonic()
        with pytest.raises(InputError, match="cannot be decoded; export it uncompressed"):
            room.develop(JPEG + b"spoilt")
        assert time.monotonic() - began < 20
        assert room._idle == []
        assert room.develop(JPEG)[0].size == PICTURE.size


def test_memory_ends_at_the_limit() -> None:
    with contextlib.closing(Darkroom(worker("bytearray(1 << 30)", memory=1 << 30))) as room:
        with pytest.raises(InputError, match="cannot be decoded"):
            room.develop(JPEG + b"spoilt")
        assert room.develop(JPEG)[0].size == PICTURE.size


def test_a_worker_that_died_while_it_waited_is_replaced(room: Darkroom) -> None:
    room.develop(JPEG)
    room._idle[0].kill()
    room._idle[0].wait()
    assert room.develop(JPEG)[0].size == PICTURE.size


def test_a_worker_ends_with_its_parent() -> None:
    script = (
        "import sys, os\nfrom pedcxr_serve.vllm_plugin.decoder_process import Darkroom\n"
        "room = Darkroom()\nroom.develop(sys.stdin.buffer.read())\nprint(room._idle[0].pid, flush=True)\n"
        "os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", script], input=JPEG, stdout=subprocess.PIPE, check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    status, until = Path(f"/proc/{int(done.stdout)}/status"), time.monotonic() + 20
    while status.exists() and "State:\tZ" not in status.read_text():
        assert time.monotonic() < until
        os.sched_yield()


def test_a_worker_imports_no_engine() -> None:
    script = (
        f"import sys, {decoder_process.__name__}\nprint([name for name in ('torch', 'vllm') if name in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", script], text=True, timeout=60).strip() == "[]"
