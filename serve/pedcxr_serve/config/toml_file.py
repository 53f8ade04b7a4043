"""Reading of small TOML files, with errors that name the file and the remedy."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from pedcxr_serve.errors import ConfigError

_MAX_BYTES = 1 << 20


def read_text(path: Path, *, remedy: str) -> str:
    """Return the text of a UTF-8 file of at most 1 MiB.

    Args:
        remedy: a sentence for the error of a file that cannot be opened.

    Raises:
        ConfigError: the file is unreadable, too large or not UTF-8.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}). {remedy}") from error
    if len(raw) > _MAX_BYTES:
        raise ConfigError(f"{path}: larger than 1 MiB. Check that this is the right file.")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8. Save the file as UTF-8 text.") from error


def parse(text: str, source: str) -> dict[str, Any]:
    """Return the tables of a TOML text, or raise ConfigError with ``source``, line and column.

    A byte order mark, as some editors write it, is left out.
    """
    try:
        return tomllib.loads(text.removeprefix("\ufeff"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            f"{source}: not valid TOML: {error}. Strings need quotes; numbers, true and false do not."
        ) from error
