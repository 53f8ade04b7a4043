"""Middleware that refuses the requests of web pages to a server without API keys."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from pedcxr_serve.gateway import error_responses
from pedcxr_serve.gateway.state import State


class HostCheck:
    """ASGI middleware. Without a tenants file, the Host header must name this machine or an allowed host.

    A server without keys listens on loopback. A web page in a browser on this machine can nevertheless send requests
    to it, and can read the answers once its own name resolves to 127.0.0.1 (DNS rebinding). Its requests carry that
    name. A page under another name that sends to 127.0.0.1 states its ``Origin``, which must be allowed
    (``gateway.allowed_origins``) or of a host that is.
    """

    def __init__(self, app: ASGIApp, state: State) -> None:
        self._app, self._state = app, state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._state.tenants.current.is_anonymous:
            headers = Headers(scope=scope)
            # A browser always sends Host.
            if not self._is_known(headers.get("host")) or not self._may_send(headers.get("origin")):
                await error_responses.response("foreign_host")(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _is_known(self, authority: str | None) -> bool:
        allowed = self._state.allowed_hosts
        return authority is None or "*" in allowed or is_local(authority) or _host_of(authority) in allowed

    def _may_send(self, origin: str | None) -> bool:
        allowed = self._state.allowed_origins
        if origin is None or "*" in allowed or origin in allowed:
            return True
        return self._is_known(origin.partition("://")[2])


def is_local(authority: str) -> bool:
    """Return whether ``HOST`` or ``HOST:PORT`` names this machine by ``localhost`` or a loopback address."""
    host = _host_of(authority)
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _host_of(authority: str) -> str:
    try:
        return urlsplit(f"//{authority}").hostname or ""
    except ValueError:
        return ""
