"""The ASGI apps of the public port and of the admin port, with all routes of the server."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import aiohttp
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from pedcxr_serve.engine import address
from pedcxr_serve.engine.access import RequireBearer
from pedcxr_serve.gateway import error_responses
from pedcxr_serve.gateway.accounting import metrics as metrics_page
from pedcxr_serve.gateway.auth.models import may_use
from pedcxr_serve.gateway.chat import ChatCompletions, authenticate, key_name
from pedcxr_serve.gateway.http.access_log import AccessLog
from pedcxr_serve.gateway.http.engine_client import EngineClient
from pedcxr_serve.gateway.http.host_check import HostCheck
from pedcxr_serve.gateway.state import State

_DAY = re.compile(r"\d{4}-\d\d-\d\d")
_EXPOSED = ("x-request-id", "retry-after", "x-pedcxr-demo", "x-pedcxr-film", "x-pedcxr-ignored", "x-pedcxr-revision")


def engine_session(state: State) -> aiohttp.ClientSession:
    """Return a session to the engine, to be created in and closed by the event loop that uses it."""
    return address.session(state.engine_address, state.engine_key)


def public(state: State, engine: aiohttp.ClientSession) -> Starlette:
    """Return the app of the public port."""

    async def live(_: Request) -> Response:
        return JSONResponse({"status": "live"})

    async def ready(_: Request) -> Response:
        if state.ready and state.stage == "ready":
            return JSONResponse({"status": "ready"})
        return JSONResponse(
            {"status": "not ready", "stage": state.stage}, 503, {"Retry-After": str(error_responses.RETRY_AFTER_S)}
        )

    async def models(request: Request) -> Response:
        entries = await _models(state, engine, request)
        if isinstance(entries, Response):
            return entries
        return JSONResponse({"object": "list", "data": entries}, headers=demo())

    async def model(request: Request) -> Response:
        entries = await _models(state, engine, request)
        if isinstance(entries, Response):
            return entries
        entry = next((entry for entry in entries if entry["id"] == request.path_params["name"]), None)
        return JSONResponse(entry, headers=demo()) if entry else error_responses.response("model_not_found")

    async def not_found(_request: Request, _error: Exception) -> Response:
        return error_responses.response("not_found")

    def demo() -> dict[str, str] | None:
        return {"X-Pedcxr-Demo": "1"} if state.demo else None

    middleware = [Middleware(AccessLog, state=state), Middleware(HostCheck, state=state)]
    if state.allowed_origins:
        cors = Middleware(
            CORSMiddleware,
            allow_origins=state.allowed_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=_EXPOSED,
        )
        middleware.insert(0, cors)  # a preflight request has no key
    client = EngineClient(state.engine_address, state.engine_key)
    state.end_requests = client.close
    app = Starlette(
        routes=[
            Route("/v1/chat/completions", ChatCompletions(state, client), methods=["POST"]),
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", model),
            Route("/health/live", live),
            Route("/health/ready", ready),
            Route("/health", ready),
        ],
        middleware=middleware,
        exception_handlers={404: not_found, 405: not_found},
    )
    app.router.redirect_slashes = False
    return app


def admin(state: State, engine: aiohttp.ClientSession) -> Starlette:
    """Return the app of the admin port: ``/metrics``, of gateway and engine in one page, and ``/usage``."""

    async def metrics(_: Request) -> Response:
        unaudited = 0 if state.audit is None else state.audit.failures
        state.metrics.runtime.count_write_failures("audit", unaudited)
        state.metrics.runtime.count_write_failures("usage", state.usage.failures)
        tenants = state.tenants.current.all.values()
        broken = state.tenants.broken is not None
        state.tenant_metrics.update_gauges(state.scheduler.queue, tenants, broken=broken, unaudited=unaudited)
        return PlainTextResponse(
            await metrics_page.render(state.metrics.registry) + await _engine_metrics(engine),
            media_type="text/plain; version=0.0.4; charset=utf-8",
        )

    async def usage(request: Request) -> Response:
        # ?since=YYYY-MM-DD, a day in UTC
        since = request.query_params.get("since", "")
        if since and not _DAY.fullmatch(since):
            return PlainTextResponse("since must be a day such as 2027-06-30\n", 400)
        return JSONResponse({"replica": state.replica, "ledger": state.usage.ledger, "days": state.usage.days(since)})

    async def not_found(_request: Request, _error: Exception) -> Response:
        return PlainTextResponse("no such route; this port has /metrics and /usage\n", 404)

    routes = [Route("/metrics", metrics), Route("/usage", usage)]
    # A token is a better guard than the name of the host, which a scraper on another machine does not know.
    guard = (
        Middleware(RequireBearer, token=state.admin_token) if state.admin_token else Middleware(HostCheck, state=state)
    )
    return Starlette(routes=routes, middleware=[guard], exception_handlers={404: not_found, 405: not_found})


async def _models(state: State, engine: aiohttp.ClientSession, request: Request) -> list[dict[str, Any]] | Response:
    """Return the models that the tenant may use, or the answer that refuses the request."""
    tenant = authenticate(state, request.headers)
    if tenant is None:
        state.tenant_metrics.unauthenticated.inc()
        return error_responses.response("invalid_api_key")
    request.scope["state"] |= {"tenant": tenant.name, "key": key_name(state, request.headers)}
    if not state.ready:
        return error_responses.response("not_ready", stage=state.stage)
    try:
        models = await state.models.get(engine)
    except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError):
        return error_responses.response("engine_lost")
    # Other fields are dropped: the engine's ``root`` is the path of the checkpoint folder.
    public_fields = ("id", "object", "created", "max_model_len")
    extra_fields = {
        "owned_by": "pedcxr",
        # Clients that read one of these remove the images of a model that does not state that it sees.
        "architecture": {"input_modalities": ["text", "image"], "output_modalities": ["text"]},
        "capabilities": {"vision": True},
    }
    rules, default = state.rules, tenant.default_model or state.rules.model
    base = models.get(rules.model, {})
    return [
        {key: model[key] for key in public_fields if key in model}
        # vLLM 0.32 states no length for an adapter.
        | {key: base[key] for key in ("max_model_len",) if key in base}
        | extra_fields
        | {
            "pedcxr": {
                "image_size": list(state.image_size),
                "revision": state.revision_of(name),
                "adapter": name in rules.adapters,
                "default": name == default,
                "demo": state.demo,
            }
        }
        for name, model in models.items()
        if may_use(tenant, name, rules.adapters)
    ]


async def _engine_metrics(engine: aiohttp.ClientSession) -> bytes:
    try:
        async with asyncio.timeout(5), engine.get("/metrics") as answer:
            return await answer.read() if answer.status == 200 else b""
    except (aiohttp.ClientError, TimeoutError):
        return b"# the engine does not answer\n"
