"""The usage of several servers added up: ``pedcxr-serve usage SOURCE...``."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple
from pathlib import Path

from pedcxr_serve.errors import ConfigError
from pedcxr_serve.gateway.accounting.usage import UsageTotals

_TIMEOUT_S = 10
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the token is for the admin port alone
_HEAD = ("day", "tenant", "requests", "reports", "prompt", "image", "output", "tokens")
Usage = Mapping[tuple[str, str], UsageTotals]
"""Totals by day (YYYY-MM-DD, UTC) and tenant."""


def report(sources: Sequence[str], since: str = "", token: str = "") -> str:
    """Return a table of the summed usage since a day, that day included.

    Args:
        sources: usage databases (``gateway.usage_db``), or URLs of admin ports such as ``http://127.0.0.1:8001``.
        token: of the admin ports (``gateway.admin_token_file``).

    Raises:
        ConfigError: a source cannot be read, or two are of one server; the message names it. Nothing is left out, or
            counted twice, silently.
    """
    names: dict[str, str] = {}
    usages = []
    for source in sources:
        ledger, usage = _read(source, token)
        if ledger in names:
            raise ConfigError(
                f"{source}: is the same usage database as {names[ledger]}, or a copy of it, and would be counted "
                "twice; name only the newer one"
            )
        names[ledger] = source
        usages.append(usage)
    return table(add(usages), since)


def add(usages: Iterable[Usage]) -> Usage:
    """Return the sums over all servers."""
    sums: dict[tuple[str, str], UsageTotals] = {}
    for usage in usages:
        for key, totals in usage.items():
            sums[key] = sums.get(key, UsageTotals()) + totals
    return sums


def table(usage: Usage, since: str = "") -> str:
    """Return a table with one line per day and tenant."""
    rows = [_HEAD] + [
        (*key, *(f"{count:,}" for count in (*astuple(totals), totals.tokens)))
        for key, totals in sorted(usage.items())
        if key[0] >= since
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(cell.ljust(width) if at < 2 else cell.rjust(width) for at, (cell, width) in enumerate(cells))
        for cells in (list(zip(row, widths, strict=True)) for row in rows)
    )
    return "".join(line.rstrip() + "\n" for line in lines)


def _read(source: str, token: str) -> tuple[str, Usage]:
    # The id of the usage database and its copies, or of the source if an older release wrote it; and the usage.
    try:
        return _from_url(source, token) if source.startswith(("http://", "https://")) else _from_file(Path(source))
    except (OSError, sqlite3.Error, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{source}: cannot be read as usage: {error}") from error


def _from_url(url: str, token: str) -> tuple[str, Usage]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(url.rstrip("/") + "/usage", headers=headers)  # noqa: S310
    with _opener.open(request, timeout=_TIMEOUT_S) as answer:
        page = json.load(answer)
    usage = {
        (day, tenant): UsageTotals(*(counts[name] for name in UsageTotals.__slots__))
        for day, tenants in page["days"].items()
        for tenant, counts in tenants.items()
    }
    return page.get("ledger", url.rstrip("/")), usage


def _from_file(path: Path) -> tuple[str, Usage]:
    status = path.stat()  # SQLite's own message for an absent file does not say so
    file = path.resolve()
    # A server that has the file open keeps its latest rows in the write-ahead log beside it. Without a log, the file is
    # complete: SQLite would create one to read it, which fails where a backup cannot be written, or stays beside it.
    option = "mode=ro" if Path(f"{file}-wal").exists() else "immutable=1"
    with contextlib.closing(sqlite3.connect(f"{file.as_uri()}?{option}", uri=True)) as database:
        rows = database.execute(
            "SELECT day, tenant, requests, reports, prompt_tokens, image_tokens, output_tokens FROM usage"
        )
        usage = {(day, tenant): UsageTotals(*counts) for day, tenant, *counts in rows}
        ledger = f"{status.st_dev}:{status.st_ino}"
        if database.execute("SELECT 1 FROM sqlite_master WHERE name = 'ledger'").fetchone():
            (ledger,) = database.execute("SELECT id FROM ledger").fetchone()
    return ledger, usage
