"""JPEG 2000 streams of one grey component: bounds on what a decoder is made to do, from headers (ISO/IEC 15444-1).

A few bytes of a header can ask for 65,535 tiles or layers, or for a precinct a pixel: gigabytes for a small film.
Pure walks over markers; nothing is decoded.
"""

from __future__ import annotations

_START = b"\xff\x4f\xff\x51"  # SOC and SIZ, A.4
_BOXES = 4096  # some wrap the stream in a JP2 file, whose boxes come first
_COD, _COC, _SOT, _SOD, _EOC = 0xFF52, 0xFF53, 0xFF90, 0xFF93, 0xFFD9
_MAIN = 45  # bytes of SOC and of SIZ with one component
_TILES = 4096  # 50 million pixels in tiles of 128 x 128 are 3052
_MARKERS = 1 << 17  # walked in a tenth of a second
_PACKETS = 1 << 18
_BLOCKS = 1 << 17  # OpenJPEG holds 4.6 KiB for each; 18 million pixels in blocks of 16 x 16 are 94 thousand


def stream(frame: bytes) -> bytes:
    """The codestream in a frame, without the boxes around it; empty where there is none.

    pydicom 3.0.2 walks those boxes itself and never ends if one is of length 0 (`pixels.utils.get_j2k_parameters`).
    """
    start = frame.find(_START, 0, _BOXES)
    return frame[start:] if start >= 0 else b""


def is_bounded(codestream: bytes) -> bool:
    """Whether the headers are sound and ask for no more than a film of that size needs.

    Every packet takes at least a byte (B.10), so that there cannot be more of them than bytes.
    """
    if len(codestream) < _MAIN or _number(codestream, 4, 2) != 41 or codestream[40:42] != b"\0\1":
        return False
    if codestream[42] & 0x7F > 15 or codestream[43:45] != b"\1\1":  # 16 bits; a sample at each of the grid's points
        return False
    found = _headers(codestream)
    return found is not None and _fits(codestream, found)


def _number(data: bytes, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size])


def _headers(data: bytes) -> bytes | None:
    """Walk the main header and those of the tile-parts; what COD says, if it is said once, in the main header."""
    said, at, end, between = b"", 2, 0, False  # end: of the tile-part in hand, 0 in the main header
    for _ in range(_MARKERS):
        marker, length = _number(data, at, 2), _number(data, at + 2, 2)
        if between and (at >= len(data) or marker == _EOC):
            return said
        if marker == _SOD and at < end and not between:
            at, between = end, True
            continue
        if marker == _SOT and length == 10 and (between or not end):
            end, between = at + (_number(data, at + 6, 4) or len(data) - at), False
        elif between or not 0xFF50 <= marker < 0xFF80 or length < 2 or marker == _COC:
            return None
        elif marker == _COD:
            if said or end:
                return None
            said = data[at + 4 : at + 2 + length]
        at += 2 + length
    return None


def _fits(data: bytes, said: bytes) -> bool:
    right, bottom, left, top, width, height, tiles_left, tiles_top = (_number(data, at, 4) for at in range(8, 40, 4))
    if not (width > 0 and height > 0 and tiles_left <= left < right and tiles_top <= top < bottom):
        return False
    tiles = -(-(right - tiles_left) // width) * -(-(bottom - tiles_top) // height)
    if tiles > _TILES or len(said) < 10:
        return False
    layers, levels, across, down = _number(said, 2, 2), said[5], said[6] + 2, said[7] + 2
    precincts = said[10:] if said[0] & 1 else b"\xff" * (levels + 1)
    if not layers or levels > 32 or across > 10 or down > 10 or across + down > 12 or len(precincts) != levels + 1:
        return False
    width, height = min(width, right - left), min(height, bottom - top)
    packets = blocks = 0
    for resolution, size in enumerate(precincts):
        # Of a tile at this resolution, with one more of each where lines of the grid may not meet its edges: up to
        # four times too many.
        wide, high = (-(-side >> levels - resolution) + 1 for side in (width, height))
        of_width, of_height = size & 15, size >> 4
        packets += (1 + (wide >> of_width)) * (1 + (high >> of_height))
        # A level's three bands are as large as the level below.
        inside = bool(resolution)
        block_width, block_height = min(across, max(of_width - inside, 0)), min(down, max(of_height - inside, 0))
        wide, high = wide >> inside, high >> inside
        blocks += (3 if inside else 1) * (1 + (wide >> block_width)) * (1 + (high >> block_height))
    return tiles * packets <= _PACKETS and tiles * packets * layers <= 4 * len(data) and tiles * blocks <= _BLOCKS
