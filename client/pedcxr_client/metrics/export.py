"""Ways for a client's metrics to reach Prometheus: asked for, left in a file, or pushed. Nothing starts by itself.

Labels and values are all that goes out; :mod:`.metrics` lets nothing into them that names a film or a person.
"""

from __future__ import annotations

import http.client
import os
import socket
import threading
import urllib.error
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pedcxr_client.errors import ConfigurationError

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

LOOPBACK = "127.0.0.1"
EVERY_S = 15.0
"""Seconds between two publications of a run that goes on."""


def asgi(registry: CollectorRegistry) -> Any:
    """An ASGI app that answers a scrape, to be mounted in a program's own server."""
    from prometheus_client import make_asgi_app

    return make_asgi_app(registry)


@contextmanager
def serving(registry: CollectorRegistry, port: int = 0, *, host: str = LOOPBACK) -> Iterator[str]:
    """Answer scrapes in a thread while the block runs.

    Args:
        registry: what is shown.
        port: 0 takes any free one.
        host: loopback, so that nobody else can look, unless another is given.

    Yields:
        The address to scrape.

    Raises:
        ConfigurationError: the port is taken or not allowed.
    """
    from prometheus_client import start_http_server

    try:
        server, thread = start_http_server(port, addr=host, registry=registry)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or "is no port"
        raise ConfigurationError(f"metrics port {port}: {reason}; choose another, or 0 for any free one") from error
    try:
        yield f"http://{host}:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def write(registry: CollectorRegistry, path: str | os.PathLike[str]) -> None:
    """Leave a page for node_exporter's textfile collector; whoever reads sees the old one or the new one, whole.

    Raises:
        ConfigurationError: the name does not end in ``.prom``, without which node_exporter passes it over.
        OSError: it cannot be written.
    """
    from prometheus_client import write_to_textfile

    if not os.fspath(path).endswith(".prom"):
        raise ConfigurationError("the metrics file: must end in .prom, or node_exporter does not read it")
    write_to_textfile(os.fspath(path), registry)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushgateway:
    """Where a run that ends before anybody could scrape it leaves its metrics.

    Attributes:
        url: of the Pushgateway, ``http://HOST:9091``.
        job: the group's first label.
        instance: its second, this machine and process: two runs at once must not overwrite each other.
        timeout: seconds a push or a deletion may take.

    Raises:
        ConfigurationError: if the address is none.
    """

    url: str
    job: str = "pedcxr"
    instance: str = field(default_factory=lambda: f"{socket.gethostname()}:{os.getpid()}")
    timeout: float = 5.0

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigurationError("the Pushgateway's address: give http://HOST:9091")

    def push(self, registry: CollectorRegistry) -> None:
        """Put the group as it is now in place of what was there.

        Raises:
            OSError: it did not answer in time, or not with success.
        """
        from prometheus_client import push_to_gateway

        with _as_oserror():
            push_to_gateway(self.url, self.job, registry, {"instance": self.instance}, self.timeout)

    def delete(self) -> None:
        """Take the group away: a Pushgateway never forgets, and would be scraped for a run that ended last year.

        Raises:
            OSError: it did not answer in time, or not with success.
        """
        from prometheus_client import delete_from_gateway

        with _as_oserror():
            delete_from_gateway(self.url, self.job, {"instance": self.instance}, self.timeout)


@contextmanager
def repeating(
    publish: Callable[[], None], failed: Callable[[OSError], None], *, every: float = EVERY_S
) -> Iterator[None]:
    """Publish again and again while the block runs, in a thread, and once more at its end.

    Args:
        publish: may raise OSError and must end by itself in seconds.
        failed: told of each failure, which harms nothing else.
        every: seconds.
    """
    stop = threading.Event()

    def attempt() -> None:
        try:
            publish()
        except OSError as error:
            failed(error)

    def again() -> None:
        while not stop.wait(every):
            attempt()

    thread = threading.Thread(target=again, name="pedcxr-metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        attempt()


@contextmanager
def _as_oserror() -> Iterator[None]:
    try:
        yield
    except urllib.error.HTTPError as error:
        error.close()  # prometheus_client 0.26 leaves the connection open
        raise
    except (http.client.HTTPException, ValueError) as error:
        raise OSError(f"the answer is not HTTP ({type(error).__name__})") from error
