"""The one frame of a DICOM film: whether a decoder survives it is checked first, then it is decoded."""

from __future__ import annotations

import importlib.util
import zlib
from typing import TYPE_CHECKING, Any

from pedcxr_client.errors import InputError
from pedcxr_client.films.files import MAX_BYTES
from pedcxr_client.films.log_silencer import attempt

if TYPE_CHECKING:
    from pydicom.uid import UID

    from pedcxr_client.films.grayscale import Stored, Words

INSTALL = 'pip install "pedcxr[dicom]"'

_JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"
# GDCM, which pydicom asks first, ends the whole process over some damaged streams; others decode these two as well.
_PLUGINS = {
    "1.2.840.10008.1.2.4.50": "pillow",  # JPEG baseline
    "1.2.840.10008.1.2.4.90": "pylibjpeg",  # JPEG 2000, lossless and lossy
    "1.2.840.10008.1.2.4.91": "pylibjpeg",
}
_RLE = "1.2.840.10008.1.2.5"
_UNCOMPRESSED = {"1.2.840.10008.1.2", *(f"1.2.840.10008.1.2.{kind}" for kind in ("1", "2", "1.99")), _RLE}
_DEFLATED = b"1.2.840.10008.1.2.1.99"  # PS3.5 section A.5

_JPEG_START = b"\xff\xd8"  # SOI (ISO/IEC 10918-1 B.2)
_STREAM_END = b"\xff\xd9"  # EOI, and EOC too
_SCAN, _BARE_MARKERS = 0xDA, {0x00, 0x01, *range(0xD0, 0xDA)}  # SOS; markers without a length, or none at all
_FRAME_HEADERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # SOF0..15, and SOF55 of JPEG-LS

_JPEG2000_START = b"\xff\x4f\xff\x51"  # SOC and SIZ, A.4
_MAX_BOXES = 4096  # some wrap the stream in a JP2 file, whose boxes come first
_COD, _COC, _SOT, _SOD, _EOC = 0xFF52, 0xFF53, 0xFF90, 0xFF93, 0xFFD9
_MAIN_HEADER = 45  # bytes of SOC and of SIZ with one component
_MAX_TILES = 4096  # 50 million pixels in tiles of 128 x 128 are 3052
_MAX_MARKERS = 1 << 17  # walked in a tenth of a second
_MAX_PACKETS = 1 << 18
_MAX_BLOCKS = 1 << 17  # OpenJPEG holds 4.6 KiB for each; 18 million pixels in blocks of 16 x 16 are 94 thousand


def is_compressed(header: Any) -> bool:
    """Whether the transfer syntax is none of those that Python alone reads."""
    return str(header.file_meta.TransferSyntaxUID) not in _UNCOMPRESSED


def decode(header: Any, words: Stored) -> Words:
    """The words of the one frame, of as many bits as are allocated, unsigned."""
    import numpy as np
    from pydicom.pixels.utils import pixel_array
    from pydicom.uid import UID

    syntax = attempt(lambda: UID(str(header.file_meta.TransferSyntaxUID)), "TransferSyntaxUID (0002,0010) is damaged")
    _check_decoder(syntax, words)
    encapsulated = syntax.is_encapsulated
    if encapsulated:
        _check_frame(header, syntax)
    damaged = "its pixels are damaged or cut short; export or copy the film again"
    decoded = attempt(
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
    if decoded.shape != (header.Rows, header.Columns) or decoded.dtype.kind not in "iu":
        raise InputError(damaged)
    unsigned = decoded.astype(f"{decoded.dtype.kind}{decoded.itemsize}", copy=False)
    unsigned = unsigned.view(f"u{unsigned.itemsize}").astype(f"u{words.allocated // 8}", copy=False)
    if encapsulated and syntax != _RLE:  # RLE packs words as they are
        low, high = words.range
        ends = int(decoded.min()), int(decoded.max())
        if not (low <= ends[0] and ends[1] <= high) and not (ends[0] >= 0 and ends[1] <= high - low):
            raise InputError("its compressed pixels have more bits than BitsStored (0028,0101) says; export it again")
        # A decoder hands out values, with nothing beside them in the word.
        unsigned = np.left_shift(unsigned, words.high + 1 - words.stored)
    return unsigned


def _check_decoder(syntax: UID, words: Stored) -> None:
    from pydicom.pixels.decoders.base import get_decoder

    known = syntax.name if syntax.name != str(syntax) else str(syntax)[:64]
    shown = known if str(syntax).replace(".", "").isdigit() else "not a UID"
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        decoder = None
    if decoder is None:
        raise InputError(
            f"TransferSyntaxUID (0002,0010) is {shown}, which nothing here decodes; export it uncompressed"
        )
    if syntax == _JPEG_EXTENDED and words.stored > 8 and importlib.util.find_spec("libjpeg") is None:
        raise InputError(
            f"is compressed as {shown} of 12 bits, which only pylibjpeg-libjpeg (GPL-3, so that pedcxr does not depend "
            "on it) decodes; export the film uncompressed"
        )
    if _PLUGINS.get(str(syntax), "") not in ("", *decoder.available_plugins) or not decoder.is_available:
        raise InputError(f"is compressed as {shown}, for which the decoder is missing: {INSTALL}")


def _check_frame(header: Any, syntax: UID) -> None:
    """Refuse a frame that a decoder would not survive, soon; what was checked is all that the header holds then."""
    from pydicom.encaps import encapsulate, generate_frames
    from pydicom.uid import JPEG2000TransferSyntaxes

    damaged = "its compressed pixels are damaged or cut short; export or copy the film again"
    frame = attempt(lambda: next(generate_frames(header.PixelData, number_of_frames=1)), damaged)
    if syntax != _RLE:
        if not is_complete(frame):
            raise InputError(damaged)
        if coded_size(frame) not in (None, (header.Rows, header.Columns)):
            raise InputError("its compressed pixels are of another size than Rows and Columns say; export it again")
        if syntax in JPEG2000TransferSyntaxes:
            frame = jpeg2000_codestream(frame)
            if not is_bounded_jpeg2000(frame):
                raise InputError("its JPEG 2000 headers are damaged, or of a kind that no film needs; export it again")
        elif not is_grey_jpeg(frame):
            raise InputError(damaged)
    # An extended offset table could lead the decoder to another frame.
    for keyword in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths"):
        header.pop(keyword, None)
    header.PixelData = encapsulate([frame])


def check_inflated_size(data: bytes, name: str) -> None:
    """Stop a file that would inflate to more than any film is.

    Raises:
        InputError: if it would, or if it cannot be inflated.
    """
    syntax, start = _file_group(data)
    if syntax != _DEFLATED and (syntax or data.find(_DEFLATED) < 0):
        return
    inflater, length, rest = zlib.decompressobj(-zlib.MAX_WBITS), 0, data[start:]
    try:
        while rest and length <= MAX_BYTES:
            length += len(inflater.decompress(rest, 1 << 22))
            rest = inflater.unconsumed_tail
    except zlib.error:
        raise InputError(f"{name}: is DICOM, deflated and damaged; export or copy the film again") from None
    if length > MAX_BYTES:
        raise InputError(f"{name}: inflates to more than {MAX_BYTES >> 20} MiB; export it uncompressed")


def _file_group(data: bytes) -> tuple[bytes, int]:
    """The transfer syntax, b"" where none stands there, and where the data set starts (PS3.10 section 7.1)."""
    at, syntax = 132 if data[128:132] == b"DICM" else 0, b""
    while data[at : at + 2] == b"\x02\x00":
        long = data[at + 4 : at + 6] in (b"OB", b"UN")
        head = 12 if long else 8
        end = at + head + int.from_bytes(data[at + head - (4 if long else 2) : at + head], "little")
        if data[at + 2 : at + 4] == b"\x10\x00":
            syntax = data[at + head : end].rstrip(b"\0 ")
        at = end
    return syntax, at


def is_complete(frame: bytes) -> bool:
    """Whether a JPEG, JPEG-LS or JPEG 2000 stream has its end marker; some pad it to an even length with FF."""
    return frame.rstrip(b"\0\xff").endswith(_STREAM_END)


def coded_size(frame: bytes) -> tuple[int, int] | None:
    """Rows and columns as the stream itself says, or None where it cannot be found."""
    if len(found := jpeg2000_codestream(frame)) >= 24:
        # After Rsiz: the reference grid's size and the image's offset in it, of 4 bytes each.
        width, height, left, top = (int.from_bytes(found[at : at + 4]) for at in (8, 12, 16, 20))
        return height - top, width - left
    if not frame.startswith(_JPEG_START):
        return None
    at = 2
    while at + 9 <= len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker in _FRAME_HEADERS:
            return int.from_bytes(frame[at + 5 : at + 7]), int.from_bytes(frame[at + 7 : at + 9])
        at += 1 if marker == 0xFF else 2 + int.from_bytes(frame[at + 2 : at + 4])
    return None


def is_grey_jpeg(frame: bytes) -> bool:
    """Whether a JPEG or JPEG-LS stream is one of grey: marker after marker, one frame header of one component, a scan.

    GDCM ends the whole process over some that are not.
    """
    if not frame.startswith(_JPEG_START):
        return False
    at, headers = 2, 0
    while at + 4 <= len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        length = int.from_bytes(frame[at + 2 : at + 4])
        if length < 2 or marker in _BARE_MARKERS:
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
    """The codestream in a frame, without the boxes around it; empty where there is none.

    pydicom 3.0.2 walks those boxes itself and never ends if one is of length 0 (`pixels.utils.get_j2k_parameters`).
    """
    start = frame.find(_JPEG2000_START, 0, _MAX_BOXES)
    return frame[start:] if start >= 0 else b""


def is_bounded_jpeg2000(codestream: bytes) -> bool:
    """Whether the headers are sound and ask for no more than a film of that size needs.

    Every packet takes at least a byte (B.10), so that there cannot be more of them than bytes.
    """
    if len(codestream) < _MAIN_HEADER or _number(codestream, 4, 2) != 41 or codestream[40:42] != b"\0\1":
        return False
    if codestream[42] & 0x7F > 15 or codestream[43:45] != b"\1\1":  # 16 bits; a sample at each of the grid's points
        return False
    found = _coding_style(codestream)
    return found is not None and _is_within_bounds(codestream, found)


def _number(data: bytes, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size])


def _coding_style(data: bytes) -> bytes | None:
    """Walk the main header and those of the tile-parts; what COD says, if it is said once, in the main header."""
    said, at, end, between = b"", 2, 0, False  # end: of the tile-part in hand, 0 in the main header
    for _ in range(_MAX_MARKERS):
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


def _is_within_bounds(data: bytes, said: bytes) -> bool:
    right, bottom, left, top, width, height, tiles_left, tiles_top = (_number(data, at, 4) for at in range(8, 40, 4))
    if not (width > 0 and height > 0 and tiles_left <= left < right and tiles_top <= top < bottom):
        return False
    tiles = -(-(right - tiles_left) // width) * -(-(bottom - tiles_top) // height)
    if tiles > _MAX_TILES or len(said) < 10:
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
    return (
        tiles * packets <= _MAX_PACKETS and tiles * packets * layers <= 4 * len(data) and tiles * blocks <= _MAX_BLOCKS
    )
