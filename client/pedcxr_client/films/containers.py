"""Does a PNG or JPEG hold anything but pixels? Pure walks over the file's chunks; nothing is decoded."""

from __future__ import annotations

import re

# What a decoder may need, or what is a bare number. Not: text, EXIF, a date (tIME), a profile with a
# name in it (iCCP), transparency (tRNS), frames (acTL).
_PNG_CLEAN = frozenset({b"IHDR", b"IDAT", b"IEND", b"pHYs", b"gAMA", b"sRGB", b"cHRM", b"sBIT", b"bKGD"})
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

# Quantisation, Huffman, frames that Pillow decodes (baseline, extended, progressive), restart interval.
_JPEG_CLEAN = frozenset({0xDB, 0xC4, 0xC0, 0xC1, 0xC2, 0xDD})
_SOI, _EOI, _SOS, _JFIF, _ADOBE = 0xD8, 0xD9, 0xDA, 0xE0, 0xEE
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)


def is_bare_png(data: bytes) -> bool:
    """Whether a PNG is 8-bit grey or RGB and holds nothing but pixels, to its last byte."""
    if data[:8] != _PNG_SIGNATURE or data[24:25] != b"\x08" or data[25:26] not in (b"\x00", b"\x02"):
        return False
    at = 8
    while at + 12 <= len(data):
        kind = data[at + 4 : at + 8]
        at += 12 + int.from_bytes(data[at : at + 4])
        if kind not in _PNG_CLEAN:
            return False
        if kind == b"IEND":
            return at == len(data)
    return False


def is_bare_jpeg(data: bytes) -> bool:
    """Whether a JPEG holds nothing but pixels and what decoding them needs, to its last byte."""
    if data[:2] != b"\xff\xd8":
        return False
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, body = data[at + 1], data[at + 4 : at + 4 + 14]
        if marker == _EOI:
            break
        length = int.from_bytes(data[at + 2 : at + 4])
        if not (marker in _JPEG_CLEAN or marker == _SOS or _is_bare_header(marker, length, body)):
            return False
        at += 2 + length
        if marker == _SOS:
            following = _NEXT_MARKER.search(data, at)
            at = following.start() if following else len(data)
    return data[at:] == b"\xff\xd9"


def _is_bare_header(marker: int, length: int, body: bytes) -> bool:
    """JFIF without its thumbnail, or Adobe's, which says how the colours are coded."""
    if marker == _JFIF:
        return length == 16 and body.startswith(b"JFIF\x00")
    return marker == _ADOBE and length == 14 and body.startswith(b"Adobe")
