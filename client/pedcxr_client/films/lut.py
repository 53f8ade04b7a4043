"""Read modality and VOI look-up tables, whose descriptors are often wrong (PS3.3 C.11.1.1, C.11.2.1.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pedcxr_client.errors import InputError

Levels: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Lut:
    """A look-up table.

    ``data[0]`` applies to ``first`` and every value below, the last entry to every value above. The entries range from
    0 to 2 ** bits - 1. ``declared`` is the number of bits that the descriptor states.
    """

    first: int
    bits: int
    data: Levels
    declared: int

    def __call__(self, values: Levels) -> Levels:
        """Return the entry of each value."""
        at = np.clip(np.rint(values) - self.first, 0, len(self.data) - 1)
        return self.data[at.astype(np.intp)]

    def __str__(self) -> str:
        if self.bits == self.declared:
            return "VOI LUT"
        return f"VOI LUT (declares {self.declared} bits per entry, uses {self.bits})"

    @property
    def grey(self) -> Lut:
        """The same table with entries from 0 to 1."""
        return Lut(self.first, self.bits, self.data / ((1 << self.bits) - 1), self.declared)


def read(item: Any, keyword: str, *, inputs: tuple[float, float], bits_stored: int) -> Lut:
    """Read an item of a modality or VOI LUT sequence.

    Args:
        item: the ``pydicom.Dataset`` of the item.
        keyword: the sequence, for messages.
        inputs: the least and the greatest possible input value.
        bits_stored: BitsStored of the film.

    Raises:
        InputError: if the table is damaged.
    """
    try:
        entries, first, bits = (int(value) for value in item["LUTDescriptor"].value[:3])
        length = entries % 65536 or 65536  # 16 bits cannot hold 65,536, which is stored as 0 (C.11.1.1.1)
        data = _entries(item, length, bits)
    except Exception:  # pydicom converts a value on access, which raises many exception types
        raise InputError(f"{keyword}: the table is damaged; export the film again") from None
    if not 1 <= bits <= 16 or not len(data):
        raise InputError(f"{keyword}: the table is damaged; export the film again")
    if len(data) < length:
        raise InputError(f"{keyword}: the table has {len(data)} entries instead of {length}; export the film again")
    data = data[:length]
    used_bits = _used_bits(bits, int(data.max()).bit_length(), bits_stored)
    return Lut(_first_input(first, length, inputs), used_bits, data.astype(np.float64), bits)


def _used_bits(declared: int, needed: int, bits_stored: int) -> int:
    """Return the bits that define the range of the entries; ``needed`` is the bit length of the greatest entry.

    Agfa devices declare 16 bits and write entries of BitsStored bits (dcm4che issue 413). Cornerstone and Horos
    therefore use the greatest entry alone (dicom-rs pull request 825), which would brighten a table that is dark on
    purpose. Here the declared range is kept if it can be right: a table that uses less than a quarter of its range
    leaves fewer than 64 of 255 grey levels, so its range is wrong.
    """
    if needed > declared:
        return needed
    likely = bits_stored if needed <= bits_stored < declared else declared
    return likely if needed > likely - 2 else max(needed, 1)


def _first_input(first: int, length: int, inputs: tuple[float, float]) -> int:
    # Devices write the first input with the wrong sign, in both directions (dcm4che issue 1521): the table must cover
    # inputs that exist.
    def overlap(start: int) -> float:
        return min(inputs[1], start + length - 1) - max(inputs[0], start)

    return max((first, first - 65536 if first > 0 else first + 65536), key=overlap)


def _entries(item: Any, length: int, bits: int) -> NDArray[Any]:
    value = item["LUTData"].value
    if not isinstance(value, bytes):
        return np.atleast_1d(np.asarray(value, np.int64)) % 65536
    little = item.original_encoding[1] is not False
    # Entries of 8 bits may be packed in pairs, the first one in the low byte of a word (PS3.5 section 8.1.1).
    packed = len(value) <= length + 1 and (bits <= 8 or len(value) < 2 * length)
    words = np.frombuffer(value[: len(value) // 2 * 2], "<u2" if little else ">u2")
    if not packed:
        return words
    return np.frombuffer(value, np.uint8) if len(value) % 2 else words.astype("<u2").view(np.uint8)
