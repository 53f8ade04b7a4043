"""Export the metrics of a client to Prometheus: by scrape, by text file or by Pushgateway.

Importing this module starts no thread and no server. An export contains metric names, labels and values only.
`pedcxr_client.metrics.prometheus.Metrics` keeps films and persons out of them.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pedcxr_client.errors import ConfigurationError

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

LOOPBACK = "127.0.0.1"
"""Default address of `serving`."""
EVERY_S = 15.0
"""Default interval of `repeating`, in seconds."""


def asgi(registry: CollectorRegistry) -> Any:
    """Return an ASGI app that answers scrapes, to mount in an existing server."""
    from prometheus_client import make_asgi_app

    return make_asgi_app(registry)


@contextmanager
def serving(registry: CollectorRegistry, port: int = 0, *, host: str = LOOPBACK) -> Iterator[str]:
    """Answer scrapes from a thread while the block runs.

    Args:
        registry: the metrics to expose.
        port: TCP port, or 0 for a free port.
        host: address to listen on. The default is loopback, so other machines cannot connect.

    Yields:
        The URL to scrape.

    Raises:
        ConfigurationError: the port is in use, not permitted or out of range.
    """
    from prometheus_client import start_http_server

    try:
        server, thread = start_http_server(port, addr=host, registry=registry)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or "must be an integer between 0 and 65,535"
        raise ConfigurationError(f"metrics port {port}: {reason}; choose another port, or 0 for a free one") from error
    try:
        yield f"http://{host}:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def write(registry: CollectorRegistry, path: str | os.PathLike[str]) -> None:
    """Write a file for the textfile collector of node_exporter. The file is replaced atomically.

    Raises:
        ConfigurationError: the name does not end in ``.prom``; node_exporter ignores other files.
        OSError: the file cannot be written.
    """
    from prometheus_client import write_to_textfile

    if not os.fspath(path).endswith(".prom"):
        raise ConfigurationError("metrics file: the name must end in .prom, because node_exporter ignores other files")
    write_to_textfile(os.fspath(path), registry)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushgateway:
    """A Pushgateway, for runs that may end between two scrapes.

    Attributes:
        url: URL of the Pushgateway, ``http://HOST:9091``.
        job: label ``job`` of the group.
        instance: label ``instance`` of the group. The default names host and process, so that concurrent runs do not
            overwrite each other.
        timeout: timeout of a push or a deletion, in seconds.

    Raises:
        ConfigurationError: the URL is not an HTTP URL.
    """

    url: str
    job: str = "pedcxr"
    instance: str = field(default_factory=lambda: f"{socket.gethostname()}:{os.getpid()}")
    timeout: float = 5.0

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigurationError("Pushgateway URL: must be an HTTP URL such as http://HOST:9091")

    def push(self, registry: CollectorRegistry) -> None:
        """Replace the group with the current metrics.

        Raises:
            OSError: the Pushgateway timed out, or its response was not a success.
        """
        from prometheus_client import push_to_gateway

        with _as_oserror():
            push_to_gateway(self.url, self.job, registry, {"instance": self.instance}, self.timeout)

    def delete(self) -> None:
        """Delete the group. Otherwise the Pushgateway exposes the metrics of a finished run indefinitely.

        Raises:
            OSError: the Pushgateway timed out, or its response was not a success.
        """
        from prometheus_client import delete_from_gateway

        with _as_oserror():
            delete_from_gateway(self.url, self.job, {"instance": self.instance}, self.timeout)


@contextmanager
def repeating(
    publish: Callable[[], None], on_error: Callable[[OSError], None], *, every: float = EVERY_S
) -> Iterator[None]:
    """Publish at an interval from a thread while the block runs, and once at the end of the block.

    Args:
        publish: publishes the metrics. It may raise OSError, and must return within seconds.
        on_error: called with each OSError. Publishing continues afterwards.
        every: interval in seconds.
    """
    stop = threading.Event()

    def attempt() -> None:
        try:
            publish()
        except OSError as error:
            on_error(error)

    def loop() -> None:
        while not stop.wait(every):
            attempt()

    thread = threading.Thread(target=loop, name="pedcxr-metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        attempt()


@contextmanager
def _as_oserror() -> Iterator[None]:
    # A program that does not push should not load an HTTP client when it imports pedcxr_client.
    import http.client
    import urllib.error

    try:
        yield
    except urllib.error.HTTPError as error:
        error.close()  # prometheus_client 0.26 does not close the connection
        raise
    except (http.client.HTTPException, ValueError) as error:
        raise OSError(f"the response is not HTTP ({type(error).__name__})") from error
