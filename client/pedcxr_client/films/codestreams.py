"""Read the headers of JPEG, JPEG-LS and JPEG 2000 streams, without decoding anything.

Section numbers are those of ISO/IEC 10918-1 for JPEG, and of ISO/IEC 15444-1 for JPEG 2000.
"""

from __future__ import annotations

import re

_JPEG_START = b"\xff\xd8"  # SOI, B.1.1.3
_END = b"\xff\xd9"  # EOI of JPEG, EOC of JPEG 2000
_JPEG_END, _SCAN = 0xD9, 0xDA  # EOI, SOS
_NO_LENGTH = {0x00, 0x01, *range(0xD0, 0xDA)}  # markers without a length field, and the stuffed byte 0
_FRAME_HEADERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # SOF0 to SOF15, and SOF55 of JPEG-LS
# The next marker in the data of a scan. An encoder writes a 0 byte after FF, or in JPEG-LS a byte below 80. RST0 to
# RST7 belong to the scan.
_MARKER_IN_SCAN = re.compile(rb"\xff[\x80-\xcf\xd8-\xfe]")

_JPEG2000_START = b"\xff\x4f\xff\x51"  # SOC and SIZ, A.4
_BOXES_SIZE = 4096  # bytes searched for the codestream in a JP2 file, which starts with boxes
_COD, _COC, _SOT, _SOD, _EOC = 0xFF52, 0xFF53, 0xFF90, 0xFF93, 0xFFD9
_MAIN_HEADER_SIZE = 45  # bytes of SOC, and of SIZ with one component
_MAX_TILES = 4096  # 50 million pixels in tiles of 128 x 128 are 3052
_TAIL = 64  # bytes after which a damaged stream may have its end marker
_MAX_MARKERS = 1 << 17  # takes 0.1 s to walk over
_MAX_PACKETS = 1 << 18
_MAX_BLOCKS = 1 << 17  # OpenJPEG allocates 4.6 KiB per block; 18 million pixels in 16 x 16 blocks are 94,000


def split(frame: bytes) -> tuple[bytes, bytes] | None:
    """Return a stream up to its end marker, and the bytes after it, or None if the stream is cut short.

    The boxes around a JPEG 2000 codestream are removed.
    """
    if stream := jpeg2000_codestream(frame):
        end = _jpeg2000_end(stream)
    else:
        stream, end = frame, _jpeg_end(frame)
    if not end:
        # The headers are damaged. The data of a stream never contain the end marker, so that it ends here.
        last = max(0, len(stream) - _TAIL)
        end = stream.rfind(_END, last) + len(_END) if _END in stream[last:] else 0
    return (stream[:end], stream[end:]) if end else None


def starts_another(stream: bytes, rest: bytes) -> bool:
    """Return whether the bytes after a stream hold a further stream of the same family."""
    return (_JPEG2000_START if stream.startswith(_JPEG2000_START) else _JPEG_START + b"\xff") in rest


def coded_bits(stream: bytes) -> int:
    """Return the bits per sample that the stream itself states, or 0 if it has no frame header."""
    if len(codestream := jpeg2000_codestream(stream)) >= _MAIN_HEADER_SIZE:
        return (codestream[42] & 0x7F) + 1  # Ssiz, A.5.1
    header = _frame_header(stream)
    return stream[header + 4] if header else 0


def coded_size(frame: bytes) -> tuple[int, int] | None:
    """Return the rows and columns that the stream itself states, or None if it has no frame header."""
    if len(codestream := jpeg2000_codestream(frame)) >= 24:
        # SIZ, A.5.1: Xsiz, Ysiz, XOsiz and YOsiz follow Rsiz, 4 bytes each.
        x1, y1, x0, y0 = (_number(codestream, at, 4) for at in (8, 12, 16, 20))
        return y1 - y0, x1 - x0
    header = _frame_header(frame)
    return (_number(frame, header + 5, 2), _number(frame, header + 7, 2)) if header else None


def is_grey_jpeg(frame: bytes) -> bool:
    """Return whether a JPEG or JPEG-LS stream has valid markers up to its scan, and one component.

    GDCM terminates the process on some invalid streams.
    """
    if not frame.startswith(_JPEG_START):
        return False
    at, headers = 2, 0
    for _ in range(_MAX_MARKERS):
        if at + 4 > len(frame) or frame[at] != 0xFF:
            return False
        marker = frame[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        length = _number(frame, at + 2, 2)
        if length < 2 or marker in _NO_LENGTH:
            return False
        if marker in _FRAME_HEADERS:
            headers += 1
            if frame[at + 9 : at + 10] != b"\1" or not 2 <= frame[at + 4] <= 16 or length != 11:
                return False
        if marker == _SCAN:
            return headers == 1 and length == 8 and frame[at + 4] == 1
        at += 2 + length
    return False


def jpeg2000_codestream(frame: bytes) -> bytes:
    """Return the JPEG 2000 codestream in a frame without the boxes around it, or ``b""`` without one.

    pydicom 3.0.2 (``pixels.utils.get_j2k_parameters``) loops endlessly on a box of length 0.
    """
    start = frame.find(_JPEG2000_START, 0, _BOXES_SIZE)
    return frame[start:] if start >= 0 else b""


def is_bounded_jpeg2000(codestream: bytes) -> bool:
    """Return whether the headers are valid and request no more work than a film of that size needs.

    A few bytes can request 65,535 tiles or layers, or one precinct per pixel: gigabytes of memory for a small film.
    Every packet takes at least one byte (B.10), so a stream cannot hold more packets than bytes.
    """
    if len(codestream) < _MAIN_HEADER_SIZE or _number(codestream, 4, 2) != 41 or codestream[40:42] != b"\0\1":
        return False
    # At most 16 bits per sample, and one sample per point of the reference grid.
    if codestream[42] & 0x7F > 15 or codestream[43:45] != b"\1\1":
        return False
    coding_style = _coding_style(codestream)
    return coding_style is not None and _is_within_limits(codestream, coding_style)


def _number(data: bytes, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size])


def _frame_header(frame: bytes) -> int:
    """Return the offset of the frame header's marker, or 0 without one."""
    at = 2
    for _ in range(_MAX_MARKERS):
        if not (frame.startswith(_JPEG_START) and at + 9 <= len(frame) and frame[at] == 0xFF):
            return 0
        marker = frame[at + 1]
        if marker in _FRAME_HEADERS:
            return at
        at += 1 if marker == 0xFF else 2 + _number(frame, at + 2, 2)
    return 0


def _jpeg_end(frame: bytes) -> int:
    """Return the offset after EOI, or 0 without one. Segments are skipped, because a thumbnail has its own EOI."""
    at = 2
    for _ in range(_MAX_MARKERS):
        if not (frame.startswith(_JPEG_START) and at + 2 <= len(frame) and frame[at] == 0xFF):
            return 0
        marker = frame[at + 1]
        if marker == _JPEG_END:
            return at + 2
        if marker == 0xFF:
            at += 1
            continue
        if marker in _NO_LENGTH:
            return 0
        at += 2 + _number(frame, at + 2, 2)
        if marker == _SCAN:
            following = _MARKER_IN_SCAN.search(frame, at)
            at = following.start() if following else len(frame)
    return 0


def _jpeg2000_end(data: bytes) -> int:
    """Return the offset after EOC, or 0 without one. Tile-parts are skipped by the length that they state (A.4.2)."""
    at = 2
    for _ in range(_MAX_MARKERS):
        marker, length = _number(data, at, 2), _number(data, at + 2, 2)
        if marker == _EOC:
            return at + 2
        if marker == _SOT:
            if part := _number(data, at + 6, 4):
                at += part
                continue
            # The last tile-part may have the length 0, and extend to EOC. Its data never contain a marker.
            start = data.find(_SOD.to_bytes(2), at)
            return data.find(_END, start) + 2 if start >= 0 and data.find(_END, start) >= 0 else 0
        if not 0xFF50 <= marker < 0xFF80 or length < 2:
            return 0
        at += 2 + length
    return 0


def _coding_style(data: bytes) -> bytes | None:
    # Return the content of COD if only the main header has it, and has it once.
    # `end` is the offset after the current tile-part, or 0 in the main header.
    style, at, end, between = b"", 2, 0, False
    for _ in range(_MAX_MARKERS):
        marker, length = _number(data, at, 2), _number(data, at + 2, 2)
        if between and (at >= len(data) or marker == _EOC):
            return style
        if marker == _SOD and at < end and not between:
            at, between = end, True
            continue
        if marker == _SOT and length == 10 and (between or not end):
            end, between = at + (_number(data, at + 6, 4) or len(data) - at), False
        elif between or not 0xFF50 <= marker < 0xFF80 or length < 2 or marker == _COC:
            return None
        elif marker == _COD:
            if style or end:
                return None
            style = data[at + 4 : at + 2 + length]
        at += 2 + length
    return None


def _is_within_limits(data: bytes, style: bytes) -> bool:
    x1, y1, x0, y0, width, height, tiles_x0, tiles_y0 = (_number(data, at, 4) for at in range(8, 40, 4))
    if not (width > 0 and height > 0 and tiles_x0 <= x0 < x1 and tiles_y0 <= y0 < y1):
        return False
    tiles = -(-(x1 - tiles_x0) // width) * -(-(y1 - tiles_y0) // height)
    if tiles > _MAX_TILES or len(style) < 10:
        return False
    # A.6.1; widths and heights of code-blocks and precincts are exponents of 2.
    layers, levels, block_x, block_y = _number(style, 2, 2), style[5], style[6] + 2, style[7] + 2
    precincts = style[10:] if style[0] & 1 else b"\xff" * (levels + 1)
    if not layers or levels > 32 or block_x > 10 or block_y > 10 or block_x + block_y > 12:
        return False
    if len(precincts) != levels + 1:
        return False
    width, height = min(width, x1 - x0), min(height, y1 - y0)
    packets = blocks = 0
    for resolution, size in enumerate(precincts):
        # The tile's size at this resolution, plus 1 because grid lines may not meet its edges. This overestimates the
        # counts by a factor of at most 4.
        wide, high = (-(-side >> levels - resolution) + 1 for side in (width, height))
        precinct_x, precinct_y = size & 15, size >> 4
        packets += (1 + (wide >> precinct_x)) * (1 + (high >> precinct_y))
        # Each of the three bands of a level has half the width and height of that level.
        detail = bool(resolution)
        x, y = min(block_x, max(precinct_x - detail, 0)), min(block_y, max(precinct_y - detail, 0))
        wide, high = wide >> detail, high >> detail
        blocks += (3 if detail else 1) * (1 + (wide >> x)) * (1 + (high >> y))
    few_packets = tiles * packets <= _MAX_PACKETS and tiles * packets * layers <= 4 * len(data)
    return few_packets and tiles * blocks <= _MAX_BLOCKS
