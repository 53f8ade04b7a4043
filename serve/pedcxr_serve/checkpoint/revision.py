"""A short identifier of the weights in a folder. Reports, caches and audit logs use it to distinguish fine-tunes."""

from __future__ import annotations

import hashlib
import re
import struct
from pathlib import Path

from pedcxr_serve.checkpoint.download import FILES
from pedcxr_serve.checkpoint.weights import MAX_HEADER_BYTES

_COMMIT = re.compile(r"[0-9a-f]{40}")
_WHOLE_FILE_BYTES = 1 << 20  # smaller files, such as the configuration and the chat template, are hashed completely
_SAMPLES, _SAMPLE_BYTES = 64, 4096  # per larger file


def of(folder: Path) -> str:
    """Return the commit of a snapshot in the Hugging Face cache, or ``sha256:`` and 16 hex digits for other folders.

    The digest covers the name and length of every file that serving reads, and the whole content of files below 1 MiB.
    Of larger files it covers the safetensors header and 64 evenly spaced blocks of 4 KiB, which takes milliseconds.
    Fine-tunes of one model have the same names, lengths and headers and differ only in the blocks. A change of a few
    weights between the blocks is not detected. The path of the folder has no influence.

    Raises:
        OSError: A file cannot be read.
    """
    if folder.parent.name == "snapshots" and _COMMIT.fullmatch(folder.name):
        return folder.name
    digest = hashlib.sha256()
    for path in sorted({path for pattern in FILES for path in folder.glob(pattern)}):
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            if size < _WHOLE_FILE_BYTES:
                digest.update(file.read())
                continue
            start = 0
            if path.suffix == ".safetensors":
                (length,) = struct.unpack("<Q", file.read(8))
                start = 8 + min(length, MAX_HEADER_BYTES)
                digest.update(file.read(start - 8))
            for n in range(_SAMPLES):
                file.seek(start + (size - start - _SAMPLE_BYTES) * n // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE_BYTES))
    return f"sha256:{digest.hexdigest()[:16]}"
