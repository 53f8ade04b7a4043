"""A deflated data set is measured before pydicom inflates it in one go, whatever comes out of it."""

from __future__ import annotations

import zlib

from pedcxr_client.errors import InputError
from pedcxr_client.films.limits import MAX_BYTES

_DEFLATED = b"1.2.840.10008.1.2.1.99"  # PS3.5 section A.5


def refuse_bomb(data: bytes, name: str) -> None:
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
