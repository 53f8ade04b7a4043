"""From a DICOM header to what display.py needs. Reads elements one by one and trusts none of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pedcxr_client.errors import InputError
from pedcxr_client.films.display import Lut, Rendering, Rescale, Stored, Window
from pedcxr_client.films.header import first_item, text

_LARGEST_NUMBER, _SMALLEST_WIDTH = 1e12, 1e-9
_UNEQUAL = 0.01  # below one in a hundred nobody sees that pixels are no squares
_MOST_UNEQUAL = 8


def number(header: Any, keyword: str, item: int = 0) -> float | None:
    """A number of an element, or None where there is none that can be read."""
    try:
        value = header.get(keyword)
        value = value[item] if hasattr(value, "__getitem__") and not isinstance(value, str | bytes) else value
        parsed = float(str(value))
    except Exception:  # pydicom converts values when they are asked for, and may fail in many ways
        return None
    return parsed if math.isfinite(parsed) and abs(parsed) <= _LARGEST_NUMBER else None


def whole(header: Any, keyword: str, default: int | None = None) -> int:
    """A whole number of an element.

    Raises:
        InputError: if it is absent or none, and there is no default.
    """
    value = number(header, keyword)
    if value is None or value != int(value):
        if default is not None and value is None:
            return default
        raise InputError(f"{keyword} is absent or no number; export the film again")
    return int(value)


def stored(header: Any) -> Stored:
    """How values lie in their words.

    Raises:
        InputError: if the elements contradict each other, or a word has neither 8 nor 16 bits.
    """
    allocated = whole(header, "BitsAllocated")
    bits = whole(header, "BitsStored", allocated)
    high = whole(header, "HighBit", bits - 1)
    if allocated not in (8, 16):
        raise InputError(f"BitsAllocated (0028,0100) is {allocated}; films have 8 or 16")
    if not (1 <= bits <= allocated and bits - 1 <= high < allocated):
        raise InputError("BitsStored (0028,0101) and HighBit (0028,0102) contradict BitsAllocated (0028,0100)")
    return Stored(allocated, bits, high, whole(header, "PixelRepresentation", 0) == 1)


def rendering(header: Any, words: Stored) -> tuple[Rendering, list[str]]:
    """What decides a pixel's grey, and notes on what could not be used.

    Raises:
        InputError: if a look-up table or the rescaling is damaged.
    """
    modality = _modality(header, words)
    ends = modality(np.array(words.range))
    voi, notes = _voi(header, signed=bool(ends.min() < 0))
    shape = text(header, "PresentationLUTShape").upper()
    how = Rendering(
        stored=words,
        padding=_padding(header, words),
        modality=modality,
        voi=voi,
        # Both say the same; where both are given it is still one flip (PS3.3 C.8.11.3.1.2).
        inverted=text(header, "PhotometricInterpretation") == "MONOCHROME1" or shape == "INVERSE",
    )
    return how, notes


def aspect(header: Any) -> float:
    """Height of a pixel by its width (PS3.3 C.7.6.3.1.7), 1.0 where it is square or nothing says.

    Raises:
        InputError: if it is more than 8 to 1.
    """
    for keyword in ("PixelAspectRatio", "PixelSpacing", "ImagerPixelSpacing"):
        height, width = number(header, keyword, 0), number(header, keyword, 1)
        if height and width and height > 0 and width > 0:
            ratio = height / width
            if not 1 / _MOST_UNEQUAL <= ratio <= _MOST_UNEQUAL:
                raise InputError(f"{keyword} makes pixels {_MOST_UNEQUAL} times as long as wide or more; correct it")
            return ratio if abs(ratio - 1) > _UNEQUAL else 1.0
    return 1.0


def _modality(header: Any, words: Stored) -> Lut | Rescale:
    if (table := _lut(header, "ModalityLUTSequence", signed=words.signed)) is not None:
        return table
    slope, intercept = number(header, "RescaleSlope"), number(header, "RescaleIntercept")
    if slope == 0:
        raise InputError("RescaleSlope (0028,1053) is 0, which wipes the film out; export it again")
    return Rescale(1.0 if slope is None else slope, intercept or 0.0)


def _voi(header: Any, *, signed: bool) -> tuple[Lut | Window | None, list[str]]:
    if (table := _lut(header, "VOILUTSequence", signed=signed)) is not None:
        return table, []
    center, width = number(header, "WindowCenter"), number(header, "WindowWidth")
    if center is None or width is None:
        return None, []
    function = text(header, "VOILUTFunction").upper() or "LINEAR"
    if function == "SIGMOID" and width >= _SMALLEST_WIDTH:
        return Window(center, width, "SIGMOID"), []
    if function == "LINEAR_EXACT" and width >= _SMALLEST_WIDTH:
        return Window(center, width, "LINEAR_EXACT"), []
    if function not in ("SIGMOID", "LINEAR_EXACT") and width >= 1:
        return Window(center, width), []
    return None, [f"window of width {width:g} left unused"]


def _lut(header: Any, keyword: str, *, signed: bool) -> Lut | None:
    """A table of the first item of a sequence, None where there is no sequence."""
    item = first_item(header, keyword)
    if item is None:
        return None
    entries, first, bits = (number(item, "LUTDescriptor", at) for at in range(3))
    data = _entries(item, bits)
    if entries is None or first is None or bits is None or not 1 <= bits <= 16 or data is None:
        raise InputError(f"{keyword}: its table is damaged; export the film again")
    length = int(entries) % 65536 or 65536  # 16 bits cannot say 65,536, so that 0 does (C.11.1.1.1)
    if len(data) < length:
        raise InputError(f"{keyword}: its table has {len(data)} entries instead of {length}; export the film again")
    if signed and first >= 32768:
        first -= 65536
    data = data[:length]
    needed = int(data.max()).bit_length()  # some say 8 bits and mean 16
    return Lut(int(first), max(int(bits), needed), data.astype(np.float64))


def _entries(item: Any, bits: float | None) -> Any:
    try:
        element = item["LUTData"]
        value = element.value
        if isinstance(value, bytes):
            packed = bits == 8 and len(value) <= (number(item, "LUTDescriptor") or 65536) + 1
            little = item.original_encoding[1] is not False
            data = np.frombuffer(value, np.uint8 if packed else "<u2" if little else ">u2")
        else:
            data = np.atleast_1d(np.asarray(value, np.int64)) % 65536
    except Exception:  # as in number
        return None
    return data if len(data) else None


def _padding(header: Any, words: Stored) -> tuple[int, int] | None:
    value, limit = number(header, "PixelPaddingValue"), number(header, "PixelPaddingRangeLimit")
    if value is None:
        return None
    first, last = (_as_stored(int(value if end is None else end), words) for end in (value, limit))
    return min(first, last), max(first, last)


def _as_stored(value: int, words: Stored) -> int:
    """A value in the range of the stored ones; its element's own sign is often wrong."""
    value %= 1 << words.stored
    return value - (1 << words.stored) if words.signed and value >= 1 << (words.stored - 1) else value
