"""Decode the single frame of a DICOM film, after checks that it cannot crash or exhaust a decoder.

Decoders fill the missing part of a truncated stream with grey, and allocate the memory that its header requests. The
checks of `codestreams` run first.
"""

from __future__ import annotations

import importlib
import importlib.util
import struct
import sys
import threading
import zlib
from typing import TYPE_CHECKING, Any

from pedcxr_client.errors import InputError, MissingResource
from pedcxr_client.films import codestreams
from pedcxr_client.films.files import MAX_BYTES
from pedcxr_client.films.header.elements import attempt

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

_ITEM, _DELIMITER = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"  # PS3.5 section A.4, little endian
_MAX_FRAGMENTS = 1 << 17
_DAMAGED = "the compressed pixels are damaged or cut short; export or copy the film again"
_MORE_FRAMES = (
    "PixelData (7FE0,0010) hold more than the one frame that NumberOfFrames (0028,0008) states; "
    "give a film with one frame"
)
_BESIDE_THE_SCRIPT = ("dl", "DLFCN")  # modules of Python 2 that python-gdcm imports if they exist

_import_lock = threading.Lock()


def is_compressed(header: Any) -> bool:
    """Return whether the transfer syntax needs a decoder written in C."""
    return str(header.file_meta.TransferSyntaxUID) not in _UNCOMPRESSED


def import_packages() -> None:
    """Import numpy and pydicom with its decoders.

    Raises:
        ImportError: if numpy or pydicom is not installed.
        InputError: if the import of a package raises another exception.
    """
    with _import_lock:
        try:
            import numpy  # noqa: F401

            if "pydicom.pixels" not in sys.modules:
                _import_gdcm()
            import pydicom
            import pydicom.pixels  # noqa: F401
        except ImportError:
            raise
        except Exception as error:  # the code of any installed package runs here
            module = _last_module(error)
            raise InputError(
                f"is DICOM, but the import of {module} raised {type(error).__name__}; a file or folder beside the "
                f"script may have the name of a module that it imports; else reinstall: {INSTALL}"
            ) from None


def decode(header: Any, pixel_format: PixelFormat) -> tuple[PixelCells, list[str]]:
    """Decode a film with one frame, and leave the header unchanged.

    Return the unsigned pixel cells, BitsAllocated bits each, of shape (Rows, Columns), and notes.
    """
    import numpy as np
    from pydicom.encaps import encapsulate
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID

    from pedcxr_client.films import grayscale

    syntax = attempt(lambda: UID(str(header.file_meta.TransferSyntaxUID)), "TransferSyntaxUID (0002,0010) is damaged")
    _check_decoder(syntax, pixel_format)
    size = grayscale.integer(header, "Rows"), grayscale.integer(header, "Columns")
    frame, notes = _only_frame(header, syntax, pixel_format, size)
    damaged = "the pixels are damaged or cut short; export or copy the film again"
    array, _ = attempt(
        lambda: get_decoder(syntax).as_array(
            encapsulate([frame]) if syntax.is_encapsulated else frame,
            index=0,
            raw=True,
            decoding_plugin=_PLUGINS.get(str(syntax), ""),
            **_pixel_options(header, pixel_format, size),
        ),
        damaged,
    )
    if array.shape != size or array.dtype.kind not in "iu":
        raise InputError(damaged)
    cells = array.astype(f"{array.dtype.kind}{array.itemsize}", copy=False)
    cells = cells.view(f"u{cells.itemsize}").astype(f"u{pixel_format.bits_allocated // 8}", copy=False)
    if syntax.is_encapsulated and syntax != _RLE:  # RLE encodes whole pixel cells
        low, high = pixel_format.range
        least, greatest = int(array.min()), int(array.max())
        if (low <= least and greatest <= high) or (least >= 0 and greatest <= high - low):
            # Other decoders return values aligned to bit 0; HighBit of the header applies to the cell.
            return np.left_shift(cells, pixel_format.high_bit + 1 - pixel_format.bits_stored), notes
        whole_cells = codestreams.coded_bits(frame) == pixel_format.bits_allocated
        if not (whole_cells and _has_overlays(cells, pixel_format)):
            raise InputError("the compressed pixels have more bits than BitsStored (0028,0101); export the film again")
        notes.append(f"bits outside the {pixel_format.bits_stored} of BitsStored ignored")
    return cells, notes


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


def _has_overlays(cells: PixelCells, pixel_format: PixelFormat) -> bool:
    """Return whether the bits outside the stored ones are overlays (PS3.5 section 8.1.2), not a part of larger values.

    At the edge of an overlay the stored value is steady. Where a value exceeds BitsStored, the whole cell is steady,
    and its lower bits start again at 0.
    """
    import numpy as np

    lowest = pixel_format.high_bit + 1 - pixel_format.bits_stored
    stored_bits = ((1 << pixel_format.bits_stored) - 1) << lowest
    unused_bits = (1 << pixel_format.bits_allocated) - 1 - stored_bits
    whole_steps = stored_steps = 0
    for one, next_one in ((cells[1:], cells[:-1]), (cells[:, 1:], cells[:, :-1])):
        edge = ((one ^ next_one) & unused_bits) > 0
        first, second = one[edge].astype(np.int32), next_one[edge].astype(np.int32)
        whole_steps += int(abs(first - second).sum(dtype=np.int64))
        stored_steps += int(abs((first & stored_bits) - (second & stored_bits)).sum(dtype=np.int64))
    return stored_steps <= whole_steps


def _import_gdcm() -> None:
    # A folder with such a name beside the user's script would be imported in place of the module.
    try:
        importlib.import_module("gdcm")
    except ImportError:
        return
    except Exception:
        hidden = {name: sys.modules.get(name) for name in _BESIDE_THE_SCRIPT}
        sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None lets the import fail
        try:
            importlib.import_module("gdcm")
        finally:
            for name, module in hidden.items():
                del sys.modules[name]
                sys.modules.update({} if module is None else {name: module})


def _last_module(error: BaseException) -> str:
    """Return the name of the module whose code raised the error."""
    traceback, name = error.__traceback__, "pydicom"
    while traceback is not None:
        name = str(traceback.tb_frame.f_globals.get("__name__", name))
        traceback = traceback.tb_next
    return name


def _pixel_options(header: Any, pixel_format: PixelFormat, size: tuple[int, int]) -> dict[str, Any]:
    return {
        "rows": size[0],
        "columns": size[1],
        "samples_per_pixel": 1,
        "number_of_frames": 1,
        "photometric_interpretation": "MONOCHROME2",  # whatever the film's, it changes no stored value
        "bits_allocated": pixel_format.bits_allocated,
        "bits_stored": pixel_format.bits_stored,
        "pixel_representation": int(pixel_format.signed),
        "pixel_keyword": "PixelData",
        "pixel_vr": header["PixelData"].VR,
        "view_only": True,
        "correct_unused_bits": False,
    }


def _only_frame(header: Any, syntax: UID, pixel_format: PixelFormat, size: tuple[int, int]) -> tuple[bytes, list[str]]:
    """Return the checked bytes of the only frame, and notes. Offset tables could name another frame and are ignored."""
    data = attempt(lambda: header.PixelData, "PixelData (7FE0,0010) cannot be read; export or copy the film again")
    if not isinstance(data, bytes | None):
        raise InputError("PixelData (7FE0,0010) are not bytes; give the film as a file")
    data = data or b""  # pydicom returns None for an empty element
    if not syntax.is_encapsulated:
        expected = size[0] * size[1] * pixel_format.bits_allocated // 8
        if len(data) < expected and data.startswith(_ITEM):
            raise InputError("the pixels are compressed, but TransferSyntaxUID (0002,0010) is absent or wrong")
        if len(data) > expected + 1:  # one byte pads the pixels to an even length
            raise InputError(_MORE_FRAMES)
        return data, []
    fragments = _fragments(data)
    if syntax != _RLE:
        return _checked_stream(syntax, b"".join(fragments), size)
    # The number of segments, and the offset of the first (PS3.5 section G.5), begin each frame.
    start = struct.pack("<II", pixel_format.bits_allocated // 8, 64)
    if any(fragment.startswith(start) for fragment in fragments[1:]):
        raise InputError(_MORE_FRAMES)
    return b"".join(fragments), []


def _fragments(data: bytes) -> list[bytes]:
    """Return the fragments of encapsulated pixels that are not empty (PS3.5 section A.4), without the offset table."""
    at = 0
    fragments: list[bytes] = []
    while data.startswith(_ITEM, at) and len(fragments) <= _MAX_FRAGMENTS:
        start = at + 8
        at = start + int.from_bytes(data[at + 4 : start], "little")
        fragments.append(data[start:at])
    # A few bytes of the delimiter may be left if the file is cut there.
    if not fragments or at > len(data) or not _DELIMITER.startswith(data[at : at + 4]):
        raise InputError(_DAMAGED)
    return [fragment for fragment in fragments[1:] if fragment]


def _checked_stream(syntax: UID, frame: bytes, size: tuple[int, int]) -> tuple[bytes, list[str]]:
    from pydicom.uid import JPEG2000TransferSyntaxes

    if (parts := codestreams.split(frame)) is None:
        raise InputError(_DAMAGED)
    stream, rest = parts
    if codestreams.starts_another(stream, rest):
        raise InputError(_MORE_FRAMES)
    if codestreams.coded_size(stream) not in (None, size):
        raise InputError("the compressed pixels have another size than Rows and Columns; export the film again")
    if syntax in JPEG2000TransferSyntaxes:
        if not codestreams.is_bounded_jpeg2000(codestreams.jpeg2000_codestream(stream)):
            raise InputError("the JPEG 2000 headers are damaged or exceed what a film needs; export the film again")
    elif not codestreams.is_grey_jpeg(stream):
        raise InputError(_DAMAGED)
    # Zeros and FF pad a stream to an even length.
    return stream, [f"{len(rest)} bytes after the compressed pixels ignored"] if rest.strip(b"\0\xff") else []


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
