"""A gateway in a thread, on real sockets, in front of a `FakeEngine`."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import uvloop

from pedcxr_serve.config.settings import GatewayConfig
from pedcxr_serve.gateway import app
from pedcxr_serve.gateway.http.listeners import Listeners, listen
from pedcxr_serve.gateway.http.server import serving
from pedcxr_serve.gateway.state import State
from tests.support.servers.fake_engine import FakeEngine, RecordedRequest

CHAT = "/v1/chat/completions"
LIMIT = 1 << 20
FILM = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)
BODY: dict[str, Any] = {
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": FILM}},
                {"type": "text", "text": "Generate a report."},
            ],
        }
    ]
}
BODY_TOKENS = 256 + len("Generate a report.") // 4 + 10
"""The gateway's estimate of the prompt tokens of `BODY`."""
ERROR_KEYS = {"message", "type", "param", "code"}


@dataclass
class Gateway:
    state: State
    listeners: Listeners
    engine: FakeEngine

    @property
    def root(self) -> str:
        return self.listeners.url.removesuffix("/v1")

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.listeners.public.getsockname()[:2]
        return host, port

    def client(self, key: str | None = None) -> httpx.Client:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        # verify=False saves the 30 ms that reading the system's certificates takes.
        return httpx.Client(base_url=self.root, timeout=60, headers=headers, verify=False, trust_env=False)

    def metrics(self) -> str:
        return httpx.get(self.listeners.metrics_url, timeout=60).text

    def usage(self) -> dict[str, Any]:
        page = httpx.get(self.listeners.metrics_url.replace("metrics", "usage"), timeout=60)
        days: dict[str, Any] = page.json()["days"]
        return days


def raw_post(body: dict[str, Any]) -> bytes:
    """Return the bytes of a request for a report, for a client that a test disconnects."""
    data = json.dumps(body).encode()
    return f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data


def sent_messages(request: RecordedRequest) -> list[dict[str, Any]]:
    """Return the messages that the engine received, without the name that the gateway gives to the film."""
    messages: list[dict[str, Any]] = request.json["messages"]
    for message in messages:
        for part in message["content"] if isinstance(message["content"], list) else ():
            part.pop("uuid", None)
    return messages


@contextmanager
def running(engine: FakeEngine, *, demo: bool = True, **fields: Any) -> Iterator[Gateway]:
    """Run a gateway until the end of the block; ``fields`` are those of `State`."""
    assert engine.uds is not None
    state = State(engine.uds, demo=demo, body_limit=LIMIT, **fields)
    state.set_ready(True, "ready")
    started, loop, stop = threading.Event(), uvloop.new_event_loop(), asyncio.Event()

    async def serve() -> None:
        async with app.engine_session(state) as session, serving(state, session, listeners):
            started.set()
            await stop.wait()

    # `listen` needs non-empty paths only; the certificate is in the state.
    tls = "path" if state.tls is not None else ""
    with listen(GatewayConfig(port=0, admin_port=0, tls_cert=tls, tls_key=tls)) as listeners:
        thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
        thread.start()
        try:
            assert started.wait(60), "the gateway does not start"
            yield Gateway(state, listeners, engine)
        finally:
            loop.call_soon_threadsafe(stop.set)
            thread.join()
            loop.close()


def assert_openai_error(answer: httpx.Response, status: int, code: object) -> None:
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], set(error)) == (status, code, ERROR_KEYS)
    assert answer.headers["x-request-id"]


def eventually(condition: Callable[[], object], seconds: float = 60) -> None:
    """Wait for a condition; the limit only separates a slow machine from a condition that never comes."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"the condition is still false after {seconds:g} s"
        time.sleep(0.01)
