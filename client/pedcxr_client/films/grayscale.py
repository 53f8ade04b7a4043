"""Convert stored pixel values to 8-bit grey as DICOM PS3.3 C.11 defines it, and read the parameters from the header.

A stored value has at most 16 bits. Every step is therefore computed once for each of the 65,536 possible values, and a
film is one table look-up: the grey of a pixel depends on its value alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pedcxr_client.errors import InputError
from pedcxr_client.films import lut
from pedcxr_client.films.geometry import MIN_LEVELS, MIN_SPREAD
from pedcxr_client.films.header.elements import first_item, text
from pedcxr_client.films.lut import Levels, Lut

Mask: TypeAlias = NDArray[np.bool_]
Counts: TypeAlias = NDArray[np.int64]
PixelCells: TypeAlias = NDArray[np.uint8] | NDArray[np.uint16]
"""Pixel cells as they are stored (PS3.5 section 8.1.1): BitsAllocated bits each, unsigned."""
Function = Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"]

GAMMA = 1.2  # of the films of the fine-tuning
_PERCENTILES = (1.0, 99.0)
_BLOCK_SIZE = 1 << 22  # pixels counted per call of bincount, which converts them to 8 bytes each
_MAX_NUMBER, _MIN_WIDTH = 1e12, 1e-9
_ASPECT_TOLERANCE = 0.01  # a deviation below 1 % is not visible
_MAX_ASPECT = 8
_MAX_WINDOWS = 16
_MAX_BORDERS = 4  # one inside another
SAMPLES_PER_SIDE = 256  # of the sample on which a window is judged
RARE = 1 / 4096  # a grey level of a smaller share of the pixels does not count
_SMOOTH = 0.5  # correlation of neighbouring pixels: about 0.99 in a film, 0 in the noise of an unexposed detector


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

    def __str__(self) -> str:
        return f"window {self.center:g}/{self.width:g} ({self.function})"


@dataclass(frozen=True, slots=True, kw_only=True)
class DisplayParameters:
    """The parameters that determine the grey of a pixel.

    Attributes:
        padding: least and greatest stored value that are padding, or None.
        voi: the transforms from modality values to grey that the header offers, in the order of preference. Percentiles
            1-99 are stretched if there is none.
        inverted: whether the least value is the brightest (MONOCHROME1 or PresentationLUTShape INVERSE).
    """

    pixel_format: PixelFormat
    padding: tuple[int, int] | None = None
    modality: Lut | Rescale = Rescale()
    voi: tuple[Lut | Window, ...] = ()
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
    modality, inputs = _modality_transform(header, layout)
    voi, notes = _voi_transforms(header, layout, inputs)
    padding, ignored = _padding(header, layout)
    shape = text(header, "PresentationLUTShape").upper()
    parameters = DisplayParameters(
        pixel_format=layout,
        padding=padding,
        modality=modality,
        voi=voi,
        # Both elements state the same inversion, so it is applied once (PS3.3 C.8.11.3.1.2).
        inverted=text(header, "PhotometricInterpretation") == "MONOCHROME1" or shape == "INVERSE",
    )
    return parameters, notes + ignored


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


def render(
    cells: PixelCells, parameters: DisplayParameters, hidden: Mask | None = None
) -> tuple[NDArray[np.uint8], list[str]]:
    """Render a film as a viewer does.

    Args:
        cells: shape (rows, columns).
        parameters: as `display_parameters` reads them.
        hidden: the pixels that a display shutter covers, of the same shape. They become black.

    Returns:
        8-bit grey of the same shape, where 0 is black, and notes on each step.
    """
    grey, padded, notes = _grey_of_cells(cells, parameters, hidden)
    if parameters.inverted:
        grey = 1 - grey
        notes.append("inverted once, since the least value is the brightest")
    if parameters.padding is not None:
        grey = np.where(padded, 0.0, grey)
        notes.append("padding rendered black")
    if isinstance(parameters.modality, Lut):
        notes.insert(0, "modality LUT")
    notes[:0] = _place_notes(parameters.pixel_format)
    pixels = np.take(np.rint(grey * 255).astype(np.uint8), cells)
    if hidden is not None:
        pixels[hidden] = 0
    return pixels, notes


def render_as_trained(cells: PixelCells, layout: PixelFormat) -> tuple[NDArray[np.uint8], list[str]]:
    """Imitate the films of the fine-tuning: percentiles 1-99 of all stored values, gamma 1.2, never inverted."""
    values = layout.values()
    low, high = percentiles(values, count(cells, len(values)))
    grey = _stretch(values, low, high) ** (1 / GAMMA)
    stretched = f"ped-train: percentiles 1-99 ({low:g} to {high:g}) stretched, gamma {GAMMA}, not inverted"
    notes = [*_place_notes(layout), stretched]
    return np.take(np.rint(grey * 255).astype(np.uint8), cells), notes


def count(cells: PixelCells, size: int) -> Counts:
    """Return the number of occurrences of each cell, shape (size,)."""
    flat, counts = cells.reshape(-1), np.zeros(size, np.int64)
    for at in range(0, len(flat), _BLOCK_SIZE):
        counts += np.bincount(flat[at : at + _BLOCK_SIZE], minlength=size)
    return counts


def percentiles(values: Levels, counts: Counts) -> tuple[float, float]:
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


def without_borders(cells: PixelCells) -> PixelCells:
    """Return the cells inside borders of one constant value, such as letterboxes, or all cells if none remains.

    A border of less than 1 % of the pixels cannot set a percentile and is kept.
    """
    inner = cells
    for _ in range(_MAX_BORDERS):
        outer = inner
        for corner in ((0, 0), (-1, -1)):
            inner = _trimmed(inner, inner[corner]) if inner.size else inner
        if not inner.size:
            return cells
        if outer.size - inner.size < cells.size // 100:
            return outer
    return inner


def _trimmed(cells: PixelCells, value: np.integer[Any]) -> PixelCells:
    """Return the cells without outer rows and columns that hold one value only."""
    for _ in range(2):  # rows, then columns
        first, last = 0, len(cells)
        while first < last and (cells[first] == value).all():
            first += 1
        while first < last and (cells[last - 1] == value).all():
            last -= 1
        cells = cells[first:last].T
    return cells


def _grey_of_cells(
    cells: PixelCells, parameters: DisplayParameters, hidden: Mask | None
) -> tuple[Levels, Mask, list[str]]:
    """Return the grey (0 to 1) of each possible cell before inversion, whether the cell is padding, and notes."""
    stored = parameters.pixel_format.values()
    values = parameters.modality(stored)
    padded = np.zeros(len(stored), bool)
    if parameters.padding is not None:
        padded = (stored >= parameters.padding[0]) & (stored <= parameters.padding[1])
    visible = cells if hidden is None else cells[~hidden]
    if padded.any() and padded[visible].all():
        raise OnlyPadding
    sample = _sample_counts(cells, padded, hidden)
    unusable: list[str] = []
    for voi in parameters.voi:
        grey = voi(values)
        if _is_usable(grey, sample):
            return grey, padded, [*unusable, str(voi)]
        unusable.append(f"{voi} not applied, since it leaves almost no grey levels")
    counts = np.where(padded, 0, count(without_borders(cells) if hidden is None else visible, len(values)))
    low, high = percentiles(values, counts) if counts.any() else (0.0, 0.0)
    grey = _stretch(values, low, high)
    usable = _is_usable(grey, sample)
    if (unusable or not usable) and (moved := _with_values_at_bit_0(cells, parameters, hidden)) is not None:
        return moved
    stretched = f"percentiles 1-99 ({low:g} to {high:g}) stretched"
    if not parameters.voi:
        return grey, padded, [f"no window: {stretched}"]
    if usable and _is_smooth(np.clip(values, low, high), cells, padded, hidden):
        return grey, padded, [*unusable, stretched]
    # The pixels hold no image that another transform shows, so the quality check blocks and names the first transform.
    return parameters.voi[0](values), padded, [str(parameters.voi[0])]


def _modality_transform(header: Any, layout: PixelFormat) -> tuple[Lut | Rescale, tuple[float, float]]:
    """Return the transform, and the least and the greatest value that it can result in."""
    if (item := first_item(header, "ModalityLUTSequence")) is not None:
        table = lut.read(item, "ModalityLUTSequence", inputs=layout.range, bits_stored=layout.bits_stored)
        return table, (float(table.data.min()), float(table.data.max()))
    slope, intercept = number(header, "RescaleSlope"), number(header, "RescaleIntercept")
    if slope == 0:
        raise InputError("RescaleSlope (0028,1053) is 0, which makes all pixels equal; export the film again")
    rescale = Rescale(1.0 if slope is None else slope, intercept or 0.0)
    ends = rescale(np.array(layout.range))
    return rescale, (float(ends.min()), float(ends.max()))


def _voi_transforms(
    header: Any, layout: PixelFormat, inputs: tuple[float, float]
) -> tuple[tuple[Lut | Window, ...], list[str]]:
    """Return the VOI LUT and the windows, which are alternatives (PS3.3 C.11.2.1), and notes on invalid ones."""
    transforms: list[Lut | Window] = []
    notes = []
    if (item := first_item(header, "VOILUTSequence")) is not None:
        table = lut.read(item, "VOILUTSequence", inputs=inputs, bits_stored=layout.bits_stored)
        transforms.append(table.grey)
    functions: dict[str, Function] = {"SIGMOID": "SIGMOID", "LINEAR_EXACT": "LINEAR_EXACT"}
    function = functions.get(text(header, "VOILUTFunction").upper(), "LINEAR")
    for at in range(_MAX_WINDOWS):
        center, width = number(header, "WindowCenter", at), number(header, "WindowWidth", at)
        if center is None or width is None:
            break
        if width < (1 if function == "LINEAR" else _MIN_WIDTH):
            notes.append(f"window of width {width:g} ignored")
        elif (window := Window(center, width, function)) not in transforms:
            transforms.append(window)
    return tuple(transforms), [*dict.fromkeys(notes)]


def _padding(header: Any, layout: PixelFormat) -> tuple[tuple[int, int] | None, list[str]]:
    value, limit = number(header, "PixelPaddingValue"), number(header, "PixelPaddingRangeLimit")
    if value is None:
        return None, []
    first, last = _stored_value(value, layout), _stored_value(value if limit is None else limit, layout)
    if first is None:
        return None, [f"PixelPaddingValue {value:g} ignored, since no pixel can have it"]
    if last is None:
        return (first, first), [f"PixelPaddingRangeLimit {limit:g} ignored, since no pixel can have it"]
    return (min(first, last), max(first, last)), []


def _stored_value(value: float, layout: PixelFormat) -> int | None:
    """Return the stored value that a padding element means, or None if no pixel can have it.

    The sign of these elements of 16 bits is often wrong: 65531 is -5 in two's complement.
    """
    words = (value, value - (1 << 16) if layout.signed else value + (1 << 16))
    low, high = layout.range
    return next((int(word) for word in words if low <= word <= high and word == int(word)), None)


def _with_values_at_bit_0(
    cells: PixelCells, parameters: DisplayParameters, hidden: Mask | None
) -> tuple[Levels, Mask, list[str]] | None:
    """Render again with the values at bit 0, if HighBit states another place and the pixels contradict it.

    Some devices write HighBit 15 with 12 stored bits at bit 0; pydicom and Cornerstone ignore HighBit. The header is
    obeyed unless all of this holds: obeying it leaves no image, no bit above BitsStored is in use, the bits below the
    stated place hold every pattern, and the values at bit 0 form an image.
    """
    layout = parameters.pixel_format
    shift = layout.high_bit + 1 - layout.bits_stored
    if shift == 0 or int(cells.max()) >> layout.bits_stored:
        return None
    patterns = count(cells & np.array((1 << shift) - 1, cells.dtype), 1 << shift)
    if patterns.min() << (shift + 2) < cells.size:  # a pattern is 4 times rarer than in evenly distributed values
        return None
    moved = replace(parameters, pixel_format=replace(layout, high_bit=layout.bits_stored - 1))
    grey, padded, notes = _grey_of_cells(cells, moved, hidden)
    if not _is_usable(grey, _sample_counts(cells, padded, hidden)):
        return None
    return grey, padded, ["HighBit ignored, since the values start at bit 0", *notes]


def _place_notes(layout: PixelFormat) -> list[str]:
    return [] if layout.high_bit == layout.bits_stored - 1 else [f"HighBit is {layout.high_bit}"]


def _grid(cells: PixelCells) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    rows, columns = (np.unique(np.linspace(0, side - 1, SAMPLES_PER_SIDE).astype(np.intp)) for side in cells.shape)
    return rows[:, None], columns[None, :]


def _sample_counts(cells: PixelCells, padded: Mask, hidden: Mask | None) -> Counts:
    """Count the cells of a grid of pixels, without padding and hidden pixels."""
    grid = _grid(cells)
    sample = cells[grid] if hidden is None else cells[grid][~hidden[grid]]
    return np.where(padded, 0, count(sample, len(padded)))


def _is_usable(grey: Levels, counts: Counts) -> bool:
    """Return whether the grey of each cell leaves an image that the quality check accepts."""
    levels = np.bincount(np.rint(grey * 255).astype(np.intp), weights=counts, minlength=256)
    ends = np.cumsum(levels)
    if not ends[-1]:
        return False
    low, high = np.searchsorted(ends, (0.02 * ends[-1], 0.98 * ends[-1]), side="right")
    return bool(high - low >= MIN_SPREAD and np.count_nonzero(levels > RARE * ends[-1]) >= MIN_LEVELS)


def _is_smooth(values: Levels, cells: PixelCells, padded: Mask, hidden: Mask | None) -> bool:
    """Return whether neighbouring pixels have similar values, unlike the noise of a blank film."""
    if cells.shape[1] < 2:
        return False
    rows, columns = _grid(cells[:, :-1])
    here, beside = cells[rows, columns], cells[rows, columns + 1]
    visible = ~(padded[here] | padded[beside])
    if hidden is not None:
        visible &= ~(hidden[rows, columns] | hidden[rows, columns + 1])
    pairs = np.stack([values[here[visible]], values[beside[visible]]])
    return bool(visible.any() and pairs.std(axis=1).all() and np.corrcoef(pairs)[0, 1] > _SMOOTH)


def _stretch(values: Levels, low: float, high: float) -> Levels:
    return np.clip((values - low) / (high - low), 0, 1) if high > low else np.where(values > low, 1.0, 0.0)
