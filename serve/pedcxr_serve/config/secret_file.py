"""Files that hold one secret: the key of an engine, of the admin port, or of the caches."""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from pathlib import Path

from pedcxr_serve.config import paths
from pedcxr_serve.errors import ConfigError

MIN_CHARS = 32
_MAX_BYTES = 4096


def read(path: Path) -> str:
    """Return the secret without the white space around it.

    Raises:
        ConfigError: the file cannot be read, or is not one line of 32 to 4,096 printable ASCII characters.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1).strip()
    except OSError as error:
        raise ConfigError(f"{path}: the secret cannot be read ({error.strerror})") from error
    text = data.decode("ascii", "replace")
    if not MIN_CHARS <= len(data) <= _MAX_BYTES or not text.isascii() or not text.isprintable() or " " in text:
        raise ConfigError(
            f"{path}: must hold one secret of at least {MIN_CHARS} printable ASCII characters without blanks, "
            "for example from `openssl rand -hex 32`"
        )
    return text


def read_or_create(path: Path) -> str:
    """Return the secret of a file; create the file with a random secret and mode 0600 if it does not exist.

    Two processes that create it at once get the same secret.

    Raises:
        ConfigError: as `read`, or the file cannot be created.
    """
    if not paths.exists(path):
        try:
            # mkstemp creates it with mode 0600 under a name of its own.
            with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.") as draft:
                draft.write(secrets.token_hex(32) + "\n")
                draft.flush()
                with contextlib.suppress(FileExistsError):
                    os.link(draft.name, path)  # unlike a rename, it does not replace the file of another process
        except OSError as error:
            raise ConfigError(f"{path}: the secret cannot be created ({error.strerror})") from error
    return read(path)
