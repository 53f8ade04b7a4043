"""The options of every command that asks a server, and the client they make."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from pedcxr_client.cli import metrics_options
from pedcxr_client.client import AsyncClient, Client
from pedcxr_client.errors import ConfigurationError, RateLimited, Unavailable
from pedcxr_client.metrics.hooks import HookChain, NullHook
from pedcxr_client.request.settings import DEFAULT_URL, Timeouts

if TYPE_CHECKING:
    from pedcxr_client.errors import RequestError

_KEY_VARIABLE = "PEDCXR_API_KEY"


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where the server is and how it is asked."""
    parser.add_argument("--url", default=DEFAULT_URL, help="the server (default: %(default)s)")
    parser.add_argument(
        "--api-key-env", metavar="NAME", help=f"environment variable that holds the API key (default: {_KEY_VARIABLE})"
    )
    parser.add_argument("--model", metavar="NAME", help="needed only if the server offers several")
    parser.add_argument("--max-tokens", metavar="N", type=above_zero(int), default=500, help="default: %(default)s")
    parser.add_argument(
        "--timeout", metavar="S", type=above_zero(float), default=Timeouts().total,
        help="seconds for everything, waiting for a starting server included (default: %(default)g)",
    )  # fmt: skip
    parser.add_argument("--insecure-http", action="store_true", help="allow plain http to another machine")
    metrics_options.add(parser)


def connect(options: argparse.Namespace) -> Client:
    """The client that the options describe.

    Raises:
        ConfigurationError: if one of them cannot be used.
    """
    return Client(
        options.url,
        api_key=api_key(options.api_key_env),
        model=options.model,
        timeouts=Timeouts(total=options.timeout),
        insecure_http=options.insecure_http,
        metrics=HookChain(Patience(), options.watch),
    )


def connect_async(options: argparse.Namespace, *, retries: int) -> AsyncClient:
    """The same for asyncio.

    Raises:
        ConfigurationError: if one of the options cannot be used.
    """
    return AsyncClient(
        options.url,
        api_key=api_key(options.api_key_env),
        model=options.model,
        timeouts=Timeouts(total=options.timeout),
        retries=retries,
        insecure_http=options.insecure_http,
        metrics=options.watch,
    )


def api_key(variable: str | None) -> str | None:
    """The key from the environment variable of this name, or of the usual one; None if that is not set.

    Raises:
        ConfigurationError: if the variable that was named is not set.
    """
    key = os.environ.get(variable or _KEY_VARIABLE)
    if variable is not None and not key:
        raise ConfigurationError(f"--api-key-env: {variable} is not set; export it, or leave the option out")
    return key or None


def above_zero(kind: Callable[[str], float]) -> Callable[[str], float]:
    """A converter of argparse for finite numbers above 0."""

    def convert(text: str) -> float:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise ValueError
        return value

    convert.__name__ = "number above 0"
    return convert


class Patience(NullHook):
    """Says why nothing happens while the client waits for a server that asked to come back later."""

    def retrying(self, error: RequestError, wait: float) -> None:
        """Tell the terminal."""
        if isinstance(error, RateLimited | Unavailable):
            print(f"pedcxr: the server is starting or busy; trying again in {max(wait, 1):.0f} s", file=sys.stderr)
