"""``make bench-gateway``: what the gateway itself costs, in front of an engine that answers at once.

Engine, gateway and load are three processes on one machine, so that a rate by the clock depends on its other work;
beside it stands the rate for each second of processor time that the gateway took, which does not. Tenants, policy,
admission, metering and the audit log are on.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, cast

import aiohttp
import uvloop

from . import config, keys
from .gateway import policy
from .tenants import Tenant

_EVENTS = 400
_PACE = 30  # events a second
_PACED_EVENTS = 120
_PACED_STREAMS = 250
_TICKS = os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Run the benchmark and print its figures."""
    parser = argparse.ArgumentParser(prog="python -m pedcxr_serve.bench_gateway", description=__doc__)
    parser.add_argument("--role", choices=("bench", "engine", "gateway"), default="bench", help="of this process")
    parser.add_argument("--folder", type=Path, help="where the sockets and files of a run lie")
    parser.add_argument("--requests", type=int, default=2000, help="requests with bodies of 0.1 MB")
    parser.add_argument("--streams", type=int, default=200, help=f"streams of {_EVENTS} events")
    args = parser.parse_args()
    if args.role == "engine":
        uvloop.run(_engine(args.folder))
    elif args.role == "gateway":
        uvloop.run(_gateway(args.folder))
    else:
        _print_policy()
        with tempfile.TemporaryDirectory() as folder:
            key = keys.new(Path(folder, "tenants.toml"), "bench")
            with _child("engine", Path(folder)), _child("gateway", Path(folder)) as gateway:
                uvloop.run(_load(Path(folder), gateway, key, args.requests, args.streams))


def body(film_bytes: int, *, stream: bool = False) -> bytes:
    """A request with a film of random bytes, such that the body is about ``film_bytes`` long."""
    film = base64.b64encode(os.urandom(film_bytes * 3 // 4)).decode()
    content = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{film}"}},
        {"type": "text", "text": "Generate a radiology report for this chest X-ray of a 5-year-old male."},
    ]
    asked = {"model": "bench", "messages": [{"role": "user", "content": content}], "max_tokens": 500, "stream": stream}
    return json.dumps(asked).encode()


def _print_policy() -> None:
    raw, rules, tenant = bytearray(body(3_000_000)), policy.Rules("bench", 500), Tenant("bench")
    took = []
    for _ in range(50):
        start = time.process_time()
        policy.apply(raw, tenant, rules)
        took.append(1e3 * (time.process_time() - start))
    print(f"policy of a 3 MB body         {statistics.median(took):8.2f} ms of processor time, at most {max(took):.2f}")


@contextmanager
def _child(role: str, folder: Path) -> Iterator[int]:
    command = [sys.executable, "-m", "pedcxr_serve.bench_gateway", "--role", role, "--folder", str(folder)]
    with subprocess.Popen(command) as process:  # noqa: S603  (our own module)
        try:
            mark = folder / f"{role}.up"
            while not mark.exists() and process.poll() is None:
                time.sleep(0.05)
            yield process.pid
        finally:
            process.terminate()


class _Instant(asyncio.Protocol):
    """Answers when the last byte of a body is in."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass
        self._head, self._missing = b"", -1

    def data_received(self, data: bytes) -> None:
        if self._missing < 0:
            self._head += data
            head, end, rest = self._head.partition(b"\r\n\r\n")
            if not end:
                return
            self._missing = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
            self._tail, data = b"", rest
        self._missing -= len(data)
        self._tail = (self._tail + data)[-2000:]
        if self._missing == 0:
            self._answer()

    def _answer(self) -> None:
        if b'"wait"' in self._tail:  # a stop text stands for "hold on to me"
            asyncio.get_running_loop().call_later(3, self._write, _WHOLE)
        elif b'"pace"' in self._tail:
            self._transport.write(_PACED)
            self._pace(_PACED_EVENTS)
        else:
            self._write(_STREAM if b'"stream":true' in self._tail else _WHOLE)

    def _pace(self, left: int) -> None:
        if not left:
            self._write(_END)
        elif not self._transport.is_closing():
            self._transport.write(_WORD)
            asyncio.get_running_loop().call_later(1 / _PACE, self._pace, left - 1)

    def _write(self, data: bytes) -> None:
        self._transport.write(data)
        self._transport.close()


def _http(kind: bytes, data: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
    return head % (kind, len(data)) + data


_USAGE = {"prompt_tokens": 300, "completion_tokens": _EVENTS, "total_tokens": 300 + _EVENTS}
_CHUNK = {"id": "chatcmpl-0123456789abcdef", "object": "chat.completion.chunk", "created": 1, "model": "bench"}


def _event(*choices: object, **more: object) -> bytes:
    return b"data: " + json.dumps({**_CHUNK, "choices": choices, **more}, separators=(",", ":")).encode() + b"\n\n"


_WORD = _event({"index": 0, "delta": {"content": " word"}, "logprobs": None, "finish_reason": None})
_END = _event({"index": 0, "delta": {}, "finish_reason": "stop"}) + _event(usage=_USAGE) + b"data: [DONE]\n\n"
_STREAM = _http(b"text/event-stream", _WORD * _EVENTS + _END)
_PACED = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
_CHOICE = {"index": 0, "message": {"role": "assistant", "content": "word " * _EVENTS}, "finish_reason": "stop"}
_WHOLE = _http(b"application/json", json.dumps({**_CHUNK, "choices": [_CHOICE], "usage": _USAGE}).encode())


async def _engine(folder: Path) -> None:
    server = await asyncio.get_running_loop().create_unix_server(_Instant, folder / "engine.sock", backlog=2048)
    (folder / "engine.up").touch()
    await server.serve_forever()


async def _gateway(folder: Path) -> None:
    from .gateway import app, assemble, serve
    from .listeners import listen

    flags = {"gateway.tenants": str(folder / "tenants.toml"), "gateway.audit_log": str(folder / "audit.jsonl")}
    settings = config.load(None, flags | {"gateway.port": 0, "gateway.admin_port": 0, "served_name": "bench"})
    env = {"PEDCXR_AUDIT_KEY": "bench" * 10}
    made = assemble.state(settings, folder / "engine.sock", slots=_PACED_STREAMS, image_tokens=256, demo=False, env=env)
    with made as state, listen(settings.gateway) as listeners:
        async with app.engine_session(state) as engine, serve.serving(state, engine, listeners):
            state.set_ready(True, "ready")
            (folder / "url").write_text(listeners.url)
            (folder / "gateway.up").touch()
            await asyncio.Event().wait()


class _Took(NamedTuple):
    seconds: float
    processor: float


async def _load(folder: Path, gateway: int, key: str, requests: int, streams: int) -> None:
    url = (folder / "url").read_text() + "/chat/completions"
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    async with aiohttp.ClientSession(headers=headers, connector=aiohttp.TCPConnector(limit=0)) as session:

        async def send(data: bytes, number: int, at_once: int) -> _Took:
            turns = asyncio.Semaphore(at_once)

            async def one() -> None:
                async with turns, session.post(url, data=data) as answer:
                    text = await answer.read()
                    if answer.status != 200:
                        raise SystemExit(f"{answer.status}: {text[:200]!r}")

            before, start = _processor(gateway), time.perf_counter()
            await asyncio.gather(*(one() for _ in range(number)))
            return _Took(time.perf_counter() - start, _processor(gateway) - before)

        await send(body(100_000), 200, 32)
        took = await send(body(100_000), requests, 32)
        print(
            f"requests with 0.1 MB          {requests / took.seconds:8.0f} /s, {requests / took.processor:.0f} /core-s"
        )
        took, events = await send(body(10_000, stream=True), streams, 32), streams * _EVENTS
        print(f"events in bursts              {events / took.seconds:8.0f} /s, {events / took.processor:.0f} /core-s")
        paced = json.dumps(json.loads(body(10_000, stream=True)) | {"stop": ["pace"]}).encode()
        through, least = await _gaps(session, url, paced, _PACED_STREAMS), await _bare_gaps(folder, paced)
        print(f"{_PACED_STREAMS} streams, {_PACE} events/s       {through:8.1f} ms, 99 % of gaps; alone {least:.1f}")
        idle = _memory(gateway, "VmRSS")
        large = json.loads(body(3_000_000)) | {"stop": ["wait"]}
        await send(json.dumps(large).encode(), 200, 200)
        print(f"200 bodies of 3 MB at once    {_memory(gateway, 'VmHWM'):8.0f} MiB at most, {idle:.0f} before")


async def _gaps(session: aiohttp.ClientSession, url: str, data: bytes, streams: int) -> float:
    """99th percentile of the time between events, in ms."""
    gaps: list[float] = []

    async def one() -> None:
        async with session.post(url, data=data) as answer:
            last = None
            async for _ in answer.content.iter_any():
                now = time.perf_counter()
                if last is not None:
                    gaps.append(now - last)
                last = now

    await asyncio.gather(*(one() for _ in range(streams)))
    return 1e3 * statistics.quantiles(gaps, n=100)[98]


async def _bare_gaps(folder: Path, data: bytes) -> float:
    connector = aiohttp.UnixConnector(str(folder / "engine.sock"), limit=0, force_close=True)
    async with aiohttp.ClientSession(connector=connector) as session:
        compact = json.dumps(json.loads(data), separators=(",", ":")).encode()  # as the gateway gives it
        return await _gaps(session, "http://engine/v1/chat/completions", compact, _PACED_STREAMS)


def _processor(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _memory(pid: int, name: str) -> float:
    return int(Path(f"/proc/{pid}/status").read_text().partition(f"{name}:")[2].split()[0]) / 1024


if __name__ == "__main__":
    main()
