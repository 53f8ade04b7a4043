"""Convert stored pixel values to 8-bit grey as DICOM PS3.3 C.11 defines it, and read the parameters from the header.

A stored value has at most 16 bits. Every step is therefore computed once for each of the 65,536 possible values, and a
film is one table look-up: the grey of a pixel depends on its value alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pedcxr_client.errors import InputError
from pedcxr_client.films.header import first_item, text

Levels: TypeAlias = NDArray[np.float64]
PixelCells: TypeAlias = NDArray[np.uint8] | NDArray[np.uint16]
"""Pixel cells as they are stored (PS3.5 section 8.1.1): BitsAllocated bits each, unsigned."""
Function = Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"]

GAMMA = 1.2  # of the films of the fine-tuning
_PERCENTILES = (1.0, 99.0)
_BLOCK_SIZE = 1 << 22  # pixels counted per call of bincount, which converts them to 8 bytes each
_MAX_NUMBER, _MIN_WIDTH = 1e12, 1e-9
_ASPECT_TOLERANCE = 0.01  # a deviation below 1 % is not visible
_MAX_ASPECT = 8


class OnlyPadding(Exception):
    """Every pixel is padding."""


@dataclass(frozen=True, slots=True)
class PixelFormat:
    """The layout of a value in its pixel cell (PS3.3 C.7.6.3.1, PS3.5 section 8.1.1).

    A cell has 8 or 16 bits. Those outside the value (overlays, noise) are ignored. A signed value is in two's
    complement.
    """

    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool

    def values(self) -> Levels:
        """Return the value of each possible cell, shape (2 ** bits_allocated,)."""
        cells = np.arange(1 << self.bits_allocated) >> (self.high_bit + 1 - self.bits_stored)
        values = cells & ((1 << self.bits_stored) - 1)
        if self.signed:
            values = np.where(values >= 1 << (self.bits_stored - 1), values - (1 << self.bits_stored), values)
        return values.astype(np.float64)

    @property
    def range(self) -> tuple[float, float]:
        """The least and the greatest possible value."""
        least = -(1 << (self.bits_stored - 1)) if self.signed else 0
        return float(least), float(least + (1 << self.bits_stored) - 1)


@dataclass(frozen=True, slots=True)
class Lut:
    """A look-up table (PS3.3 C.11.1.1, C.11.2.1.1).

    ``data[0]`` applies to ``first`` and every value below, the last entry to every value above. The entries have 1 to
    16 bits, so their theoretical range is 0 to 2 ** bits - 1.
    """

    first: int
    bits: int
    data: Levels

    def __call__(self, values: Levels) -> Levels:
        at = np.clip(np.rint(values) - self.first, 0, len(self.data) - 1)
        return self.data[at.astype(np.intp)]

    @property
    def range(self) -> tuple[float, float]:
        """The least and the greatest possible entry."""
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
    """A VOI window (PS3.3 C.11.2.1.2, C.11.2.1.3). ``width`` is at least 1 for LINEAR, else above 0."""

    center: float
    width: float
    function: Function = "LINEAR"

    def __call__(self, values: Levels) -> Levels:
        """Return the grey of each value, 0 to 1."""
        if self.function == "SIGMOID":
            return 1 / (1 + np.exp(np.clip(-4 * (values - self.center) / self.width, -700, 700)))
        if self.function == "LINEAR_EXACT":
            return np.clip((values - self.center) / self.width + 0.5, 0, 1)
        if self.width == 1:
            return np.where(values > self.center - 0.5, 1.0, 0.0)
        return np.clip((values - (self.center - 0.5)) / (self.width - 1) + 0.5, 0, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class DisplayParameters:
    """The parameters that determine the grey of a pixel.

    Attributes:
        padding: least and greatest stored value that are padding, or None.
        voi: converts modality values to grey; None to stretch percentiles 1-99.
        inverted: whether the least value is the brightest (MONOCHROME1 or PresentationLUTShape INVERSE).
    """

    pixel_format: PixelFormat
    padding: tuple[int, int] | None = None
    modality: Lut | Rescale = Rescale()
    voi: Lut | Window | None = None
    inverted: bool = False


def number(header: Any, keyword: str, item: int = 0) -> float | None:
    """Return a number of an element, or None if it cannot be read."""
    try:
        value = header.get(keyword)
        value = value[item] if hasattr(value, "__getitem__") and not isinstance(value, str | bytes) else value
        parsed = float(str(value))
    except Exception:  # pydicom converts a value on access, which raises many exception types
        return None
    return parsed if math.isfinite(parsed) and abs(parsed) <= _MAX_NUMBER else None


def integer(header: Any, keyword: str, default: int | None = None) -> int:
    """Return an integer of an element, or the default if the element cannot be read."""
    value = number(header, keyword)
    if value is None or value != int(value):
        if default is not None and value is None:
            return default
        raise InputError(f"{keyword} is absent or not an integer; export the film again")
    return int(value)


def pixel_format(header: Any) -> PixelFormat:
    """Read the layout of the pixel cells."""
    allocated = integer(header, "BitsAllocated")
    stored = integer(header, "BitsStored", allocated)
    high = integer(header, "HighBit", stored - 1)
    if allocated not in (8, 16):
        raise InputError(f"BitsAllocated (0028,0100) is {allocated}; it must be 8 or 16")
    if not (1 <= stored <= allocated and stored - 1 <= high < allocated):
        raise InputError("BitsStored (0028,0101) and HighBit (0028,0102) contradict BitsAllocated (0028,0100)")
    return PixelFormat(allocated, stored, high, integer(header, "PixelRepresentation", 0) == 1)


def display_parameters(header: Any, layout: PixelFormat) -> tuple[DisplayParameters, list[str]]:
    """Read the display parameters, with notes on elements that could not be used."""
    modality = _modality_transform(header, layout)
    ends = modality(np.array(layout.range))
    voi, notes = _voi_transform(header, signed=bool(ends.min() < 0))
    shape = text(header, "PresentationLUTShape").upper()
    parameters = DisplayParameters(
        pixel_format=layout,
        padding=_padding(header, layout),
        modality=modality,
        voi=voi,
        # Both elements state the same inversion, so it is applied once (PS3.3 C.8.11.3.1.2).
        inverted=text(header, "PhotometricInterpretation") == "MONOCHROME1" or shape == "INVERSE",
    )
    return parameters, notes


def pixel_aspect(header: Any) -> float:
    """Return the height of a pixel divided by its width (PS3.3 C.7.6.3.1.7), or 1.0 if it is square or not stated."""
    for keyword in ("PixelAspectRatio", "PixelSpacing", "ImagerPixelSpacing"):
        height, width = number(header, keyword, 0), number(header, keyword, 1)
        if height and width and height > 0 and width > 0:
            ratio = height / width
            if not 1 / _MAX_ASPECT <= ratio <= _MAX_ASPECT:
                raise InputError(f"{keyword} makes pixels more than {_MAX_ASPECT} times as long as wide; correct it")
            return ratio if abs(ratio - 1) > _ASPECT_TOLERANCE else 1.0
    return 1.0


def render(cells: PixelCells, parameters: DisplayParameters) -> tuple[NDArray[np.uint8], list[str]]:
    """Render a film as a viewer does: 8-bit grey of the same shape, where 0 is black, and notes on each step."""
    stored = parameters.pixel_format.values()
    values = parameters.modality(stored)
    padded = np.zeros(len(stored), bool)
    if parameters.padding is not None:
        padded = (stored >= parameters.padding[0]) & (stored <= parameters.padding[1])
    grey, notes = _apply_voi(values, cells, padded, parameters)
    if parameters.inverted:
        grey = 1 - grey
        notes.append("inverted once, since the least value is the brightest")
    if parameters.padding is not None:
        grey = np.where(padded, 0.0, grey)
        notes.append("padding rendered black")
    return np.take(np.rint(grey * 255).astype(np.uint8), cells), notes


def render_as_trained(cells: PixelCells, layout: PixelFormat) -> tuple[NDArray[np.uint8], list[str]]:
    """Imitate the films of the fine-tuning: percentiles 1-99 of all stored values, gamma 1.2, never inverted."""
    values = layout.values()
    low, high = percentiles(values, count(cells, len(values)))
    grey = _stretch(values, low, high) ** (1 / GAMMA)
    notes = [f"ped-train: percentiles 1-99 ({low:g} to {high:g}) stretched, gamma {GAMMA}, not inverted"]
    return np.take(np.rint(grey * 255).astype(np.uint8), cells), notes


def count(cells: PixelCells, size: int) -> NDArray[np.int64]:
    """Return the number of occurrences of each cell, shape (size,)."""
    flat, counts = cells.reshape(-1), np.zeros(size, np.int64)
    for at in range(0, len(flat), _BLOCK_SIZE):
        counts += np.bincount(flat[at : at + _BLOCK_SIZE], minlength=size)
    return counts


def percentiles(values: Levels, counts: NDArray[np.int64]) -> tuple[float, float]:
    """Return percentiles 1 and 99 of values with their counts, interpolated as ``numpy.percentile`` does."""
    order = np.argsort(values, kind="stable")
    ends = np.cumsum(counts[order])

    def at(percent: float) -> float:
        position = percent / 100 * (ends[-1] - 1)
        below, above = (
            values[order[np.searchsorted(ends, rank, side="right")]] for rank in (int(position), -int(-position // 1))
        )
        return float(below + (above - below) * (position - int(position)))

    return at(_PERCENTILES[0]), at(_PERCENTILES[1])


def _modality_transform(header: Any, layout: PixelFormat) -> Lut | Rescale:
    if (table := _first_lut(header, "ModalityLUTSequence", signed=layout.signed)) is not None:
        return table
    slope, intercept = number(header, "RescaleSlope"), number(header, "RescaleIntercept")
    if slope == 0:
        raise InputError("RescaleSlope (0028,1053) is 0, which makes all pixels equal; export the film again")
    return Rescale(1.0 if slope is None else slope, intercept or 0.0)


def _voi_transform(header: Any, *, signed: bool) -> tuple[Lut | Window | None, list[str]]:
    if (table := _first_lut(header, "VOILUTSequence", signed=signed)) is not None:
        return table, []
    center, width = number(header, "WindowCenter"), number(header, "WindowWidth")
    if center is None or width is None:
        return None, []
    functions: dict[str, Function] = {"SIGMOID": "SIGMOID", "LINEAR_EXACT": "LINEAR_EXACT"}
    function = functions.get(text(header, "VOILUTFunction").upper(), "LINEAR")
    if width < (1 if function == "LINEAR" else _MIN_WIDTH):
        return None, [f"window of width {width:g} ignored"]
    return Window(center, width, function), []


def _first_lut(header: Any, keyword: str, *, signed: bool) -> Lut | None:
    item = first_item(header, keyword)
    if item is None:
        return None
    entries, first, bits = (number(item, "LUTDescriptor", at) for at in range(3))
    data = _lut_entries(item, bits)
    if entries is None or first is None or bits is None or not 1 <= bits <= 16 or data is None:
        raise InputError(f"{keyword}: the table is damaged; export the film again")
    length = int(entries) % 65536 or 65536  # 16 bits cannot hold 65,536, which is stored as 0 (C.11.1.1.1)
    if len(data) < length:
        raise InputError(f"{keyword}: the table has {len(data)} entries instead of {length}; export the film again")
    if signed and first >= 32768:
        first -= 65536
    data = data[:length]
    needed = int(data.max()).bit_length()  # some devices declare 8 bits and store 16
    return Lut(int(first), max(int(bits), needed), data.astype(np.float64))


def _lut_entries(item: Any, bits: float | None) -> Any:
    try:
        element = item["LUTData"]
        value = element.value
        if isinstance(value, bytes):
            packed = bits == 8 and len(value) <= (number(item, "LUTDescriptor") or 65536) + 1
            little = item.original_encoding[1] is not False
            data = np.frombuffer(value, np.uint8 if packed else "<u2" if little else ">u2")
        else:
            data = np.atleast_1d(np.asarray(value, np.int64)) % 65536
    except Exception:  # pydicom converts a value on access, which raises many exception types
        return None
    return data if len(data) else None


def _padding(header: Any, layout: PixelFormat) -> tuple[int, int] | None:
    value, limit = number(header, "PixelPaddingValue"), number(header, "PixelPaddingRangeLimit")
    if value is None:
        return None
    first, last = (_to_stored_range(int(value if end is None else end), layout) for end in (value, limit))
    return min(first, last), max(first, last)


def _to_stored_range(value: int, layout: PixelFormat) -> int:
    # The sign of the padding elements is often wrong.
    value %= 1 << layout.bits_stored
    return value - (1 << layout.bits_stored) if layout.signed and value >= 1 << (layout.bits_stored - 1) else value


def _apply_voi(
    values: Levels, cells: PixelCells, padded: NDArray[np.bool_], parameters: DisplayParameters
) -> tuple[Levels, list[str]]:
    if padded.any() and padded[cells].all():
        raise OnlyPadding
    if isinstance(parameters.voi, Window):
        window = parameters.voi
        return window(values), [f"window {window.center:g}/{window.width:g} ({window.function})"]
    if isinstance(parameters.voi, Lut):
        low, high = parameters.voi.range
        return (parameters.voi(values) - low) / (high - low), ["VOI LUT"]
    counts = np.where(padded, 0, count(cells, len(values)))
    low, high = percentiles(values, counts)
    return _stretch(values, low, high), [f"no window: percentiles 1-99 ({low:g} to {high:g}) stretched"]


def _stretch(values: Levels, low: float, high: float) -> Levels:
    return np.clip((values - low) / (high - low), 0, 1) if high > low else np.where(values > low, 1.0, 0.0)
