"""Safetensors headers, read without torch: which tensors a file holds and how long it must be.

Format (huggingface/safetensors, README): 8 bytes little-endian length N, N bytes of JSON
``{name: {dtype, shape, data_offsets: [begin, end]}}``, then the data, without holes.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path

__all__ = ["HeaderError", "Shard", "Tensor", "read"]

HEADER_LIMIT = 100_000_000  # as safetensors itself (MAX_HEADER_SIZE)
# Bits of one element.
DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64, "F4": 4,
}  # fmt: skip


class HeaderError(ValueError):
    """The file is not a safetensors file, or not a whole one."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor: element type as the file names it, shape, bytes."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Shard:
    """One safetensors file.

    Attributes:
        name: File name without folder.
        nbytes: Length of the file.
        expected: Length that the header calls for; equal to `nbytes` in a whole file.
        tensors: By name.
    """

    name: str
    nbytes: int
    expected: int
    tensors: dict[str, Tensor]


def read(path: Path) -> Shard:
    """Read one header, without the data.

    Raises:
        HeaderError: In words that fit after the file's name.
        OSError: The file is missing or unreadable.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        if len(head) < 8:
            raise HeaderError(f"is {size} bytes long, so it has no safetensors header")
        (length,) = struct.unpack("<Q", head)
        if length > HEADER_LIMIT:
            raise HeaderError(f"claims a header of {length} bytes: it is not a safetensors file (or a git-lfs pointer)")
        raw = file.read(length)
    if len(raw) < length:
        raise HeaderError(f"was cut short inside its header ({size} of at least {8 + length} bytes)")
    try:
        header = json.loads(raw)
    except ValueError as error:
        raise HeaderError("has a header that is not JSON") from error
    if not isinstance(header, dict):
        raise HeaderError("has a header that is not a JSON object")
    header.pop("__metadata__", None)
    spans: list[tuple[int, int]] = []
    tensors = {str(name): _tensor(name, entry, spans) for name, entry in header.items()}
    end = 0
    for begin, stop in sorted(spans):
        if begin != end:
            raise HeaderError(f"has a header whose tensors overlap or leave holes at byte {end}")
        end = stop
    return Shard(path.name, size, 8 + length + end, tensors)


def _tensor(name: str, entry: object, spans: list[tuple[int, int]]) -> Tensor:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)]}:
            pass
        case _:
            raise HeaderError(f"has a header whose entry {name!r} lacks dtype, shape or data_offsets")
    if dtype not in DTYPE_BITS or not all(type(n) is int and n >= 0 for n in shape) or not 0 <= begin <= end:
        raise HeaderError(f"has a header whose entry {name!r} has an impossible dtype, shape or offset")
    if end - begin != math.prod(shape) * DTYPE_BITS[dtype] // 8:
        raise HeaderError(f"has a header whose entry {name!r} is not as long as its shape says")
    spans.append((begin, end))
    return Tensor(dtype, tuple(shape), end - begin)
