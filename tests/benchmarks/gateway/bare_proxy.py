"""What the gateway's cost is compared with: a proxy in its own libraries, and a relay that copies bytes.

The proxy reads a body, sends it to the engine and passes the answer on. Nothing is authenticated, validated, scheduled,
counted or audited. The relay does not even parse HTTP: no process in Python between client and engine costs less.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import aiohttp
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from pedcxr_serve.engine import address


async def serve(engine: Path, address_file: Path) -> None:
    """Serve until cancelled.

    Args:
        engine: the engine's Unix socket.
        address_file: receives the base URL, which ends in ``/v1``.
    """
    async with aiohttp.ClientSession("http://engine", connector=address.connector(engine)) as session:

        async def forward(request: Request) -> StreamingResponse:
            body = await request.body()
            answer = await session.post(request.url.path, data=body, headers={"Content-Type": "application/json"})

            async def chunks() -> AsyncIterator[bytes]:
                async with answer:
                    async for chunk in answer.content.iter_any():
                        yield chunk

            return StreamingResponse(chunks(), answer.status, {"Content-Type": answer.headers["Content-Type"]})

        routes = [Route("/v1/chat/completions", forward, methods=["POST"])]
        config = uvicorn.Config(Starlette(routes=routes), log_config=None, access_log=False, lifespan="off")
        with socket.create_server(("127.0.0.1", 0), backlog=2048) as bound:
            serving = asyncio.create_task(uvicorn.Server(config).serve(sockets=[bound]))
            _announce(address_file, bound.getsockname()[1])
            await serving


async def relay(engine: Path, address_file: Path) -> None:
    """Copy bytes between clients and engine until cancelled. The arguments are those of `serve`."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Client(engine), "127.0.0.1", 0, backlog=2048)
    _announce(address_file, server.sockets[0].getsockname()[1])
    await server.serve_forever()


class _Client(asyncio.Protocol):
    """One connection of a client, with a connection of its own to the engine."""

    def __init__(self, engine: Path) -> None:
        self._engine, self._waiting = engine, [b""]
        self._transport: asyncio.Transport | None = None
        self._upstream: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._connecting = asyncio.ensure_future(self._connect(self._transport))

    async def _connect(self, client: asyncio.Transport) -> None:
        loop = asyncio.get_running_loop()
        upstream, _ = await loop.create_unix_connection(lambda: _Upstream(client), str(self._engine))
        upstream.writelines(self._waiting)
        self._upstream = upstream

    def data_received(self, data: bytes) -> None:
        if self._upstream is None:
            self._waiting.append(data)
        else:
            self._upstream.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connecting.cancel()
        if self._upstream is not None:
            self._upstream.close()


class _Upstream(asyncio.Protocol):
    def __init__(self, client: asyncio.Transport) -> None:
        self._client = client
        self.data_received = client.write  # type: ignore[method-assign, assignment]  # not even a call of our own

    def connection_lost(self, exc: Exception | None) -> None:
        self._client.close()


def _announce(address_file: Path, port: int) -> None:
    new = address_file.with_suffix(".new")
    new.write_text(f"http://127.0.0.1:{port}/v1")
    new.rename(address_file)
