"""From stored values to 8-bit grey, as DICOM PS3.3 C.11 has it. Pure numpy: values in, values out.

A stored value has at most 16 bits, so that every step is computed once for each of the 65,536 possible values instead
of each pixel, and a film is one look-up. What a pixel becomes depends on its value alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Levels: TypeAlias = NDArray[np.float64]
Words: TypeAlias = NDArray[np.uint8] | NDArray[np.uint16]
Function = Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"]

GAMMA = 1.2  # of the films the model was tuned on
_PERCENTILES = (1.0, 99.0)
_BLOCK = 1 << 22  # pixels counted at a time: numpy widens them to 8 bytes each


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
    grey, notes = _voi(values, words, padded, how)
    if how.inverted:
        grey = 1 - grey
        notes.append("inverted once, since the least value is the brightest")
    if how.padding is not None:
        grey = np.where(padded, 0.0, grey)
        notes.append("padding shown black")
    return np.take(np.rint(grey * 255).astype(np.uint8), words), notes


def _voi(values: Levels, words: Words, padded: NDArray[np.bool_], how: Rendering) -> tuple[Levels, list[str]]:
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
