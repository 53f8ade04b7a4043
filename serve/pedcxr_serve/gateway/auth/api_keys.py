"""Keys in tenants.toml: made, listed, revoked. The file is the user's: it is edited line by line, comments and all."""

from __future__ import annotations

import os
import re
import secrets
import tempfile
from datetime import UTC, date, datetime
from pathlib import Path

from pedcxr_serve.errors import ConfigError
from pedcxr_serve.gateway.auth import tenants
from pedcxr_serve.gateway.auth.tenants import Tenants

__all__ = ["listing", "new", "revoke"]

_PREFIX = "pcx-"
_HEADER = re.compile(r"\s*\[")
_SHORTEST_ID = 6


def new(path: Path, name: str, *, expires: date | None = None) -> str:
    """Make a key for a tenant, and the tenant and the file where there is none; the key, which is stored nowhere.

    Args:
        expires: the last day on which it is good, in UTC.

    Raises:
        ConfigError: the file is broken, or the name is not allowed; it is left as it was.
    """
    key = _PREFIX + secrets.token_urlsafe(32)
    text = _read(path)
    known = tenants.parse(text, str(path))
    lines = [] if name in known.all else ["", f"[tenant.{name}]"]
    lines += ["", f"[[tenant.{name}.keys]]", f'sha256 = "{tenants.digest(key).hex()}"']
    lines += [f"expires = {expires.isoformat()}"] if expires else []
    added = (text.rstrip("\n") + "\n" + "\n".join(lines) + "\n").lstrip("\n")
    if not tenants.NAME.fullmatch(name) or tenants.parse(added, str(path)).owner(key, datetime.now(UTC)) is None:
        raise ConfigError(
            f"{path}: tenant {name!r}: no key could be added. Allowed are names of a-z 0-9 _ -, tables written "
            "[tenant.NAME], and a day of expiry that has not passed"
        )
    _write(path, added)
    return key


def listing(path: Path) -> str:
    """A table of tenants and their keys, by the beginnings of the digests.

    Raises:
        ConfigError: the file is broken or absent.
    """
    now = datetime.now(UTC)
    rows = [("tenant", "weight", "key", "expires")]
    for tenant in tenants.load(path).all.values():
        for key in tenant.keys or (None,):
            until = "" if key is None else "never" if key.expires is None else f"{key.expires:%Y-%m-%d %H:%M %Z}"
            until += " (expired)" if key is not None and not key.valid(now) else ""
            rows.append((tenant.name, f"{tenant.weight:g}", "none" if key is None else key.short, until))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "".join("  ".join(map(str.ljust, row, widths)).rstrip() + "\n" for row in rows)


def revoke(path: Path, short: str) -> str:
    """Remove the one key whose digest begins so; its tenant's name.

    Raises:
        ConfigError: no or several keys begin so, or the file is not written as `new` writes it.
    """
    text = _read(path)
    known = tenants.parse(text, str(path))
    found = [
        (tenant.name, key.sha256.hex())
        for tenant in known.all.values()
        for key in tenant.keys
        if len(short) >= _SHORTEST_ID and key.sha256.hex().startswith(short.lower())
    ]
    if len(found) != 1:
        raise ConfigError(f"{path}: {len(found)} keys begin with {short!r}; `pedcxr-serve keys list` shows them")
    name, digest = found[0]
    left = _without(text, digest)
    if _digests(tenants.parse(left, str(path))) != _digests(known) - {(name, digest)}:
        raise ConfigError(f"{path}: the key {short} is not in a table of its own; remove it by hand")
    _write(path, left)
    return name


def _digests(known: Tenants) -> set[tuple[str, str]]:
    return {(tenant.name, key.sha256.hex()) for tenant in known.all.values() for key in tenant.keys}


def _without(text: str, digest: str) -> str:
    """The text less the table that holds the digest: from its header to the next header or empty line."""
    lines = text.splitlines(keepends=True)
    at = next((index for index, line in enumerate(lines) if digest in line.lower()), None)
    if at is None:
        return text
    start = next((index for index in range(at, -1, -1) if _HEADER.match(lines[index])), at)
    end = next((i for i in range(at + 1, len(lines)) if _HEADER.match(lines[i]) or not lines[i].strip()), len(lines))
    return "".join(lines[:start] + lines[end:])


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text: {error}") from error


def _write(path: Path, text: str) -> None:
    """Replace the file at once: a server that looks meanwhile sees the old one or the new one."""
    path = path.resolve()  # a link stays a link
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # of mode 0600
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error
