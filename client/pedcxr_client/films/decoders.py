"""The one frame of a DICOM film: whether a decoder survives it is checked first, then it is decoded."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from pedcxr_client.errors import InputError
from pedcxr_client.films import codestream, jpeg2000
from pedcxr_client.films.log_silencer import attempt

if TYPE_CHECKING:
    from pydicom.uid import UID

    from pedcxr_client.films.display import Stored, Words

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
        if not codestream.is_whole(frame):
            raise InputError(damaged)
        if codestream.size(frame) not in (None, (header.Rows, header.Columns)):
            raise InputError("its compressed pixels are of another size than Rows and Columns say; export it again")
        if syntax in JPEG2000TransferSyntaxes:
            frame = jpeg2000.stream(frame)
            if not jpeg2000.is_bounded(frame):
                raise InputError("its JPEG 2000 headers are damaged, or of a kind that no film needs; export it again")
        elif not codestream.is_sound(frame):
            raise InputError(damaged)
    # An extended offset table could lead the decoder to another frame.
    for keyword in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths"):
        header.pop(keyword, None)
    header.PixelData = encapsulate([frame])
