"""How long a film takes from DICOM to wire bytes, on one core: python -m tests.benchmarks.films

A 12-bit film of 2500 x 2000 pixels, drawn here with the noise of a real one. Prints the median of several runs, the
targets, and the ratio to what most scripts do: pydicom's apply_voi_lut, minimum to maximum, Pillow's default PNG.
"""

from __future__ import annotations

import base64
import io
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable

import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.pixels import apply_voi_lut
from pydicom.uid import ExplicitVRLittleEndian

from pedcxr_client import Preparation
from pedcxr_client.films.film import encode, read

ROWS, COLUMNS, RUNS = 2500, 2000, 9
DX = "1.2.840.10008.5.1.4.1.1.1.1"


def film(*, window: bool) -> bytes:
    """A chest-like film: a bright middle, two dark fields, and the noise of a real detector."""
    y, x = np.mgrid[-1 : 1 : ROWS * 1j, -1 : 1 : COLUMNS * 1j]
    lungs = np.exp(-(((abs(x) - 0.45) / 0.25) ** 2) - (y / 0.6) ** 2)
    smooth = 2600 - 1500 * lungs - 700 * (x**2 + y**2) / 2
    noise = np.random.default_rng(7).normal(0, 24, (ROWS, COLUMNS))
    made = pydicom.Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID, made.file_meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, DX
    made.SOPClassUID, made.SOPInstanceUID, made.Modality = DX, "1.2.3", "DX"
    made.Rows, made.Columns, made.SamplesPerPixel = ROWS, COLUMNS, 1
    made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 16, 12, 11, 0
    made.PhotometricInterpretation = "MONOCHROME2"
    if window:
        made.WindowCenter, made.WindowWidth = 1800, 2600
    made.PixelData = np.clip(smooth + noise, 0, 4095).astype("<u2").tobytes()
    buffer = io.BytesIO()
    made.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def naive(data: bytes) -> bytes:
    """What most scripts do."""
    header = pydicom.dcmread(io.BytesIO(data))
    shown = apply_voi_lut(header.pixel_array, header).astype(float)
    grey = ((shown - shown.min()) / (shown.max() - shown.min()) * 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue())


def ours(data: bytes, preparation: Preparation) -> bytes:
    """From the file's bytes to the base64 that goes into the body, the gate's look included."""
    return encode(read(data).render(preparation)).base64


def median(run: Callable[[], bytes], runs: int = RUNS) -> tuple[float, int]:
    """Milliseconds and bytes; once more for the imports."""
    size, spans = len(run()), []
    for _ in range(runs):
        began = time.perf_counter()
        run()
        spans.append((time.perf_counter() - began) * 1000)
    return statistics.median(spans), size


def main() -> int:
    """Print the table; 1 if a target is missed."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    warnings.simplefilter("ignore")
    windowed, bare = film(window=True), film(window=False)
    display, model = Preparation(), Preparation(resize="model")
    reference, naive_size = median(lambda: naive(windowed), 3)
    rows = [
        ("window, full size", *median(lambda: ours(windowed, display)), 120),
        ("no window, full size", *median(lambda: ours(bare, display)), 120),
        ('window, resize="model"', *median(lambda: ours(windowed, model)), 60),
    ]
    print(f"{COLUMNS} x {ROWS}, 12 bits, one core; naive path {reference:.0f} ms, {naive_size / 1e6:.2f} MB of base64")
    print(f"{'':24}{'ms':>6}{'target':>8}{'MB':>7}{'naive / ours':>14}")
    for name, span, size, target in rows:
        print(f"{name:24}{span:6.0f}{target:8}{size / 1e6:7.2f}{reference / span:14.1f}")
    return int(any(span > target for _, span, _, target in rows))


if __name__ == "__main__":
    sys.exit(main())
