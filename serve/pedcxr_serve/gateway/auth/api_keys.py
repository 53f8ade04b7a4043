"""API keys in tenants.toml: create, list, revoke. Edits are line by line, so that the user's comments stay."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path

from pedcxr_serve.config import paths, toml_file
from pedcxr_serve.errors import ConfigError
from pedcxr_serve.gateway.auth import tenants
from pedcxr_serve.gateway.auth.tenants import Tenants

_PREFIX = "pcx-"
_HEADER = re.compile(r"\s*\[")
_SHORTEST_PREFIX = 6


def new(path: Path, name: str, *, expires: date | None = None) -> str:
    """Create a key for a tenant and return it; the file stores its digest. Creates tenant and file if they are absent.

    Args:
        expires: the last day on which the key is valid, in UTC.

    Raises:
        ConfigError: the file is invalid, or the name is not allowed; the file is unchanged.
    """
    key = _PREFIX + secrets.token_urlsafe(32)
    with _locked(path):
        text = _read(path)
        current = tenants.parse(text, str(path))
        lines = [] if name in current.all else ["", f"[tenant.{name}]"]
        lines += ["", f"[[tenant.{name}.keys]]", f'sha256 = "{tenants.digest(key)}"']
        lines += [f"expires = {expires.isoformat()}"] if expires else []
        edited = (text.rstrip("\n") + "\n" + "\n".join(lines) + "\n").lstrip("\n")
        if not tenants.NAME.fullmatch(name) or tenants.parse(edited, str(path)).owner(key, datetime.now(UTC)) is None:
            raise ConfigError(
                f"{path}: tenant {name!r}: the key could not be added. The name must consist of a-z 0-9 _ -, the "
                "tenant's table must be written as [tenant.NAME], and the day of expiry must not have passed."
            )
        _write(path, edited)
    return key


def table(path: Path) -> str:
    """Return a text table of the tenants and their keys, named by the first digits of their digests.

    Raises:
        ConfigError: the file is invalid or absent.
    """
    now = datetime.now(UTC)
    rows = [("tenant", "weight", "key", "expires")]
    for tenant in tenants.load(path).all.values():
        for key in tenant.keys or (None,):
            expiry = "" if key is None else "never" if key.expires is None else f"{key.expires:%Y-%m-%d %H:%M %Z}"
            expiry += " (expired)" if key is not None and not key.valid(now) else ""
            rows.append((tenant.name, f"{tenant.weight:g}", "none" if key is None else key.short, expiry))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "".join("  ".join(map(str.ljust, row, widths)).rstrip() + "\n" for row in rows)


def revoke(path: Path, prefix: str) -> str:
    """Remove the one key whose digest starts with ``prefix``, at least 6 digits; return its tenant's name.

    The tenant stays, also without a key.

    Raises:
        ConfigError: no key or several keys match, or the file is not written as `new` writes it.
    """
    with _locked(path):
        return _revoke(path, prefix)


def _revoke(path: Path, prefix: str) -> str:
    text = _read(path)
    current = tenants.parse(text, str(path))
    matches = [
        (name, sha256)
        for name, sha256 in _digests(current)
        if len(prefix) >= _SHORTEST_PREFIX and sha256.startswith(prefix.lower())
    ]
    if len(matches) != 1:
        raise ConfigError(
            f"{path}: {len(matches)} keys start with {prefix!r}; must be exactly one, given by at least "
            f"{_SHORTEST_PREFIX} digits. `pedcxr-serve keys list` prints them."
        )
    name, sha256 = matches[0]
    edited = _without(text, sha256)
    remaining = tenants.parse(edited, str(path))
    if name not in remaining.all:  # its keys alone named it; a running server refuses a file without its tenants
        edited += f"\n[tenant.{name}]\n"
    if _digests(remaining) != _digests(current) - {(name, sha256)}:
        raise ConfigError(f"{path}: the key {prefix} is not in a table of its own. Remove it by hand.")
    _write(path, edited)
    return name


def _digests(current: Tenants) -> set[tuple[str, str]]:
    return {(tenant.name, key.sha256) for tenant in current.all.values() for key in tenant.keys}


def _without(text: str, sha256: str) -> str:
    """Return the text without the table that holds the digest, up to the next header or empty line."""
    lines = text.splitlines(keepends=True)
    at = next((index for index, line in enumerate(lines) if sha256 in line.lower()), None)
    if at is None:
        return text
    start = next((index for index in range(at, -1, -1) if _HEADER.match(lines[index])), at)
    end = next((i for i in range(at + 1, len(lines)) if _HEADER.match(lines[i]) or not lines[i].strip()), len(lines))
    return "".join(lines[:start] + lines[end:])


def _read(path: Path) -> str:
    if not paths.exists(path):
        return ""
    return toml_file.read_text(path, remedy="Give a readable TOML file.").removeprefix("\ufeff")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Exclude other edits of the file by this module until the end of the block.

    The lock is on the folder: the file is replaced, and a lock file would stay behind.
    """
    folder = os.path.dirname(os.path.realpath(path))
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(f"{path}: its folder cannot be opened: {error.strerror}.") from error
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _write(path: Path, text: str) -> None:
    """Replace the file atomically, so that a running server reads either the old or the new one."""
    path = Path(os.path.realpath(path))  # a link stays a link
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # has mode 0600
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                _copy_owner(path, handle)
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        remedy = " Mount its folder instead of the file." if error.errno == errno.EBUSY else ""
        raise ConfigError(f"{path}: cannot be written: {error.strerror}.{remedy}") from error


def _copy_owner(path: Path, file: int) -> None:
    # With sudo, a file that only root can read would lock the server out.
    if paths.exists(path):
        status = path.stat()
        os.fchmod(file, stat.S_IMODE(status.st_mode))
        if (status.st_uid, status.st_gid) != (os.geteuid(), os.getegid()):
            os.fchown(file, status.st_uid, status.st_gid)
