"""Serves the two apps with uvicorn."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import math
import re
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import aiohttp
import uvicorn
from starlette.types import ASGIApp

from pedcxr_serve.errors import ConfigError
from pedcxr_serve.gateway import app
from pedcxr_serve.gateway.http.handshakes import HandshakeServer
from pedcxr_serve.gateway.http.listeners import Listeners
from pedcxr_serve.gateway.http.protocol import Connection, connection_limiter, max_handshakes
from pedcxr_serve.gateway.http.tls import CertificateStore
from pedcxr_serve.gateway.state import State

UVICORN_VERSIONS = ((0, 53), (0, 54))
"""First and last minor version of uvicorn whose internals `Connection` and `_Server` were tested with."""
FLUSH_S = 2
"""Seconds that connections get to send their last bytes when the server stops."""
_SWITCH_INTERVAL_S = 0.001
_POLL_S = 1.0  # between two checks of tenants.toml and the certificate


@contextlib.asynccontextmanager
async def serving(state: State, engine: aiohttp.ClientSession, listeners: Listeners) -> AsyncIterator[None]:
    """Serve both apps on the bound sockets until the end of the block, then close all connections.

    Raises:
        ConfigError: this version of uvicorn is not supported.
    """
    require_uvicorn(uvicorn.__version__)
    refused = state.metrics.count_refused_connection
    servers = [
        (_Server(_uvicorn(app.public(state, engine), state.keep_alive_s), refused, state.tls), listeners.public),
        (_Server(_uvicorn(app.admin(state, engine), state.keep_alive_s), refused), listeners.admin),
    ]
    tasks = [asyncio.create_task(server.serve(sockets=[bound])) for server, bound in servers]
    public, runtime = servers[0][0], state.metrics.runtime
    runtime.connections.set_function(lambda: len(public.server_state.connections))
    runtime.handshakes.set_function(lambda: public.handshakes)
    state.shared_limits.start()
    watch = asyncio.gather(_watch(state), runtime.measure_loop_lag())
    try:
        with short_pauses():
            yield
    finally:
        watch.cancel()
        for server, _ in servers:
            server.should_exit = True
        await asyncio.gather(*tasks)
        await asyncio.gather(watch, return_exceptions=True)
        await state.shared_limits.stop()
        await state.rate_limiter.close()


def require_uvicorn(version: str) -> None:
    """Raise ConfigError unless the version is within `UVICORN_VERSIONS`."""
    match = re.match(r"(\d+)\.(\d+)", version)
    first, last = UVICORN_VERSIONS
    if match is None or not first <= (int(match[1]), int(match[2])) <= last:
        raise ConfigError(
            f"uvicorn {version} is not supported: the gateway subclasses internals of uvicorn {first[0]}.{first[1]} to "
            f"{last[0]}.{last[1]}; install 'uvicorn>={first[0]}.{first[1]},<{last[0]}.{last[1] + 1}'"
        )


class _Server(uvicorn.Server):
    """uvicorn's server with our certificates and without its signal handlers, which would race with ours.

    ``refused`` is called with the reason for each connection that is closed without an answer of the app.
    """

    def __init__(
        self, config: uvicorn.Config, refused: Callable[[str], None], tls: CertificateStore | None = None
    ) -> None:
        super().__init__(config)
        self._tls, self._refused = tls, refused

    @property
    def handshakes(self) -> int:
        """Number of TLS handshakes in progress."""
        return sum(len(server) for server in getattr(self, "servers", ()) if isinstance(server, HandshakeServer))

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen on bound sockets as uvicorn 0.54 does, but with limits on TLS handshakes."""
        connection = functools.partial(
            Connection,
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
            limiter=connection_limiter(),
            refused=self._refused,
        )
        loop, backlog = asyncio.get_running_loop(), self.config.backlog
        servers: list[Any] = []
        for bound in sockets or []:
            if self._tls is None:
                servers.append(await loop.create_server(connection, sock=bound, backlog=backlog))
            else:
                context, limit = self._tls.context, max_handshakes()
                servers.append(HandshakeServer(bound, connection, context, limit=limit, refused=self._refused))
        self.servers = servers
        self.started = True


@contextlib.contextmanager
def short_pauses() -> Iterator[None]:
    """Keep the interpreter from stopping the event loop, and with it all streams, for longer than a few milliseconds.

    A thread that renders metrics or decodes a film gives the interpreter back after 1 instead of 5 ms, each time that
    the loop wants it. The collector of cyclic garbage passes over the objects of the modules: a full collection with
    them takes 50 ms.
    """
    interval = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        sys.setswitchinterval(interval)


async def _watch(state: State) -> None:
    while True:
        await asyncio.sleep(_POLL_S)
        state.reload_if_changed()


def _uvicorn(asgi: ASGIApp, keep_alive_s: float) -> uvicorn.Config:
    return uvicorn.Config(
        asgi,
        http=Connection,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=math.ceil(keep_alive_s),
        timeout_graceful_shutdown=FLUSH_S,
    )
