"""Decode the single frame of a DICOM film, after checks that it cannot crash or exhaust a decoder.

Decoders fill the missing part of a truncated stream with grey, and allocate the memory that its header requests. The
checks walk over markers only and decode nothing. Section numbers are those of ISO/IEC 10918-1 for JPEG, and of ISO/IEC
15444-1 for JPEG 2000.
"""

from __future__ import annotations

import importlib.util
import zlib
from typing import TYPE_CHECKING, Any

from pedcxr_client.errors import InputError, MissingResource
from pedcxr_client.films.files import MAX_BYTES
from pedcxr_client.films.header import attempt

if TYPE_CHECKING:
    from pydicom.uid import UID

    from pedcxr_client.films.grayscale import PixelCells, PixelFormat

INSTALL = 'pip install "pedcxr[dicom]"'

_JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"
# pydicom tries GDCM first, which terminates the process on some damaged streams. Other plugins decode these syntaxes.
_PLUGINS = {
    "1.2.840.10008.1.2.4.50": "pillow",  # JPEG baseline
    "1.2.840.10008.1.2.4.90": "pylibjpeg",  # JPEG 2000, lossless and lossy
    "1.2.840.10008.1.2.4.91": "pylibjpeg",
}
_RLE = "1.2.840.10008.1.2.5"
_UNCOMPRESSED = {"1.2.840.10008.1.2", *(f"1.2.840.10008.1.2.{suffix}" for suffix in ("1", "2", "1.99")), _RLE}
_DEFLATED = b"1.2.840.10008.1.2.1.99"  # PS3.5 section A.5

_JPEG_START = b"\xff\xd8"  # SOI, B.1.1.3
_STREAM_END = b"\xff\xd9"  # EOI of JPEG, EOC of JPEG 2000
_SCAN = 0xDA  # SOS
_NO_LENGTH = {0x00, 0x01, *range(0xD0, 0xDA)}  # markers without a length field, and the stuffed byte 0
_FRAME_HEADERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # SOF0 to SOF15, and SOF55 of JPEG-LS

_JPEG2000_START = b"\xff\x4f\xff\x51"  # SOC and SIZ, A.4
_BOXES_SIZE = 4096  # bytes searched for the codestream in a JP2 file, which starts with boxes
_COD, _COC, _SOT, _SOD, _EOC = 0xFF52, 0xFF53, 0xFF90, 0xFF93, 0xFFD9
_MAIN_HEADER_SIZE = 45  # bytes of SOC, and of SIZ with one component
_MAX_TILES = 4096  # 50 million pixels in tiles of 128 x 128 are 3052
_MAX_MARKERS = 1 << 17  # takes 0.1 s to walk over
_MAX_PACKETS = 1 << 18
_MAX_BLOCKS = 1 << 17  # OpenJPEG allocates 4.6 KiB per block; 18 million pixels in 16 x 16 blocks are 94,000


def is_compressed(header: Any) -> bool:
    """Return whether the transfer syntax needs a decoder written in C."""
    return str(header.file_meta.TransferSyntaxUID) not in _UNCOMPRESSED


def decode(header: Any, pixel_format: PixelFormat) -> PixelCells:
    """Return the unsigned pixel cells of a film with one frame: BitsAllocated bits each, shape (Rows, Columns).

    If the frame is encapsulated, the checked frame replaces PixelData in the header.
    """
    import numpy as np
    from pydicom.pixels.utils import pixel_array
    from pydicom.uid import UID

    syntax = attempt(lambda: UID(str(header.file_meta.TransferSyntaxUID)), "TransferSyntaxUID (0002,0010) is damaged")
    _check_decoder(syntax, pixel_format)
    encapsulated = syntax.is_encapsulated
    if encapsulated:
        _keep_only_checked_frame(header, syntax)
    damaged = "the pixels are damaged or cut short; export or copy the film again"
    array = attempt(
        lambda: pixel_array(
            header,
            index=0,
            raw=True,
            view_only=True,
            correct_unused_bits=False,
            decoding_plugin=_PLUGINS.get(str(syntax), ""),
        ),
        damaged,
    )
    if array.shape != (header.Rows, header.Columns) or array.dtype.kind not in "iu":
        raise InputError(damaged)
    cells = array.astype(f"{array.dtype.kind}{array.itemsize}", copy=False)
    cells = cells.view(f"u{cells.itemsize}").astype(f"u{pixel_format.bits_allocated // 8}", copy=False)
    if encapsulated and syntax != _RLE:  # RLE encodes whole pixel cells
        low, high = pixel_format.range
        least, greatest = int(array.min()), int(array.max())
        if not (low <= least and greatest <= high) and not (least >= 0 and greatest <= high - low):
            raise InputError("the compressed pixels have more bits than BitsStored (0028,0101); export the film again")
        # Other decoders return values aligned to bit 0; HighBit of the header applies to the cell.
        cells = np.left_shift(cells, pixel_format.high_bit + 1 - pixel_format.bits_stored)
    return cells


def may_be_deflated(data: bytes) -> bool:
    """Return whether a DICOM file of which these are the first bytes may be deflated; True if they do not tell."""
    syntax, end = _file_meta(data)
    return not syntax or syntax == _DEFLATED or end > len(data)


def check_inflated_size(data: bytes, name: str) -> None:
    """Refuse a deflated data set of more than `MAX_BYTES` before pydicom inflates all of it into memory."""
    syntax, start = _file_meta(data)
    if syntax != _DEFLATED and (syntax or data.find(_DEFLATED) < 0):
        return
    inflater, length, rest = zlib.decompressobj(-zlib.MAX_WBITS), 0, data[start:]
    try:
        while rest and length <= MAX_BYTES:
            length += len(inflater.decompress(rest, 1 << 22))
            rest = inflater.unconsumed_tail
    except zlib.error:
        raise InputError(f"{name}: is a damaged deflated DICOM file; export or copy the film again") from None
    if length > MAX_BYTES:
        raise InputError(f"{name}: inflates to more than {MAX_BYTES >> 20} MiB; export it uncompressed")


def is_complete(frame: bytes) -> bool:
    """Return whether a JPEG, JPEG-LS or JPEG 2000 stream has its end marker. FF and 0 bytes may follow as padding."""
    return frame.rstrip(b"\0\xff").endswith(_STREAM_END)


def coded_size(frame: bytes) -> tuple[int, int] | None:
    """Return the rows and columns that the stream itself states, or None if it has no frame header."""
    if len(codestream := jpeg2000_codestream(frame)) >= 24:
        # SIZ, A.5.1: Xsiz, Ysiz, XOsiz and YOsiz follow Rsiz, 4 bytes each.
        x1, y1, x0, y0 = (_number(codestream, at, 4) for at in (8, 12, 16, 20))
        return y1 - y0, x1 - x0
    if not frame.startswith(_JPEG_START):
        return None
    at = 2
    while at + 9 <= len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker in _FRAME_HEADERS:
            return _number(frame, at + 5, 2), _number(frame, at + 7, 2)
        at += 1 if marker == 0xFF else 2 + _number(frame, at + 2, 2)
    return None


def is_grey_jpeg(frame: bytes) -> bool:
    """Return whether a JPEG or JPEG-LS stream has valid markers up to its scan, and one component.

    GDCM terminates the process on some invalid streams.
    """
    if not frame.startswith(_JPEG_START):
        return False
    at, headers = 2, 0
    while at + 4 <= len(frame) and frame[at] == 0xFF:
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


def _check_decoder(syntax: UID, pixel_format: PixelFormat) -> None:
    from pydicom.pixels.decoders.base import get_decoder

    label = syntax.name if syntax.name != str(syntax) else str(syntax)[:64]
    label = label if str(syntax).replace(".", "").isdigit() else "not a UID"
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        decoder = None
    if decoder is None:
        raise InputError(f"TransferSyntaxUID (0002,0010) is {label}, which is not supported; export it uncompressed")
    if syntax == _JPEG_EXTENDED and pixel_format.bits_stored > 8 and importlib.util.find_spec("libjpeg") is None:
        raise InputError(
            f"is compressed as {label} with 12 bits, which needs pylibjpeg-libjpeg; pedcxr does not depend on it "
            "because its licence is GPL-3; export the film uncompressed"
        )
    if _PLUGINS.get(str(syntax), "") not in ("", *decoder.available_plugins) or not decoder.is_available:
        raise MissingResource(f"is compressed as {label}, for which the decoder is missing: {INSTALL}")


def _keep_only_checked_frame(header: Any, syntax: UID) -> None:
    from pydicom.encaps import encapsulate, generate_frames
    from pydicom.uid import JPEG2000TransferSyntaxes

    damaged = "the compressed pixels are damaged or cut short; export or copy the film again"
    frame = attempt(lambda: next(generate_frames(header.PixelData, number_of_frames=1)), damaged)
    if syntax != _RLE:
        if not is_complete(frame):
            raise InputError(damaged)
        if coded_size(frame) not in (None, (header.Rows, header.Columns)):
            raise InputError("the compressed pixels have another size than Rows and Columns; export the film again")
        if syntax in JPEG2000TransferSyntaxes:
            frame = jpeg2000_codestream(frame)
            if not is_bounded_jpeg2000(frame):
                raise InputError("the JPEG 2000 headers are damaged or exceed what a film needs; export the film again")
        elif not is_grey_jpeg(frame):
            raise InputError(damaged)
    # An extended offset table could direct the decoder to another frame than the checked one.
    for keyword in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths"):
        header.pop(keyword, None)
    header.PixelData = encapsulate([frame])


def _file_meta(data: bytes) -> tuple[bytes, int]:
    """Return the transfer syntax, or ``b""``, and the offset of the data set (PS3.10 section 7.1)."""
    at, syntax = 132 if data[128:132] == b"DICM" else 0, b""
    while data[at : at + 2] == b"\x02\x00":
        long = data[at + 4 : at + 6] in (b"OB", b"UN")
        head = 12 if long else 8
        end = at + head + int.from_bytes(data[at + head - (4 if long else 2) : at + head], "little")
        if data[at + 2 : at + 4] == b"\x10\x00":
            syntax = data[at + head : end].rstrip(b"\0 ")
        at = end
    return syntax, at


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
