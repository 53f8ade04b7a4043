"""Is a compressed frame whole, and as large as its header says? Pure walks over markers; nothing is decoded.

Decoders fill what is missing of a cut stream with grey, and allocate what the stream's own header asks for.
"""

from __future__ import annotations

_JPEG, _J2K = b"\xff\xd8", b"\xff\x4f\xff\x51"  # SOI; SOC and SIZ (ISO/IEC 10918-1 B.2, 15444-1 A.4)
_END = b"\xff\xd9"  # EOI, and EOC too
_BOXES = 4096  # some wrap the stream in a JP2 file, whose boxes come first
_FRAME = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # SOF0..15, and SOF55 of JPEG-LS


def is_whole(frame: bytes) -> bool:
    """Whether a JPEG, JPEG-LS or JPEG 2000 stream has its end marker; some pad it to an even length with FF."""
    return frame.rstrip(b"\0\xff").endswith(_END)


def size(frame: bytes) -> tuple[int, int] | None:
    """Rows and columns as the stream itself says, or None where it cannot be found."""
    start = frame.find(_J2K, 0, _BOXES)
    if start >= 0 and len(frame) >= start + 24:
        # After Rsiz: the reference grid's size and the image's offset in it, of 4 bytes each.
        width, height, left, top = (int.from_bytes(frame[start + at : start + at + 4]) for at in (8, 12, 16, 20))
        return height - top, width - left
    if not frame.startswith(_JPEG):
        return None
    at = 2
    while at + 9 <= len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker in _FRAME:
            return int.from_bytes(frame[at + 5 : at + 7]), int.from_bytes(frame[at + 7 : at + 9])
        at += 1 if marker == 0xFF else 2 + int.from_bytes(frame[at + 2 : at + 4])
    return None
