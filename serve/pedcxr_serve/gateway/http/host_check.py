"""Middleware that refuses the requests of web pages and of other machines to a server without API keys."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from pedcxr_serve.config.load import is_loopback
from pedcxr_serve.gateway import error_responses
from pedcxr_serve.gateway.state import State

# Nearly every proxy sets one of these. A value in any form but plain addresses counts as another machine.
_FORWARDED = ("x-forwarded-for", "x-real-ip", "forwarded", "via")


class HostCheck:
    """ASGI middleware. Without a tenants file, the Host header must name this machine or an allowed host.

    A server without keys listens on loopback. A web page in a browser on this machine can nevertheless send requests
    to it, and can read the answers once its own name resolves to 127.0.0.1 (DNS rebinding). Its requests carry that
    name. A page under another name that sends to 127.0.0.1 states its ``Origin``, which must be allowed
    (``gateway.allowed_origins``) or of a host that is.

    A proxy on this machine connects from loopback too, and its clients choose the Host header. So a name of this
    machine counts only if no proxy names a client on another machine.
    """

    def __init__(self, app: ASGIApp, state: State) -> None:
        self._app, self._state = app, state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._state.tenants.current.is_anonymous:
            headers = Headers(scope=scope)
            if not self._may_ask(headers) or not self._may_send(headers.get("origin")):
                await error_responses.response("foreign_host")(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _may_ask(self, headers: Headers) -> bool:
        authority = headers.get("host", "localhost")  # a browser always sends Host
        return (is_local(authority) and _is_from_here(headers)) or self._is_allowed(authority)

    def _may_send(self, origin: str | None) -> bool:
        origins = self._state.allowed_origins
        if origin is None or "*" in origins or origin in origins:
            return True
        authority = origin.partition("://")[2]
        return is_local(authority) or self._is_allowed(authority)

    def _is_allowed(self, authority: str) -> bool:
        hosts = self._state.allowed_hosts
        return "*" in hosts or _host_of(authority) in hosts


def is_local(authority: str) -> bool:
    """Return whether ``HOST`` or ``HOST:PORT`` names this machine by ``localhost`` or a loopback address."""
    return is_loopback(_host_of(authority))


def _is_from_here(headers: Headers) -> bool:
    values = [value for name in _FORWARDED for value in headers.getlist(name)]
    return all(is_loopback(address.strip()) for value in values for address in value.split(","))


def _host_of(authority: str) -> str:
    try:
        return urlsplit(f"//{authority}").hostname or ""
    except ValueError:
        return ""
