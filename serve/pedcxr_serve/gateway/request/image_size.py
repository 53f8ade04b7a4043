"""Number of pixels of an image, read from the head of its file without decoding it. No I/O.

The engine decodes and resizes every pixel before the model sees its fixed number, so a large image costs more than its
tokens say. The number is used for charging only: a wrong one changes a tenant's share, never a report.
"""

from __future__ import annotations

import re
import struct

_JPEG_SIZES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})  # SOF markers (ITU-T T.81, table B.1)
_JPEG_STEPS = 10_000  # segments and fill bytes before the size; a crafted file of millions would take seconds
_DICOM_HEAD = 1 << 16
_DICOM_SIDES = (
    re.compile(rb"\x28\0\x10\0(?:US\x02\0|\x02\0\0\0)(..)", re.DOTALL),  # Rows, explicit or implicit, little endian
    re.compile(rb"\x28\0\x11\0(?:US\x02\0|\x02\0\0\0)(..)", re.DOTALL),  # Columns
)


def pixel_count(data: bytes) -> int:
    """Return the number of pixels of a PNG, JPEG, DICOM, TIFF, WEBP, GIF or BMP file.

    A DICOM file whose size is not found counts a pixel for every two bytes, and a JPEG file whose size comes after
    10,000 segments one for every byte. Other files count 0 then.
    """
    try:
        width, height = _size(data)
    except (struct.error, IndexError):
        return 0
    return abs(width * height)


def _size(data: bytes) -> tuple[int, int]:
    if data.startswith(b"\x89PNG") and data[12:16] == b"IHDR":
        return struct.unpack_from(">II", data, 16)
    if data.startswith(b"\xff\xd8"):
        return _jpeg_size(data)
    if data[128:132] == b"DICM":
        return _dicom_size(data)
    if data.startswith((b"II*\0", b"MM\0*")):
        return _tiff_size(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _webp_size(data)
    if data.startswith(b"GIF8"):
        return struct.unpack_from("<HH", data, 6)
    if data.startswith(b"BM"):
        return struct.unpack_from("<ii", data, 18)  # a height below 0 counts rows from the top
    return 0, 0


def _jpeg_size(data: bytes) -> tuple[int, int]:
    at = 2
    for _ in range(_JPEG_STEPS):
        if data[at + 1] == 0xFF:  # a fill byte
            at += 1
            continue
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4])
        if marker in _JPEG_SIZES:
            height, width = struct.unpack_from(">HH", data, at + 5)
            return width, height
        if length < 2:
            return 0, 0
        at += 2 + length
    return len(data), 1


def _dicom_size(data: bytes) -> tuple[int, int]:
    matches = [pattern.search(data, 0, _DICOM_HEAD) for pattern in _DICOM_SIDES]
    sides = [int.from_bytes(match[1], "little") for match in matches if match is not None]
    return (sides[1], sides[0]) if len(sides) == len(matches) else (len(data) // 2, 1)


def _tiff_size(data: bytes) -> tuple[int, int]:
    order = "<" if data.startswith(b"II") else ">"
    (start,) = struct.unpack_from(f"{order}I", data, 4)
    (count,) = struct.unpack_from(f"{order}H", data, start)
    sides = {}
    for at in range(start + 2, start + 2 + 12 * count, 12):
        tag, kind = struct.unpack_from(f"{order}HH", data, at)
        if tag in (256, 257):  # ImageWidth, ImageLength; a short or a long
            (sides[tag],) = struct.unpack_from(f"{order}{'H' if kind == 3 else 'I'}", data, at + 8)
    return sides.get(256, 0), sides.get(257, 0)


def _webp_size(data: bytes) -> tuple[int, int]:
    match data[12:16]:
        case b"VP8X":
            return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
        case b"VP8L":
            (bits,) = struct.unpack_from("<I", data, 21)
            return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        case b"VP8 ":
            width, height = struct.unpack_from("<HH", data, 26)
            return width & 0x3FFF, height & 0x3FFF
        case _:
            return 0, 0
