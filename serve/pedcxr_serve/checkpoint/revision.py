"""Which weights a folder holds, in one short word, for reports, caches and audits to tell fine-tunes apart."""

from __future__ import annotations

import hashlib
import re
import struct
from pathlib import Path

from pedcxr_serve.checkpoint.download import FILES

__all__ = ["of"]

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SMALL = 1 << 20  # a file below it is read whole: configuration and chat template change a report as weights do
_HEADER = 100_000_000  # of a safetensors file, at most (`weights.HEADER_LIMIT`)
_SAMPLES, _SAMPLE = 64, 4096  # of each larger file


def of(folder: Path) -> str:
    """The hub's commit where the folder is a snapshot in the hub's cache, else ``sha256:`` and 16 hex digits.

    The digest covers name and length of every file that serving reads, all of those below 1 MiB, and of the larger
    ones the safetensors header and 64 blocks of 4 KiB evenly spread: milliseconds for gigabytes. Fine-tunes of one
    model have equal names, lengths and headers, so that only the blocks tell them apart; a change of a few weights
    in between is not seen. Moving or copying the folder changes nothing.

    Raises:
        OSError: a file cannot be read.
    """
    if folder.parent.name == "snapshots" and _COMMIT.fullmatch(folder.name):
        return folder.name
    digest = hashlib.sha256()
    for path in sorted({path for pattern in FILES for path in folder.glob(pattern)}):
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            if size < _SMALL:
                digest.update(file.read())
                continue
            start = 0
            if path.suffix == ".safetensors":
                (length,) = struct.unpack("<Q", file.read(8))
                start = 8 + min(length, _HEADER)
                digest.update(file.read(start - 8))
            for n in range(_SAMPLES):
                file.seek(start + (size - start - _SAMPLE) * n // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE))
    return f"sha256:{digest.hexdigest()[:16]}"
