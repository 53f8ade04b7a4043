"""The least that a proxy in the gateway's own libraries does: read a body, send it to the engine, pass the answer on.

Nothing is authenticated, validated, scheduled, counted or audited. The gateway's cost is stated as a multiple of its.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

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
            new = address_file.with_suffix(".new")
            new.write_text(f"http://127.0.0.1:{bound.getsockname()[1]}/v1")
            new.rename(address_file)
            await serving
