"""The two listening sockets of a server, bound before the engine loads, so that a port in use is reported at once."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterator
from dataclasses import dataclass

from pedcxr_serve.config.settings import GatewayConfig
from pedcxr_serve.errors import PortInUse


@dataclass(frozen=True, slots=True)
class Listeners:
    """The sockets of the API and of the admin port: metrics and usage, over plain HTTP."""

    public: socket.socket
    admin: socket.socket
    scheme: str = "http"

    @property
    def url(self) -> str:
        """Base URL for OpenAI clients, ending in ``/v1``."""
        return f"{self.scheme}://{_address(self.public)}/v1"

    @property
    def metrics_url(self) -> str:
        """URL for Prometheus."""
        return f"http://{_address(self.admin)}/metrics"


@contextlib.contextmanager
def listen(config: GatewayConfig) -> Iterator[Listeners]:
    """Bind both ports until the end of the block.

    Raises:
        PortInUse: a port cannot be bound; the message names its setting.
    """
    with contextlib.ExitStack() as stack:
        public = stack.enter_context(_bind(config.host, config.port, "gateway.port"))
        admin = stack.enter_context(_bind(config.admin_host, config.admin_port, "gateway.admin_port"))
        yield Listeners(public, admin, "https" if config.tls_cert else "http")


def _bind(host: str, port: int, key: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # IPPROTO_TCP is explicit because asyncio sets TCP_NODELAY only on such sockets. Without it Nagle's algorithm delays
    # each streamed token by 40 ms.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host.strip("[]"), port))
        bound.listen(2048)
    except OSError as error:
        bound.close()
        option = f"--{key.partition('.')[2].replace('_', '-')}"
        remedy = f"choose another address with {option.replace('port', 'host')}"
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            remedy = f"stop the program that uses the port, or choose another port with {option}"
        raise PortInUse(f"{key} = {port}: cannot listen on {host}:{port}: {error.strerror}; {remedy}") from error
    return bound


def _address(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
