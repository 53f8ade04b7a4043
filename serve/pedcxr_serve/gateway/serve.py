"""uvicorn under the two apps."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

import aiohttp
import uvicorn
from starlette.types import ASGIApp

from ..listeners import Listeners
from . import app
from .connection import Connection
from .state import State

FLUSH_S = 2
"""Seconds that connections get to take their last bytes when the server ends."""


@contextlib.asynccontextmanager
async def serving(state: State, engine: aiohttp.ClientSession, listeners: Listeners) -> AsyncIterator[None]:
    """Serve both apps on the bound sockets while the body runs; connections still open then are closed."""
    servers = [
        (_Server(_uvicorn(app.public(state, engine))), listeners.public),
        (_Server(_uvicorn(app.admin(state, engine))), listeners.admin),
    ]
    tasks = [asyncio.create_task(server.serve(sockets=[bound])) for server, bound in servers]
    watch = asyncio.create_task(state.book.watch())
    try:
        yield
    finally:
        watch.cancel()
        for server, _ in servers:
            server.should_exit = True
        await asyncio.gather(*tasks)
        await asyncio.gather(watch, return_exceptions=True)


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers, which would race with ours."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


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
