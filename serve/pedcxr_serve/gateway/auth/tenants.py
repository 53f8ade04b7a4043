"""Tenants: who may use the server, how much of it, and with which API keys. Read from tenants.toml."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from pedcxr_serve.config import toml_file
from pedcxr_serve.config.schema import FieldError, Schema
from pedcxr_serve.errors import ConfigError

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
_Count = Annotated[int, Meta(ge=1, le=10**15)]


class Key(Struct, frozen=True, forbid_unknown_fields=True):
    """An API key. The file and the server hold its SHA-256 only."""

    sha256: Annotated[
        str,
        Meta(
            pattern=r"^[0-9a-f]{64}\Z",
            description="digest of the key",
            # Secret because the key itself could be pasted here by mistake.
            extra={"requirement": "64 hexadecimal digits, as `pedcxr-serve keys new` writes them", "secret": True},
        ),
    ]
    expires: Annotated[
        Annotated[datetime, Meta(tz=True)] | None,
        Meta(
            description="the key is rejected after this day in UTC, or from this time on; none = never",
            extra={"requirement": "a date, or a date and time with its offset from UTC"},
        ),
    ] = None

    def __repr__(self) -> str:
        return f"Key(expires={self.expires!r})"

    @property
    def short(self) -> str:
        """The first 12 digits of the digest, which name the key in lists and logs."""
        return self.sha256[:12]

    def valid(self, now: datetime) -> bool:
        """Return whether the key is accepted at ``now``, a time with a time zone."""
        return self.expires is None or now < self.expires


class Tenant(Struct, frozen=True, forbid_unknown_fields=True):
    """A team and its limits; None means no limit."""

    name: str
    weight: Annotated[float, Meta(ge=0.01, le=100, description="relative share of the engine under load")] = 1.0
    max_concurrent: Annotated[
        int, Meta(ge=1, le=100_000, description="maximum number of open requests, queued or in progress")
    ] = 1024
    requests_per_minute: Annotated[_Count | None, Meta(description="maximum number of requests per minute")] = None
    tokens_per_day: Annotated[_Count | None, Meta(description="maximum tokens per UTC day, input and output")] = None
    models: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=128)], ...],
        Meta(description="models that the tenant may request; empty = all"),
    ] = ()
    default_model: Annotated[
        str, Meta(max_length=128, description="model of a request that names none; empty = that of the server")
    ] = ""
    may_sample: Annotated[
        bool, Meta(description="whether temperature and other sampling fields have an effect; false = greedy decoding")
    ] = False
    may_stream: Annotated[bool, Meta(description="whether the tenant may stream")] = True
    may_omit_film: Annotated[
        bool, Meta(description="whether a request may have no film; the model then invents what it describes")
    ] = False
    may_bench: Annotated[bool, Meta(description="whether ignore_eos and min_tokens of load testers have an effect")] = (
        False
    )
    keys: Annotated[
        tuple[Key, ...], Meta(description="API keys", extra={"requirement": "a list of tables [[tenant.NAME.keys]]"})
    ] = ()

    def may_use(self, model: str) -> bool:
        """Return whether the tenant may request the model of this name."""
        return not self.models or model in self.models


SCHEMA = Schema(Tenant, "a table")
ANONYMOUS = Tenant("anonymous", max_concurrent=1024)
"""The tenant of every request on a server without a tenants file."""


@dataclass(frozen=True, slots=True)
class Tenants:
    """All tenants of a server.

    Attributes:
        all: by name.
        is_anonymous: there is no tenants file: every request, with a key or without, belongs to `ANONYMOUS`.
        digest: first 12 digits of the file's SHA-256; empty without a file.
    """

    all: Mapping[str, Tenant]
    is_anonymous: bool = False
    digest: str = ""
    _keys: dict[str, list[tuple[Key, Tenant]]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for tenant in self.all.values():
            for key in tenant.keys:
                self._keys.setdefault(key.sha256, []).append((key, tenant))

    @classmethod
    def anonymous(cls) -> Tenants:
        """Return the tenants of a server without a file."""
        return cls({ANONYMOUS.name: ANONYMOUS}, is_anonymous=True)

    def owner(self, key: str, now: datetime) -> Tenant | None:
        """Return the tenant of a key, or None for a wrong or expired one.

        The lookup takes the same time for any number of keys. Its time may depend on the digest of the key. That tells
        a client nothing, because it can choose keys but not digests.
        """
        if self.is_anonymous:
            return ANONYMOUS
        return next((tenant for entry, tenant in self._keys.get(digest(key), ()) if entry.valid(now)), None)


def digest(key: str) -> str:
    """Return the SHA-256 of a key in hexadecimal. Keys are 256 random bits, so a salt or a slow hash adds nothing."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def load(path: Path) -> Tenants:
    """Read a file.

    Raises:
        ConfigError: the message has file, line or key, and what is allowed.
    """
    return parse(toml_file.read_text(path, remedy="`pedcxr-serve keys new NAME` creates the file."), str(path))


def parse(text: str, source: str) -> Tenants:
    """Read the text of a file, like `load`; ``source`` is the file's name in the messages of errors."""
    tables = toml_file.parse(text, source)
    for name in tables:
        if name != "tenant":
            raise ConfigError(f"{source}: {name}: unknown name; expected [tenant.NAME] and [[tenant.NAME.keys]].")
    entries = tables.get("tenant", {})
    if not isinstance(entries, dict):
        raise ConfigError(f"{source}: tenant: must be tables [tenant.NAME].")
    try:
        all_tenants = {name: _tenant(name, table) for name, table in entries.items()}
    except FieldError as error:
        raise ConfigError(f"{source}: {error.assignment}: {error}.") from error
    _reject_shared_keys(all_tenants, source)
    # Of the text that was read: the file may have been replaced or removed since.
    return Tenants(all_tenants, digest=digest(text)[:12])


def _tenant(name: str, table: object) -> Tenant:
    path = f"tenant.{name}"
    if not NAME.fullmatch(name):
        message = "the name must be 1 to 32 characters of a-z 0-9 _ -, starting with a letter or digit"
        raise FieldError(message, path, "invalid_value")
    if name == ANONYMOUS.name:
        raise FieldError("the name is reserved", path, "invalid_value")
    if isinstance(table, dict):
        _replace_days_by_their_last_moment(table.get("keys"))
    return msgspec.convert({"name": name} | SCHEMA.check(table, path), Tenant)


def _replace_days_by_their_last_moment(keys: object) -> None:
    for key in keys if isinstance(keys, list) else ():
        if isinstance(key, dict) and type(day := key.get("expires")) is date:
            key["expires"] = datetime.combine(day, time.max, UTC)


def _reject_shared_keys(all_tenants: Mapping[str, Tenant], source: str) -> None:
    owners: dict[str, str] = {}
    for tenant in all_tenants.values():
        for key in tenant.keys:
            if owners.setdefault(key.sha256, tenant.name) != tenant.name:
                raise ConfigError(
                    f"{source}: tenant.{tenant.name}.keys: the key {key.short} also belongs to tenant "
                    f"{owners[key.sha256]}. Remove one of them."
                )
