"""Compressed films in worker processes: same pixels, and a decoder that crashes or hangs costs one film only."""

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
from pedcxr_client.films import film
from pedcxr_serve.vllm_plugin import decoder_process, image_decoder
from pedcxr_serve.vllm_plugin.decoder_process import DecoderPool
from pedcxr_serve.vllm_plugin.refusals import FilmRefused

pytest.importorskip("pydicom")

from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless

from tests.support.films import dicom_maker

PICTURE = Image.effect_noise((300, 260), 60)
JPEG = dicom_maker.jpeg_film(PICTURE)


def jpeg_2000() -> bytes:
    stream = io.BytesIO()
    PICTURE.save(stream, "JPEG2000", no_jp2=True)
    dataset = dicom_maker.dataset(np.asarray(PICTURE), bits=8, syntax=JPEG2000Lossless)
    dataset.PixelData = encapsulate([stream.getvalue()])
    dataset["PixelData"].is_undefined_length = True
    return dicom_maker.to_bytes(dataset)


def worker(code: str, **limits: float) -> tuple[str, ...]:
    """Return the command of a worker whose decoder runs ``code`` for a film that contains the bytes ``damaged``."""
    arguments = ", ".join(f"{name}={value}" for name, value in limits.items())
    script = (
        "import os, signal\n"
        "from pedcxr_serve.vllm_plugin import decoder_process\n"
        "original = decoder_process._decode\n"
        f"def decode(data):\n    if b'damaged' in data:\n        {code}\n    return original(data)\n"
        f"decoder_process._decode = decode\ndecoder_process.work({arguments})"
    )
    return sys.executable, "-c", script


@pytest.fixture
def pool() -> Iterator[DecoderPool]:
    with contextlib.closing(DecoderPool()) as pool:
        yield pool


@pytest.mark.parametrize("data", [JPEG, jpeg_2000()], ids=["JPEG", "JPEG 2000"])
def test_pixels_equal_those_decoded_in_this_process(pool: DecoderPool, data: bytes) -> None:
    expected = film.load(data)
    pixels, stats = pool.decode(data)
    assert np.array_equal(np.asarray(pixels), np.asarray(expected.pixels)) and stats == expected.stats
    assert np.array_equal(np.asarray(image_decoder.decode(data, max_pixels=10**6))[..., 0], np.asarray(expected.pixels))


def test_uncompressed_film_starts_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    starts: list[int] = []
    monkeypatch.setattr(DecoderPool, "_start", lambda self: starts.append(1))
    monkeypatch.setattr(decoder_process, "shared_pool", DecoderPool())
    assert image_decoder.decode(dicom_maker.film(), max_pixels=10**6).size == (256, 256)
    with pytest.raises(AttributeError):
        image_decoder.decode(JPEG, max_pixels=10**6)
    assert starts == [1]


def test_error_message_is_returned_and_the_worker_is_reused(pool: DecoderPool) -> None:
    with pytest.raises(InputError, match="compressed pixels are damaged or cut short"):
        pool.decode(dicom_maker.jpeg_film(PICTURE, cut=9))
    [process] = pool._idle
    pool.decode(JPEG)
    assert pool._idle == [process] and process.poll() is None


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
def test_crash_of_a_worker_fails_one_film_only(code: str, limits: dict[str, float]) -> None:
    with contextlib.closing(DecoderPool(worker(code, **limits))) as pool:
        pool.decode(JPEG)
        start = time.monotonic()
        with pytest.raises(InputError, match="cannot be decoded; export it uncompressed"):
            pool.decode(JPEG + b"damaged")
        assert time.monotonic() - start < 20
        assert pool._idle == []
        assert pool.decode(JPEG)[0].size == PICTURE.size


def test_memory_is_limited() -> None:
    with contextlib.closing(DecoderPool(worker("bytearray(1 << 30)", memory=1 << 30))) as pool:
        with pytest.raises(InputError, match="cannot be decoded"):
            pool.decode(JPEG + b"damaged")
        assert pool.decode(JPEG)[0].size == PICTURE.size


def test_worker_that_died_while_idle_is_replaced(pool: DecoderPool) -> None:
    pool.decode(JPEG)
    pool._idle[0].kill()
    pool._idle[0].wait()
    assert pool.decode(JPEG)[0].size == PICTURE.size


def test_worker_exits_with_its_parent() -> None:
    script = (
        "import sys, os\nfrom pedcxr_serve.vllm_plugin.decoder_process import DecoderPool\n"
        "pool = DecoderPool()\npool.decode(sys.stdin.buffer.read())\nprint(pool._idle[0].pid, flush=True)\n"
        "os.kill(os.getpid(), 9)"
    )
    parent = subprocess.run([sys.executable, "-c", script], input=JPEG, stdout=subprocess.PIPE, check=False, timeout=60)
    assert parent.returncode == -signal.SIGKILL
    status, deadline = Path(f"/proc/{int(parent.stdout)}/status"), time.monotonic() + 20
    while status.exists() and "State:\tZ" not in status.read_text():
        assert time.monotonic() < deadline
        os.sched_yield()


def test_worker_does_not_import_vllm() -> None:
    script = (
        f"import sys, {decoder_process.__name__}\nprint([name for name in ('torch', 'vllm') if name in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", script], text=True, timeout=60).strip() == "[]"


def test_worker_imports_nothing_from_the_working_folder(
    pool: DecoderPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "PIL.py").write_text("raise SystemExit")
    monkeypatch.chdir(tmp_path)
    assert pool.decode(JPEG)[0].size == PICTURE.size


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "WEBP", "PNG", "JPEG"])
def test_formats_with_a_worse_history_are_decoded_in_a_worker(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[str] = []
    decode_image = DecoderPool.decode_image
    monkeypatch.setattr(
        DecoderPool, "decode_image", lambda *arguments: decoded.append(kind) or decode_image(*arguments)
    )
    stream = io.BytesIO()
    PICTURE.save(stream, kind, **({"lossless": True} if kind == "WEBP" else {}))
    pixels = image_decoder.decode(stream.getvalue(), max_pixels=10**6)
    assert decoded == ([kind] if kind in ("BMP", "TIFF", "WEBP") else [])
    assert pixels.mode == "RGB" and pixels.size == PICTURE.size
    if kind != "JPEG":
        assert np.array_equal(np.asarray(pixels)[..., 0], np.asarray(PICTURE))


def test_crash_of_a_worker_refuses_one_image_only() -> None:
    script = (
        "import os\nfrom pedcxr_serve.vllm_plugin import decoder_process\n"
        "original = decoder_process._decode_image\n"
        "def decode(data, **options):\n    os.abort() if b'damaged' in data else None\n"
        "    return original(data, **options)\n"
        "decoder_process._decode_image = decode\ndecoder_process.work()"
    )
    stream = io.BytesIO()
    PICTURE.save(stream, "TIFF")
    with contextlib.closing(DecoderPool((sys.executable, "-c", script))) as pool:
        with pytest.raises(FilmRefused, match="cannot be decoded; send PNG or JPEG"):
            pool.decode_image(stream.getvalue() + b"damaged", 10**6)
        assert pool.decode_image(stream.getvalue(), 10**6).size == PICTURE.size
