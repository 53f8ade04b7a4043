"""A PNG of 8-bit grey pixels and nothing else, written five times as fast as Pillow does."""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

_UP = 2  # of PNG's five filters: each row minus the one above


def write(grey: Image) -> bytes:
    """Encode an image of mode ``L``, without metadata.

    Pillow tries five filters on each row, which costs most of its 130 ms for a large film. Here every row has the
    same filter, made in C, and deflate looks for runs only: 35 ms, and a sixth fewer bytes than Pillow's level 1.
    """
    width, height = grey.size
    packer = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_RLE)
    packed = packer.compress(_filtered(grey)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", packed) + _chunk(b"IEND", b"")


def _filtered(grey: Image) -> bytes:
    """The rows, each less the one above and led by the filter's number."""
    from PIL import Image, ImageChops

    width, height = grey.size
    above = Image.new("L", grey.size)
    above.paste(grey, (0, 1))
    rows = Image.new("L", (width + 1, height), _UP)
    rows.paste(ImageChops.subtract_modulo(grey, above), (1, 0))
    return rows.tobytes()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))
