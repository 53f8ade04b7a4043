"""``pedcxr-serve keys`` and ``pedcxr-serve audit``: the files of a server, from the command line."""

from __future__ import annotations

import argparse
import os
from datetime import date
from pathlib import Path
from typing import Any

from pedcxr_serve.gateway.accounting import audit
from pedcxr_serve.gateway.auth import api_keys

_TENANTS = Path("tenants.toml")


def add_commands(commands: Any) -> None:
    """Add both to the subparsers of `argparse`."""
    key = commands.add_parser("keys", help="make, list and revoke the keys of tenants.toml").add_subparsers(
        dest="action", required=True, metavar="ACTION"
    )
    new = key.add_parser("new", help="make a key; it is shown once and stored as a digest")
    new.add_argument("name", help="the tenant, made if it is not there")
    new.add_argument("--expires", type=date.fromisoformat, metavar="YYYY-MM-DD", help="last day of the key, in UTC")
    listed = key.add_parser("list", help="tenants and the beginnings of their keys' digests")
    revoked = key.add_parser("revoke", help="remove a key; a server that runs follows within a second")
    revoked.add_argument("digest", help="the beginning of the key's digest, as `keys list` shows it")
    for command in (new, listed, revoked):
        command.add_argument(
            "--tenants", type=Path, default=_TENANTS, metavar="FILE", help="the file (default tenants.toml)"
        )
    verify = commands.add_parser("audit", help="check an audit log").add_subparsers(
        dest="action", required=True, metavar="ACTION"
    )
    log = verify.add_parser("verify", help=f"whether lines were changed or removed; the key is in {audit.KEY_VARIABLE}")
    log.add_argument("file", type=Path)


def run(args: argparse.Namespace) -> str:
    """Run one of them; what to print.

    Raises:
        ConfigError, AuditError: as `keys` and `audit` do.
    """
    if args.command == "audit":
        return audit.verify(args.file, audit.key_from(os.environ)) + "\n"
    if args.action == "new":
        made = api_keys.new(args.tenants, args.name, expires=args.expires)
        return f"{made}\nThis key of {args.name} is shown once; {args.tenants} holds its digest only.\n"
    if args.action == "revoke":
        return f"revoked a key of {api_keys.revoke(args.tenants, args.digest)}\n"
    return api_keys.listing(args.tenants)
