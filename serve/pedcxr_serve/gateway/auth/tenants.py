"""Tenants: who may use the server, how much of it, and with which keys, read from tenants.toml as digests."""

from __future__ import annotations

import hashlib
import hmac
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Any

from pedcxr_serve.errors import ConfigError

__all__ = ["ANONYMOUS", "NAME", "Key", "Tenant", "Tenants", "digest", "load", "parse", "reference"]

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FILE_LIMIT = 1 << 20
_WHOLE = (1, 1e15)


def _setting(default: Any, doc: str, *, low: float = -math.inf, high: float = math.inf) -> Any:
    return field(default=default, metadata={"doc": doc, "low": low, "high": high})


@dataclass(frozen=True, slots=True)
class Key:
    """A key, as a digest; ``expires`` is the first moment at which it is refused, None for never."""

    sha256: bytes = field(repr=False)
    expires: datetime | None = None

    @property
    def short(self) -> str:
        """Enough of the digest to name the key in a list or a log."""
        return self.sha256.hex()[:12]

    def valid(self, now: datetime) -> bool:
        """Whether it opens the door at ``now``, which has a time zone."""
        return self.expires is None or now < self.expires


@dataclass(frozen=True, slots=True)
class Tenant:
    """A team and what it may do; None means without a limit."""

    name: str
    weight: float = _setting(1.0, "share of the engine when several want it", low=0.01, high=100)
    max_concurrent: int = _setting(256, "requests open at once, waiting or in work", low=1, high=100_000)
    requests_per_minute: int | None = _setting(None, "requests a minute", low=_WHOLE[0], high=_WHOLE[1])
    tokens_per_day: int | None = _setting(None, "tokens a UTC day, in and out", low=_WHOLE[0], high=_WHOLE[1])
    models: tuple[str, ...] = _setting((), "names it may ask for; an empty list: all")
    may_sample: bool = _setting(False, "whether temperature and its kin are honoured; else greedy")
    may_stream: bool = _setting(True, "whether it may stream")
    keys: tuple[Key, ...] = ()

    def may_use(self, model: str) -> bool:
        """Whether it may ask for a model of that name."""
        return not self.models or model in self.models


ANONYMOUS = Tenant("anonymous", max_concurrent=1024)
"""Everybody, on a server without a tenants file."""


@dataclass(frozen=True, slots=True)
class Tenants:
    """All tenants of a server.

    Attributes:
        all: by name.
        anonymous: there is no file: any key, or none, is `ANONYMOUS`'s.
    """

    all: Mapping[str, Tenant]
    anonymous: bool = False

    @classmethod
    def nobody_in_particular(cls) -> Tenants:
        """The set of a server without a file."""
        return cls({ANONYMOUS.name: ANONYMOUS}, anonymous=True)

    def owner(self, key: str, now: datetime) -> Tenant | None:
        """The tenant of a key, None for a wrong or expired one. It takes the same time whichever key it is."""
        if self.anonymous:
            return ANONYMOUS
        given, found = digest(key), None
        for tenant in self.all.values():
            for known in tenant.keys:
                same = hmac.compare_digest(known.sha256, given)
                if same and known.valid(now):
                    found = tenant
        return found


def digest(key: str) -> bytes:
    """SHA-256: keys are 256 random bits, which no salt or slowness would make harder to guess."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def load(path: Path) -> Tenants:
    """Read a file.

    Raises:
        ConfigError: naming file, line or key, and what is allowed.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_FILE_LIMIT + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); `pedcxr-serve keys new` makes it") from error
    if len(raw) > _FILE_LIMIT:
        raise ConfigError(f"{path}: larger than 1 MiB, so hardly a list of tenants")
    try:
        return parse(raw.decode(), str(path))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8. Save the file as UTF-8 text.") from error


def parse(text: str, where: str) -> Tenants:
    """Read the text of a file; ``where`` leads the message of an error.

    Raises:
        ConfigError: as `load` does.
    """
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where}: not valid TOML: {error}. Texts need quotes, numbers none") from error
    for name in tables:
        if name != "tenant":
            raise ConfigError(f"{where}: {name}: no such table; allowed are [tenant.NAME] and [[tenant.NAME.keys]]")
    listed = tables.get("tenant", {})
    if not isinstance(listed, dict):
        raise ConfigError(f"{where}: tenant: allowed are tables [tenant.NAME]")
    found = {name: _tenant(name, table, f"{where}: tenant.{name}") for name, table in listed.items()}
    _refuse_shared_keys(found, where)
    return Tenants(found)


def reference() -> str:
    """The settings of a tenant in Markdown, as docs/tenants.md shows them."""
    lines = ["| key of `[tenant.NAME]` | allowed | default | meaning |", "|---|---|---|---|"]
    for item in fields(Tenant):
        if "doc" in item.metadata:
            default = "none" if item.default is None else str(item.default).lower().replace("()", "[]")
            lines.append(f"| `{item.name}` | {_allowed(item)} | {default} | {item.metadata['doc']} |")
    return "\n".join(lines) + "\n"


def _tenant(name: str, table: object, where: str) -> Tenant:
    if not NAME.fullmatch(name):
        raise ConfigError(f"{where}: allowed are names of 1 to 32 of a-z 0-9 _ -, with a letter or digit first")
    if name == ANONYMOUS.name or not isinstance(table, dict):
        raise ConfigError(f"{where}: " + ("a reserved name" if isinstance(table, dict) else "write [tenant.NAME]"))
    known = {item.name: item for item in fields(Tenant) if "doc" in item.metadata}
    values: dict[str, Any] = {}
    for key, raw in table.items():
        if key == "keys":
            continue
        if key not in known:
            raise ConfigError(f"{where}.{key}: no such setting; allowed are {', '.join(known)}, keys")
        values[key] = _checked(known[key], raw, f"{where}.{key}")
    listed = table.get("keys", [])
    if not isinstance(listed, list):
        raise ConfigError(f"{where}.keys: allowed are tables [[tenant.{name}.keys]]")
    keys = tuple(_key(raw, f"{where}.keys[{index}]") for index, raw in enumerate(listed))
    return Tenant(name, **values, keys=keys)


def _checked(item: Any, raw: object, where: str) -> object:
    default, low, high = item.default, item.metadata["low"], item.metadata["high"]
    good: bool
    if isinstance(default, bool):
        good = isinstance(raw, bool)
    elif isinstance(default, tuple):
        good = isinstance(raw, list) and all(isinstance(name, str) and 0 < len(name) <= 128 for name in raw)
        raw = tuple(raw) if isinstance(raw, list) else raw
    else:
        numbers = (int, float) if isinstance(default, float) else int
        good = isinstance(raw, numbers) and not isinstance(raw, bool) and low <= raw <= high
    if not good:
        raise ConfigError(f"{where} = {raw!r}: allowed is {_allowed(item)}")
    return raw


def _allowed(item: Any) -> str:
    if isinstance(item.default, bool):
        return "true or false"
    if isinstance(item.default, tuple):
        return "a list of names"
    low, high = item.metadata["low"], item.metadata["high"]
    noun = "a number" if isinstance(item.default, float) else "a whole number"
    return f"{noun} from {low:g}" + (f" to {high:,g}" if high < _WHOLE[1] else "")


def _key(raw: object, where: str) -> Key:
    if not isinstance(raw, dict) or not set(raw) <= {"sha256", "expires"}:
        raise ConfigError(f"{where}: allowed are sha256 and expires")
    sha256, expires = raw.get("sha256"), raw.get("expires")
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        # The value is not repeated: people paste the key itself here.
        raise ConfigError(f"{where}.sha256: allowed is a digest of 64 hex digits; `pedcxr-serve keys new` makes one")
    if isinstance(expires, date) and not isinstance(expires, datetime):
        expires = datetime.combine(expires, time.max, UTC)  # good to the end of that day
    if not (expires is None or (isinstance(expires, datetime) and expires.tzinfo is not None)):
        raise ConfigError(f"{where}.expires: allowed is a date, or a date and time with its offset from UTC")
    return Key(bytes.fromhex(sha256), expires)


def _refuse_shared_keys(found: Mapping[str, Tenant], where: str) -> None:
    seen: dict[bytes, str] = {}
    for tenant in found.values():
        for key in tenant.keys:
            if seen.setdefault(key.sha256, tenant.name) != tenant.name:
                raise ConfigError(f"{where}: tenant.{tenant.name}.keys: {key.short} is {seen[key.sha256]}'s key too")
