"""Time from a DICOM file to request bytes on one core: python -m tests.benchmarks.films

The film is synthetic: 12 bits, 2500 x 2000 pixels, with realistic noise. Prints the median of several runs, the targets
and the ratio to a naive script: pydicom's apply_voi_lut, scaling from minimum to maximum, Pillow's default PNG.
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
    """Return a chest-like film: a bright middle, two dark fields and detector noise."""
    y, x = np.mgrid[-1 : 1 : ROWS * 1j, -1 : 1 : COLUMNS * 1j]
    lungs = np.exp(-(((abs(x) - 0.45) / 0.25) ** 2) - (y / 0.6) ** 2)
    smooth = 2600 - 1500 * lungs - 700 * (x**2 + y**2) / 2
    noise = np.random.default_rng(7).normal(0, 24, (ROWS, COLUMNS))
    ds = pydicom.Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID, ds.file_meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, DX
    ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = DX, "1.2.3", "DX"
    ds.Rows, ds.Columns, ds.SamplesPerPixel = ROWS, COLUMNS, 1
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.PhotometricInterpretation = "MONOCHROME2"
    if window:
        ds.WindowCenter, ds.WindowWidth = 1800, 2600
    ds.PixelData = np.clip(smooth + noise, 0, 4095).astype("<u2").tobytes()
    buffer = io.BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def naive(data: bytes) -> bytes:
    """Encode a film as a naive script does."""
    header = pydicom.dcmread(io.BytesIO(data))
    pixels = apply_voi_lut(header.pixel_array, header).astype(float)
    grey = ((pixels - pixels.min()) / (pixels.max() - pixels.min()) * 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue())


def pedcxr_encode(data: bytes, preparation: Preparation) -> bytes:
    """Encode a film as the client does, from file bytes to base64, measurements for the checks included."""
    return encode(read(data).render(preparation)).base64


def median(run: Callable[[], bytes], runs: int = RUNS) -> tuple[float, int]:
    """Return the median in milliseconds and the size in bytes, after one warm-up run."""
    size, durations = len(run()), []
    for _ in range(runs):
        start = time.perf_counter()
        run()
        durations.append((time.perf_counter() - start) * 1000)
    return statistics.median(durations), size


def main() -> int:
    """Print the table. Return 1 if a target is missed."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    warnings.simplefilter("ignore")
    windowed, bare = film(window=True), film(window=False)
    display, model = Preparation(), Preparation(resize="model")
    reference, naive_size = median(lambda: naive(windowed), 3)
    rows = [
        ("window, full size", *median(lambda: pedcxr_encode(windowed, display)), 120),
        ("no window, full size", *median(lambda: pedcxr_encode(bare, display)), 120),
        ('window, resize="model"', *median(lambda: pedcxr_encode(windowed, model)), 60),
    ]
    print(f"{COLUMNS} x {ROWS}, 12 bits, one core; naive path {reference:.0f} ms, {naive_size / 1e6:.2f} MB of base64")
    print(f"{'':24}{'ms':>6}{'target':>8}{'MB':>7}{'naive / ours':>14}")
    for name, duration, size, target in rows:
        print(f"{name:24}{duration:6.0f}{target:8}{size / 1e6:7.2f}{reference / duration:14.1f}")
    return int(any(duration > target for _, duration, _, target in rows))


if __name__ == "__main__":
    sys.exit(main())
