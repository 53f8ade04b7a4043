"""Is a compressed frame whole, and as large as its header says? Pure walks over markers; nothing is decoded.

Decoders fill what is missing of a cut stream with grey, and allocate what the stream's own header asks for.
"""

from __future__ import annotations

from pedcxr_client.films import jpeg2000

_JPEG = b"\xff\xd8"  # SOI (ISO/IEC 10918-1 B.2)
_END = b"\xff\xd9"  # EOI, and EOC too
_SCAN, _ALONE = 0xDA, {0x00, 0x01, *range(0xD0, 0xDA)}  # SOS; markers without a length, or none at all
_FRAME = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # SOF0..15, and SOF55 of JPEG-LS


def is_whole(frame: bytes) -> bool:
    """Whether a JPEG, JPEG-LS or JPEG 2000 stream has its end marker; some pad it to an even length with FF."""
    return frame.rstrip(b"\0\xff").endswith(_END)


def size(frame: bytes) -> tuple[int, int] | None:
    """Rows and columns as the stream itself says, or None where it cannot be found."""
    if len(found := jpeg2000.stream(frame)) >= 24:
        # After Rsiz: the reference grid's size and the image's offset in it, of 4 bytes each.
        width, height, left, top = (int.from_bytes(found[at : at + 4]) for at in (8, 12, 16, 20))
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


def is_sound(frame: bytes) -> bool:
    """Whether a JPEG or JPEG-LS stream is one of grey: marker after marker, one frame header of one component, a scan.

    GDCM ends the whole process over some that are not.
    """
    if not frame.startswith(_JPEG):
        return False
    at, headers = 2, 0
    while at + 4 <= len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        length = int.from_bytes(frame[at + 2 : at + 4])
        if length < 2 or marker in _ALONE:
            return False
        if marker in _FRAME:
            headers += 1
            if frame[at + 9 : at + 10] != b"\1" or not 2 <= frame[at + 4] <= 16 or length != 11:
                return False
        if marker == _SCAN:
            return headers == 1 and length == 8 and frame[at + 4] == 1
        at += 2 + length
    return False
