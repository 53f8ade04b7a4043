"""The public ASGI app: what is served, and that nothing else is."""

from __future__ import annotations

from pathlib import Path

import aiohttp
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from pedcxr_serve.gateway import error_responses
from pedcxr_serve.gateway.chat import ChatCompletions, authenticate
from pedcxr_serve.gateway.http.access_log import Observe
from pedcxr_serve.gateway.state import State


def engine_connector(socket: Path) -> aiohttp.UnixConnector:
    """A connection a request to the engine: reuse would race with the engine closing idle ones and lose a report for
    0.1 ms, and several API servers on one socket share new ones out evenly (vLLM 0.32, ``launchers/launcher.py``)."""
    return aiohttp.UnixConnector(str(socket), limit=0, force_close=True)


def engine_session(state: State) -> aiohttp.ClientSession:
    """A session to the engine's socket; must be made in, and closed by, the event loop that uses it."""
    return aiohttp.ClientSession(
        "http://engine",
        connector=engine_connector(state.socket),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=5),
        auto_decompress=False,
        skip_auto_headers=("User-Agent", "Accept-Encoding"),
    )


def public(state: State, engine: aiohttp.ClientSession) -> Starlette:
    """The app of the public address."""

    async def live(_: Request) -> Response:
        return JSONResponse({"status": "live"})

    async def ready(_: Request) -> Response:
        if state.ready:
            return JSONResponse({"status": "ready"})
        return JSONResponse(
            {"status": "not ready", "stage": state.stage}, 503, {"Retry-After": str(error_responses.RETRY_AFTER_S)}
        )

    async def models(request: Request) -> Response:
        return await _models(state, engine, request)

    async def nothing(_request: Request, _error: Exception) -> Response:
        return error_responses.not_found()

    served = Starlette(
        routes=[
            Route("/v1/chat/completions", ChatCompletions(state, engine), methods=["POST"]),
            Route("/v1/models", models),
            Route("/health/live", live),
            Route("/health/ready", ready),
            Route("/health", ready),
        ],
        middleware=[Middleware(Observe, state=state)],
        exception_handlers={404: nothing, 405: nothing},
    )
    served.router.redirect_slashes = False
    return served


def admin(state: State, engine: aiohttp.ClientSession) -> Starlette:
    """The app of the admin port: ``/metrics``, the gateway's and the engine's in one page, and ``/usage``."""
    from prometheus_client import generate_latest

    async def metrics(_: Request) -> Response:
        unaudited = 0 if state.audit is None else state.audit.failures
        state.meter.look(state.gate.admission, broken=state.book.broken is not None, unaudited=unaudited)
        return PlainTextResponse(
            generate_latest(state.metrics.registry) + await _engine_metrics(engine),
            media_type="text/plain; version=0.0.4; charset=utf-8",
        )

    async def usage(request: Request) -> Response:
        """``?since=YYYY-MM-DD``, a day in UTC."""
        return JSONResponse({"days": state.usage.days(request.query_params.get("since", ""))})

    async def nothing(_request: Request, _error: Exception) -> Response:
        return PlainTextResponse("there are /metrics and /usage here\n", 404)

    routes = [Route("/metrics", metrics), Route("/usage", usage)]
    return Starlette(routes=routes, exception_handlers={404: nothing, 405: nothing})


async def _models(state: State, engine: aiohttp.ClientSession, request: Request) -> Response:
    tenant = authenticate(state, request.headers)
    if tenant is None:
        state.meter.unauthenticated.inc()
        return error_responses.unauthorized()
    if not state.ready:
        return error_responses.unavailable(state.stage)
    try:
        async with engine.get("/v1/models") as answer:
            found = (await answer.json())["data"]
    except aiohttp.ClientError:
        return error_responses.engine_failed()
    # The engine's own answer holds the path of the checkpoint's folder ("root").
    kept = ("id", "object", "created", "max_model_len")
    ours = {
        "owned_by": "pedcxr",
        "pedcxr": {"image_size": list(state.image_size), "revision": state.revision, "demo": state.demo},
    }
    data = [{key: model[key] for key in kept if key in model} | ours for model in found if tenant.may_use(model["id"])]
    headers = {"X-Pedcxr-Demo": "1"} if state.demo else None
    return JSONResponse({"object": "list", "data": data}, headers=headers)


async def _engine_metrics(engine: aiohttp.ClientSession) -> bytes:
    try:
        async with engine.get("/metrics", timeout=aiohttp.ClientTimeout(total=5)) as answer:
            return await answer.read() if answer.status == 200 else b""
    except (aiohttp.ClientError, TimeoutError):
        return b"# the engine does not answer\n"
