"""uvicorn under the two apps."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import uvicorn
from starlette.types import ASGIApp

from pedcxr_serve.gateway import app
from pedcxr_serve.gateway.http.connection_limiter import room
from pedcxr_serve.gateway.http.listeners import Listeners
from pedcxr_serve.gateway.http.protocol import Connection
from pedcxr_serve.gateway.http.tls import HANDSHAKE_S, Tls
from pedcxr_serve.gateway.state import State

FLUSH_S = 2
"""Seconds that connections get to take their last bytes when the server ends."""
_POLL_S = 1.0  # between looks at tenants.toml and the certificate
_GOODBYE_S = 5.0  # that a client may take to take note of the end of a TLS connection


@contextlib.asynccontextmanager
async def serving(state: State, engine: aiohttp.ClientSession, listeners: Listeners) -> AsyncIterator[None]:
    """Serve both apps on the bound sockets while the body runs; connections still open then are closed."""
    servers = [
        (_Server(_uvicorn(app.public(state, engine)), state.tls), listeners.public),
        (_Server(_uvicorn(app.admin(state, engine))), listeners.admin),
    ]
    tasks = [asyncio.create_task(server.serve(sockets=[bound])) for server, bound in servers]
    watch = asyncio.create_task(_watch(state))
    try:
        yield
    finally:
        watch.cancel()
        for server, _ in servers:
            server.should_exit = True
        await asyncio.gather(*tasks)
        await asyncio.gather(watch, return_exceptions=True)
        await state.rate.close()


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers, which would race with ours, and with our certificates."""

    def __init__(self, config: uvicorn.Config, tls: Tls | None = None) -> None:
        super().__init__(config)
        self._tls = tls

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, as uvicorn 0.54 does on given sockets, which offers no time limit of a handshake."""
        connection = functools.partial(
            Connection,
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
            room=room(),
        )
        secured: dict[str, Any] = {}
        if self._tls is not None:
            secured = {
                "ssl": self._tls.context,
                "ssl_handshake_timeout": HANDSHAKE_S,
                "ssl_shutdown_timeout": _GOODBYE_S,
            }
        loop, backlog = asyncio.get_running_loop(), self.config.backlog
        self.servers = [
            await loop.create_server(connection, sock=bound, backlog=backlog, **secured) for bound in sockets or []
        ]
        self.started = True


async def _watch(state: State) -> None:
    while True:
        await asyncio.sleep(_POLL_S)
        state.look()


def _uvicorn(asgi: ASGIApp) -> uvicorn.Config:
    return uvicorn.Config(
        asgi,
        http=Connection,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=FLUSH_S,
    )
