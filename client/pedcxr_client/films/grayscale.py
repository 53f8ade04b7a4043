"""From a DICOM header to what display.py needs. Reads elements one by one and trusts none of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pedcxr_client.errors import InputError
from pedcxr_client.films.header import first_item, text

Levels: TypeAlias = NDArray[np.float64]
Words: TypeAlias = NDArray[np.uint8] | NDArray[np.uint16]
Function = Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"]

GAMMA = 1.2  # of the films the model was tuned on
_PERCENTILES = (1.0, 99.0)
_BLOCK = 1 << 22  # pixels counted at a time: numpy widens them to 8 bytes each
_LARGEST_NUMBER, _SMALLEST_WIDTH = 1e12, 1e-9
_UNEQUAL = 0.01  # below one in a hundred nobody sees that pixels are no squares
_MOST_UNEQUAL = 8


class AllPadding(Exception):
    """There is no picture: every pixel is padding."""


@dataclass(frozen=True, slots=True)
class Stored:
    """How a pixel's value lies in its word (PS3.3 C.7.6.3.1, PS3.5 section 8.1.1).

    Attributes:
        allocated: bits of the word, 8 or 16.
        stored: bits of the value, 1 to ``allocated``; what lies above them (overlays, noise) is not the film's.
        high: position of the value's highest bit.
        signed: two's complement.
    """

    allocated: int
    stored: int
    high: int
    signed: bool

    def values(self) -> Levels:
        """The value of each possible word, shape (2 ** allocated,)."""
        words = np.arange(1 << self.allocated) >> (self.high + 1 - self.stored)
        values = words & ((1 << self.stored) - 1)
        if self.signed:
            values = np.where(values >= 1 << (self.stored - 1), values - (1 << self.stored), values)
        return values.astype(np.float64)

    @property
    def range(self) -> tuple[float, float]:
        """The least and the greatest value that fit."""
        least = -(1 << (self.stored - 1)) if self.signed else 0
        return float(least), float(least + (1 << self.stored) - 1)


@dataclass(frozen=True, slots=True)
class Lut:
    """A look-up table (PS3.3 C.11.1.1, C.11.2.1.1): ``data[0]`` for ``first`` and below, the last for what lies above.

    Attributes:
        first: the value that the first entry belongs to.
        bits: of an entry, 8 to 16: its theoretical range is 0 to 2 ** bits - 1.
    """

    first: int
    bits: int
    data: Levels

    def __call__(self, values: Levels) -> Levels:
        at = np.clip(np.rint(values) - self.first, 0, len(self.data) - 1)
        return self.data[at.astype(np.intp)]

    @property
    def range(self) -> tuple[float, float]:
        """The least and the greatest entry there may be."""
        return 0.0, float((1 << self.bits) - 1)


@dataclass(frozen=True, slots=True)
class Rescale:
    """``slope * value + intercept`` (PS3.3 C.11.1.1.2)."""

    slope: float = 1.0
    intercept: float = 0.0

    def __call__(self, values: Levels) -> Levels:
        return values * self.slope + self.intercept


@dataclass(frozen=True, slots=True)
class Window:
    """The values that are told apart (PS3.3 C.11.2.1.2, C.11.2.1.3); ``width`` >= 1 for LINEAR, else above 0."""

    center: float
    width: float
    function: Function = "LINEAR"

    def __call__(self, values: Levels) -> Levels:
        """The grey of each value, 0 to 1."""
        if self.function == "SIGMOID":
            return 1 / (1 + np.exp(np.clip(-4 * (values - self.center) / self.width, -700, 700)))
        if self.function == "LINEAR_EXACT":
            return np.clip((values - self.center) / self.width + 0.5, 0, 1)
        if self.width == 1:
            return np.where(values > self.center - 0.5, 1.0, 0.0)
        return np.clip((values - (self.center - 0.5)) / (self.width - 1) + 0.5, 0, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendering:
    """All that decides a pixel's grey.

    Attributes:
        padding: least and greatest stored value that is no part of the film, or None.
        modality: from stored values to the manufacturer's.
        voi: which of them are shown, and how; None to stretch percentiles 1-99.
        inverted: MONOCHROME1 or PresentationLUTShape INVERSE: the least value is the brightest.
    """

    stored: Stored
    padding: tuple[int, int] | None = None
    modality: Lut | Rescale = Rescale()
    voi: Lut | Window | None = None
    inverted: bool = False


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
    modality = _modality_transform(header, words)
    ends = modality(np.array(words.range))
    voi, notes = _voi_transform(header, signed=bool(ends.min() < 0))
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


def _modality_transform(header: Any, words: Stored) -> Lut | Rescale:
    if (table := _lut(header, "ModalityLUTSequence", signed=words.signed)) is not None:
        return table
    slope, intercept = number(header, "RescaleSlope"), number(header, "RescaleIntercept")
    if slope == 0:
        raise InputError("RescaleSlope (0028,1053) is 0, which wipes the film out; export it again")
    return Rescale(1.0 if slope is None else slope, intercept or 0.0)


def _voi_transform(header: Any, *, signed: bool) -> tuple[Lut | Window | None, list[str]]:
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


def render(words: Words, how: Rendering) -> tuple[NDArray[np.uint8], list[str]]:
    """Show a film as a viewer does.

    Args:
        words: of shape (rows, columns), as many bits as ``how.stored.allocated``.
        how: what the header says.

    Returns:
        8-bit grey of the same shape, 0 black, and notes on what was done.

    Raises:
        AllPadding: if every pixel is padding.
    """
    stored = how.stored.values()
    values = how.modality(stored)
    padded = np.zeros(len(stored), bool)
    if how.padding is not None:
        padded = (stored >= how.padding[0]) & (stored <= how.padding[1])
    grey, notes = _shown_levels(values, words, padded, how)
    if how.inverted:
        grey = 1 - grey
        notes.append("inverted once, since the least value is the brightest")
    if how.padding is not None:
        grey = np.where(padded, 0.0, grey)
        notes.append("padding shown black")
    return np.take(np.rint(grey * 255).astype(np.uint8), words), notes


def _shown_levels(values: Levels, words: Words, padded: NDArray[np.bool_], how: Rendering) -> tuple[Levels, list[str]]:
    if padded.any() and padded[words].all():
        raise AllPadding
    if isinstance(how.voi, Window):
        window = how.voi
        return window(values), [f"window {window.center:g}/{window.width:g} ({window.function})"]
    if isinstance(how.voi, Lut):
        low, high = how.voi.range
        return (how.voi(values) - low) / (high - low), ["VOI LUT"]
    counts = np.where(padded, 0, count(words, len(values)))
    low, high = percentiles(values, counts)
    return _stretched(values, low, high), [f"no window: percentiles 1-99 ({low:g} to {high:g}) stretched"]


def render_as_trained(words: Words, stored: Stored) -> tuple[NDArray[np.uint8], list[str]]:
    """Imitate the films the model was tuned on: percentiles 1-99 of all stored values, gamma 1.2, never inverted."""
    values = stored.values()
    low, high = percentiles(values, count(words, len(values)))
    grey = _stretched(values, low, high) ** (1 / GAMMA)
    notes = [f"ped-train: percentiles 1-99 ({low:g} to {high:g}) stretched, gamma {GAMMA}, not inverted"]
    return np.take(np.rint(grey * 255).astype(np.uint8), words), notes


def count(words: Words, size: int) -> NDArray[np.int64]:
    """How often each word occurs, shape (size,)."""
    flat, counts = words.reshape(-1), np.zeros(size, np.int64)
    for at in range(0, len(flat), _BLOCK):
        counts += np.bincount(flat[at : at + _BLOCK], minlength=size)
    return counts


def percentiles(values: Levels, counts: NDArray[np.int64]) -> tuple[float, float]:
    """Percentiles 1 and 99 of ``values`` that occur ``counts`` times, interpolated as ``numpy.percentile`` does."""
    order = np.argsort(values, kind="stable")
    ends = np.cumsum(counts[order])

    def at(share: float) -> float:
        place = share / 100 * (ends[-1] - 1)
        below, above = (
            values[order[np.searchsorted(ends, rank, side="right")]] for rank in (int(place), -int(-place // 1))
        )
        return float(below + (above - below) * (place - int(place)))

    return at(_PERCENTILES[0]), at(_PERCENTILES[1])


def _stretched(values: Levels, low: float, high: float) -> Levels:
    return np.clip((values - low) / (high - low), 0, 1) if high > low else np.where(values > low, 1.0, 0.0)
