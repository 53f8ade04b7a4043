"""Access to an engine that runs apart from its gateways: its key, its description, and its orderly stop.

`EngineAccess` is ASGI middleware that vLLM loads in each of its API processes (``--middleware``). Its files are in the
locked folder of the engine (`pedcxr_serve.engine.socket_dir`):

===================  ==================================================================================
``engine.json``      the `EngineDescription`
``stopping``         exists while the engine accepts no further request
``in-flight``        each API process holds a shared lock while it has a request
===================  ==================================================================================

The kernel releases the lock of a process that dies. Thus an exclusive lock shows that no request is in flight.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hmac
import json
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any

import msgspec

from pedcxr_serve.config import secret_file
from pedcxr_serve.engine import description
from pedcxr_serve.engine.description import EngineDescription

MIDDLEWARE = f"{__name__}.EngineAccess"
"""Value of vLLM's option ``--middleware``."""

FOLDER_VARIABLE = "PEDCXR_ENGINE_FOLDER"
"""Environment variable of vLLM with the folder that `prepare` has filled."""
_KEY_VARIABLE = "PEDCXR_ENGINE_KEY_FILE"
_DESCRIPTION, _STOPPING, _IN_FLIGHT = "engine.json", "stopping", "in-flight"
_STOPPING_CODE = "engine_stopping"
_PROBED = "/health"  # probes of orchestrators cannot send a key; the route tells nothing but the health
_POLL_S = 0.05
_RETRY_AFTER_S = 2

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class RequireBearer:
    """ASGI middleware that answers 401 unless a request carries ``Authorization: Bearer TOKEN``.

    Args:
        public: paths that need no token.
    """

    def __init__(self, app: App, token: str, public: frozenset[str] = frozenset()) -> None:
        self._app, self._token, self._public = app, token.encode(), public

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope["path"] in self._public or self._authorized(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await _answer(send, 401, "the key is missing or wrong; send Authorization: Bearer KEY", "invalid_key")

    def _authorized(self, scope: Scope) -> bool:
        values = [value for name, value in scope["headers"] if name == b"authorization"]
        scheme, _, token = values[0].partition(b" ") if len(values) == 1 else (b"", b"", b"")
        return scheme.lower() == b"bearer" and hmac.compare_digest(token.strip(), self._token)


class EngineAccess:
    """ASGI middleware that answers the description, refuses requests while the engine stops, and checks the key."""

    def __init__(self, app: App) -> None:
        folder = Path(os.environ[FOLDER_VARIABLE])
        self._app = app
        self._description = (folder / _DESCRIPTION).read_bytes()
        self._stopping = folder / _STOPPING
        self._requests = _SharedLock(folder / _IN_FLIGHT)
        key_file = os.environ.get(_KEY_VARIABLE)
        self._checked: App = self._route
        if key_file:
            self._checked = RequireBearer(self._route, secret_file.read(Path(key_file)), frozenset({_PROBED}))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        else:
            await self._checked(scope, receive, send)

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path == description.PATH:
            await _send(send, 200, self._description)
        elif path == _PROBED:
            if self._stopping.exists():
                await _stopping(send)
            else:
                await self._app(scope, receive, send)
        elif scope["type"] == "http" and scope["method"] == "POST":
            with self._requests.held() as held:
                # The lock comes first, so that `drain`, which creates the file, waits for this request.
                if held and not self._stopping.exists():
                    await self._app(scope, receive, send)
                else:
                    await _stopping(send)
        else:
            await self._app(scope, receive, send)


def prepare(folder: Path, engine: EngineDescription, key_file: Path | None) -> dict[str, str]:
    """Write the files of `EngineAccess`, and return the environment variables of the engine."""
    (folder / _STOPPING).unlink(missing_ok=True)
    (folder / _IN_FLIGHT).touch(mode=0o600)
    (folder / _DESCRIPTION).write_bytes(msgspec.json.encode(engine))
    return {FOLDER_VARIABLE: str(folder)} | ({_KEY_VARIABLE: str(key_file)} if key_file else {})


def is_stopping(answer: bytes) -> bool:
    """Return whether the body of a 503 says that the engine stops, and thus has not begun the request."""
    return f'"code": "{_STOPPING_CODE}"'.encode() in answer


async def drain(folder: Path) -> None:
    """Refuse further requests from now on, and wait until no request is in flight."""
    (folder / _STOPPING).touch(mode=0o600)
    with (folder / _IN_FLIGHT).open("rb") as file:
        while True:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            await asyncio.sleep(_POLL_S)


def remove(folder: Path) -> None:
    """Remove the files of `prepare`."""
    for name in (_DESCRIPTION, _STOPPING, _IN_FLIGHT):
        (folder / name).unlink(missing_ok=True)


class _SharedLock:
    """A shared lock on a file, held by this process while at least one request is in flight."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # until the process ends
        self._count = 0

    @contextlib.contextmanager
    def held(self) -> Iterator[bool]:
        """Hold the lock during the block; yield False if `drain` has found no request in flight."""
        if not self._count:
            try:
                fcntl.flock(self._file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
        self._count += 1
        try:
            yield True
        finally:
            self._count -= 1
            if not self._count:
                fcntl.flock(self._file, fcntl.LOCK_UN)


async def _stopping(send: Send) -> None:
    await _answer(send, 503, "the engine is stopping", _STOPPING_CODE, {"retry-after": str(_RETRY_AFTER_S)})


async def _answer(send: Send, status: int, message: str, code: str, headers: Mapping[str, str] | None = None) -> None:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    await _send(send, status, json.dumps({"error": error}).encode(), headers)


async def _send(send: Send, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
    fields = {"content-type": "application/json", "content-length": str(len(body))} | dict(headers or {})
    if status == 401:
        fields["www-authenticate"] = "Bearer"
    pairs = [(name.encode(), value.encode()) for name, value in fields.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})
