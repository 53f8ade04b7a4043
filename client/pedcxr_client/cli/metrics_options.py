"""The options of every command that asks a server about its metrics, and what comes of them."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from pedcxr_client.errors import ConfigurationError
from pedcxr_client.metrics.hooks import Hook, NullHook

if TYPE_CHECKING:
    from pedcxr_client.metrics.export import Pushgateway

_DEMO = "pedcxr-demo"
_LINGER_S = 20.0  # a scrape every 15 s, and a little


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    group = parser.add_argument_group("metrics for Prometheus, none of which is on by default")
    group.add_argument("--metrics-textfile", metavar="FILE.prom", help="keep a page there for node_exporter")
    group.add_argument("--metrics-push", metavar="URL", help="push to this Pushgateway, and delete in the end")
    group.add_argument(
        "--metrics-linger", metavar="S", type=_seconds, default=_LINGER_S,
        help="seconds between the last push and the deletion, for a scrape to happen (default: %(default)g)",
    )  # fmt: skip
    group.add_argument("--metrics-port", metavar="PORT", type=int, help="answer scrapes on 127.0.0.1; 0: any free port")


@contextmanager
def published(options: argparse.Namespace) -> Iterator[Hook]:
    """The hook that watches a command's client; what it saw is published while the block runs and at its end.

    Nothing that goes wrong at publishing changes how the command ends.

    Raises:
        ConfigurationError: an option cannot be used; nothing was asked of a server yet.
    """
    if not any(getattr(options, f"metrics_{way}", None) is not None for way in ("textfile", "push", "port")):
        yield NullHook()
        return
    from prometheus_client import CollectorRegistry

    from pedcxr_client.metrics import export
    from pedcxr_client.metrics.prometheus import Metrics

    registry = CollectorRegistry()
    metrics = Metrics(registry, models={options.model or _DEMO})
    with ExitStack() as stack:
        if options.metrics_port is not None:
            address = stack.enter_context(export.serving(registry, options.metrics_port))
            print(f"pedcxr: metrics at {address}", file=sys.stderr)
        if (path := options.metrics_textfile) is not None:
            try:
                export.write(registry, path)
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or "is no path"
                raise ConfigurationError(f"--metrics-textfile: cannot be written: {reason}") from error
            failed = _complaint("--metrics-textfile: not written")
            stack.enter_context(export.repeating(lambda: export.write(registry, path), failed))
        if options.metrics_push is not None:
            gateway = export.Pushgateway(url=options.metrics_push)
            stack.push(lambda kind, _error, _trace: _forget(gateway, 0 if kind is not None else options.metrics_linger))
            failed = _complaint("--metrics-push: the Pushgateway did not take them")
            stack.enter_context(export.repeating(lambda: gateway.push(registry), failed))
        yield metrics


def _complaint(what: str) -> Callable[[OSError], None]:
    """Says so once; a run of hours would say it a thousand times."""
    said: list[OSError] = []

    def complain(error: OSError) -> None:
        if not said:
            print(f"pedcxr: {what}: {getattr(error, 'reason', None) or error.strerror or error}", file=sys.stderr)
        said.append(error)

    return complain


def _forget(gateway: Pushgateway, linger: float) -> None:
    with suppress(KeyboardInterrupt):  # which ends the waiting
        time.sleep(linger)
    try:
        gateway.delete()
    except OSError as error:
        _complaint("--metrics-push: not deleted")(error)


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 3600:
        raise ValueError
    return value
