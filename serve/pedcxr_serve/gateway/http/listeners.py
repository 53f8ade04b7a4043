"""The two addresses of a server, bound before anything slow starts."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass

from pedcxr_serve.config.load import GatewayConfig
from pedcxr_serve.errors import PortInUse


@dataclass(frozen=True, slots=True)
class Listeners:
    """The two bound sockets, taken before the engine loads: a taken port is told in milliseconds, not minutes.

    Attributes:
        scheme: of the public one, ``http`` or ``https``; the admin port speaks plain HTTP on loopback.
    """

    public: socket.socket
    admin: socket.socket
    scheme: str = "http"

    @property
    def url(self) -> str:
        """Base URL for OpenAI clients."""
        return f"{self.scheme}://{_address(self.public)}/v1"

    @property
    def metrics_url(self) -> str:
        """URL that Prometheus scrapes."""
        return f"http://{_address(self.admin)}/metrics"


@contextlib.contextmanager
def listen(config: GatewayConfig) -> Iterator[Listeners]:
    """Bind both ports.

    Raises:
        PortInUse: naming the key of the port to change.
    """
    with contextlib.ExitStack() as stack:
        public = stack.enter_context(_bind(config.host, config.port, "gateway.port"))
        admin = stack.enter_context(_bind("127.0.0.1", config.admin_port, "gateway.admin_port"))
        yield Listeners(public, admin, "https" if config.tls_cert else "http")


def _bind(host: str, port: int, key: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Named, since asyncio turns Nagle's delay off (40 ms a streamed token) only for sockets that name their protocol.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host.strip("[]"), port))
        bound.listen(2048)
    except OSError as error:
        bound.close()
        raise PortInUse(
            f"{key} = {port}: cannot listen on {host}:{port}: {error.strerror}; stop what listens there, "
            f"or choose another with --{key.partition('.')[2].replace('_', '-')}"
        ) from error
    return bound


def _address(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
