"""An engine for tests with an OpenAI API: real HTTP over TCP or a Unix socket, with failures on demand.

    with FakeEngine() as engine:
        engine.reply(Answer(status=503, headers={"retry-after": "1"}), Answer(finish="length"))
        ...  # the first request receives the 503, the second a truncated text, all others engine.answer
        assert engine.requests[0].json["model"] == "fake"
        assert engine.requests[1].disconnected.wait(5)

Each response waits for its client's disconnect while it pauses, so that it records a disconnect at once.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import uvicorn

from pedcxr_serve.vllm_plugin import refusals

REPORT = ("FINDINGS:", " The lungs", " are clear.", "\n\nIMPRESSION:", " Normal", " chest.")
TEXT = "".join(REPORT)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The response to one chat completion. Times are in seconds; ``*_after`` counts pieces of text."""

    pieces: tuple[str, ...] = REPORT
    first: float = 0.0  # before the headers
    hold: threading.Event | None = None  # and until this event
    gap: float = 0.0  # before each piece
    finish: str | None = "stop"  # None: no chunk carries a finish_reason
    completion_tokens: int | None = None  # default: one per piece
    usage: bool = True
    done: bool = True  # end the stream with [DONE]
    cut_after: int | None = None  # break the connection
    stall_after: int | None = None  # send nothing more until the client disconnects
    ping_after: int | None = None  # send a comment after each gap until the client disconnects
    error_after: int | None = None  # send `error` as an event and end the stream
    error: dict[str, Any] = field(
        default_factory=lambda: {"message": "engine died", "type": "server_error", "param": None, "code": 500}
    )
    status: int = 200  # any other status sends `error` as a JSON body
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None  # send this body instead
    content_type: str = "text/event-stream; charset=utf-8"
    like_vllm: bool = False  # send the role first, and derive ids from X-Request-Id
    echo_age: bool = False  # begin the text with the age of the prompt
    metrics: dict[str, float] | None = None  # times of the request, in the last event, as vLLM states them


@dataclass
class RecordedRequest:
    """A request that the engine received."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    peer: tuple[str, int] | None = None  # the client's address and port; None over a Unix socket
    disconnected: threading.Event = field(
        default_factory=threading.Event
    )  # set if the client disconnected before the end of the response
    answered: threading.Event = field(default_factory=threading.Event)

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class _Disconnect(Exception):
    """The client disconnected, or the engine closes the connection."""


class FakeEngine:
    """A context manager that serves until it exits.

    Args:
        uds: listen on this Unix socket instead of a port of 127.0.0.1.
        port: listen on this port of 127.0.0.1; 0 chooses a free one.
        middleware: wraps the ASGI app, as vLLM's ``--middleware`` does.
    """

    def __init__(
        self, *, uds: Path | None = None, port: int = 0, middleware: Callable[[Any], Any] | None = None
    ) -> None:
        self.uds, self._port, self._middleware = uds, port, middleware
        self.reset()

    def reset(self) -> None:
        """Remove all recorded requests and restore the default answers."""
        self.requests: list[RecordedRequest] = []
        self.answer = Answer()
        self.models: tuple[str, ...] = ("fake",)
        self.details: Any = {"image_size": [896, 896], "revision": "rev-1", "demo": False}  # as pedcxr's gateway states
        self.models_answer: Answer | None = None  # instead of the listing: first, status, headers, error, raw
        self.health_status = 200
        self.version: str | None = "0.32.0"
        self.has_plugin = False  # refuse the film that pedcxr's plugin refuses
        self.generated = 0  # pieces of unstreamed responses with a gap, as the engine's own metrics count them
        self.counters: dict[str, float] = {}  # further lines of the metrics page
        self._answers: deque[Answer] = deque()

    def reply(self, *answers: Answer) -> None:
        """Answer the next chat completions with these, in turn."""
        self._answers.extend(answers)

    @property
    def chats(self) -> list[RecordedRequest]:
        """The chat completion requests so far, without those of a gateway that asks for the plugin."""
        return [
            request
            for request in self.requests
            if request.path == "/v1/chat/completions" and not (self.has_plugin and _asks_for_the_plugin(request))
        ]

    @property
    def url(self) -> str:
        """The base URL (TCP only)."""
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}/v1"

    def __enter__(self) -> Self:
        if self.uds is None:
            # asyncio sets TCP_NODELAY only on sockets with an explicit protocol; without it, events arrive 40 ms late.
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # so that a test can restart it
            self._socket.bind(("127.0.0.1", self._port))
        else:
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.bind(str(self.uds))
        self._socket.listen(512)  # from here on, the kernel queues connections until the thread serves
        config = uvicorn.Config(
            self._middleware(self) if self._middleware else self,
            log_config=None,
            lifespan="off",
            ws="none",
            loop="asyncio",
            timeout_graceful_shutdown=1,
            timeout_keep_alive=60,  # on a busy machine, a client may use a connection again after more than 5 s
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()
        if self.uds is not None:
            self.uds.unlink(missing_ok=True)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        request = RecordedRequest(scope["method"], scope["path"], headers, await _body(receive), scope.get("client"))
        self.requests.append(request)
        reply = _Reply(request, receive, send)
        try:
            await self._route(request, reply)
            request.answered.set()
        except _Disconnect:
            pass  # without a last body message, uvicorn drops the connection
        finally:
            reply.close()

    async def _route(self, request: RecordedRequest, reply: _Reply) -> None:
        match request.method, request.path:
            case "POST", "/v1/chat/completions":
                await self._chat(request, reply)
            case "GET", "/v1/models" if self.models_answer is not None:
                await reply.pause(self.models_answer.first)
                await _send_raw_or_error(self.models_answer, reply)
            case "GET", "/v1/models":
                extension = {} if self.details is None else {"pedcxr": self.details}
                data = [{"id": name, "object": "model", "owned_by": "fake"} | extension for name in self.models]
                await reply.json(200, {"object": "list", "data": data})
            case "GET", "/version" if self.version is not None:
                await reply.json(200, {"version": self.version})
            case "GET", "/health":
                await reply.whole(self.health_status, b"", "text/plain")
            case "GET", "/metrics":
                page = f"# TYPE fake_chat_requests_total counter\nfake_chat_requests_total {len(self.chats)}\n"
                counters = {
                    'vllm:generation_tokens_total{engine="0",model_name="fake"}': float(self.generated)
                } | self.counters
                page += "".join(f"{name} {value}\n" for name, value in counters.items())
                await reply.whole(200, page.encode(), "text/plain; version=0.0.4")
            case _:
                await reply.json(404, {"error": {"message": "no such path", "type": "NotFound", "code": 404}})

    async def _chat(self, request: RecordedRequest, reply: _Reply) -> None:
        if self.has_plugin and _asks_for_the_plugin(request):
            refusal = {"message": refusals.mark("film_refused", "has 16 bits"), "type": "X", "param": None, "code": 400}
            await _send_raw_or_error(Answer(status=400, error=refusal), reply)
            return
        answer = self._answers.popleft() if self._answers else self.answer
        await reply.pause(answer.first)
        while answer.hold is not None and not answer.hold.is_set():
            await reply.pause(0.01)
        if answer.raw is not None or answer.status != 200:
            await _send_raw_or_error(answer, reply)
        elif request.json.get("stream"):
            await _stream(_of_request(answer, request), request.json, reply)
        else:
            for _ in answer.pieces if answer.gap else ():
                await reply.pause(answer.gap)
                self.generated += 1
            await reply.json(200, _completion(answer, request.json), answer.headers)


def _asks_for_the_plugin(request: RecordedRequest) -> bool:
    from pedcxr_serve.engine import health  # numpy starts threads, which would get the signals of `engine_process`

    return health.DEEP_PNG.encode() in request.body


class _Reply:
    """Sends one response and waits for the client's disconnect."""

    def __init__(self, request: RecordedRequest, receive: Any, send: Any) -> None:
        self._request, self._send = request, send
        self._disconnect = asyncio.ensure_future(receive())

    def close(self) -> None:
        self._disconnect.cancel()

    async def pause(self, seconds: float | None) -> None:
        """Wait for ``seconds``, or without a limit if None, and raise if the client disconnects."""
        disconnects, _ = await asyncio.wait([self._disconnect], timeout=seconds)
        if disconnects:
            self._request.disconnected.set()
            raise _Disconnect

    async def start(self, status: int, content_type: str, headers: dict[str, str] | None = None) -> None:
        headers = {"content-type": content_type, "x-request-id": "req-fake"} | (headers or {})
        pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": pairs})

    async def write(self, data: bytes, more: bool = True) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": more})

    async def event(self, value: object) -> None:
        await self.write(b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n")

    async def whole(self, status: int, data: bytes, content_type: str, headers: dict[str, str] | None = None) -> None:
        await self.start(status, content_type, headers)
        await self.write(data, more=False)

    async def json(self, status: int, value: object, headers: dict[str, str] | None = None) -> None:
        await self.whole(status, json.dumps(value).encode(), "application/json", headers)


async def _body(receive: Any) -> bytes:
    parts, more = [], True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(parts)


async def _send_raw_or_error(answer: Answer, reply: _Reply) -> None:
    if answer.raw is not None:
        await reply.whole(answer.status, answer.raw, answer.content_type, answer.headers)
    else:
        await reply.json(answer.status, {"error": answer.error}, answer.headers)


def _of_request(answer: Answer, request: RecordedRequest) -> Answer:
    """Return the answer with what it takes from the request."""
    if answer.echo_age:
        (age,) = set(re.findall(r"\w+-(?:year|month|week|day)-old", request.body.decode()))
        answer = replace(answer, pieces=("FINDINGS: A ", age, *answer.pieces[1:]))
    if answer.like_vllm:
        answer = replace(answer, headers={"x-request-id": request.headers["x-request-id"], **answer.headers})
    return answer


async def _stream(answer: Answer, request: dict[str, Any], reply: _Reply) -> None:
    await reply.start(200, answer.content_type, answer.headers)
    if answer.like_vllm:
        request = request | {"id": f"chatcmpl-{answer.headers['x-request-id']}"}
        role = {"role": "assistant", "content": ""}
        await reply.event(_chunk(request, {"index": 0, "delta": role, "finish_reason": None}))
    for count, piece in enumerate((*answer.pieces, None)):
        if count == answer.cut_after:
            raise _Disconnect
        if count == answer.stall_after:
            await reply.pause(None)
        while count == answer.ping_after:
            await reply.pause(answer.gap)
            await reply.write(b": ping\n\n")
        if count == answer.error_after:
            await reply.event({"error": answer.error})
            return await reply.write(b"data: [DONE]\n\n", more=False)
        if piece is not None:
            await reply.pause(answer.gap)
            role = {} if count else {"role": "assistant"}  # once, as vLLM does; openai for Node.js requires it
            delta = role | {"content": piece}
            event = _chunk(request, {"index": 0, "delta": delta, "finish_reason": None})
            await reply.event(event | _count_so_far(answer, request, count + 1))
    for event in _last_events(answer, request):
        await reply.event(event)
    return await reply.write(b"data: [DONE]\n\n" if answer.done else b"", more=False)


def _last_events(answer: Answer, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if answer.finish is not None:
        event = _chunk(request, {"index": 0, "delta": {}, "finish_reason": answer.finish})
        yield event | _count_so_far(answer, request, len(answer.pieces))
    if answer.usage and (request.get("stream_options") or {}).get("include_usage"):
        metrics = {} if answer.metrics is None else {"metrics": answer.metrics}
        yield _chunk(request) | {"usage": _usage(answer)} | metrics


def _count_so_far(answer: Answer, request: dict[str, Any], pieces: int) -> dict[str, Any]:
    """Return the token usage of an event, if the request asks for it in every event."""
    if not (answer.usage and (request.get("stream_options") or {}).get("continuous_usage_stats")):
        return {}
    tokens = pieces if answer.completion_tokens is None else answer.completion_tokens * pieces // len(answer.pieces)
    # vLLM 0.32 writes the last field only here.
    return {"usage": _tokens(tokens) | {"completion_tokens_details": None}}


def _chunk(request: dict[str, Any], *choices: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": request.get("id", "chatcmpl-fake"),
        "object": "chat.completion.chunk",
        "created": 0,
        "model": request.get("model"),
        "choices": list(choices),
    }


def _completion(answer: Answer, request: dict[str, Any]) -> dict[str, Any]:
    message = {"role": "assistant", "content": "".join(answer.pieces)}
    choice: dict[str, Any] = {"index": 0, "message": message, "finish_reason": answer.finish}
    if request.get("logprobs"):  # the same for every model
        token = {"token": answer.pieces[0], "logprob": -0.1}
        choice["logprobs"] = {"content": [token | {"top_logprobs": [token]}]}
    return _chunk(request, choice) | {"object": "chat.completion", "usage": _usage(answer)}


def _usage(answer: Answer) -> dict[str, Any]:
    count = len(answer.pieces) if answer.completion_tokens is None else answer.completion_tokens
    return _tokens(count)


def _tokens(count: int) -> dict[str, Any]:
    return {"prompt_tokens": 300, "completion_tokens": count, "total_tokens": 300 + count}
