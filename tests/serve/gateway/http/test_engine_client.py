"""`EngineClient` against a server whose every byte the test decides."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from yarl import URL

from pedcxr_serve.gateway.http import engine_client
from pedcxr_serve.gateway.http.engine_client import EngineAnswer, EngineClient, EngineLost, EngineUnreachable

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def closing(handler: Handler) -> Handler:
    async def closed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await handler(reader, writer)
        writer.close()

    return closed


def run(tmp_path: Path, handler: Handler, use: Callable[[EngineAnswer], Awaitable[None]], body: bytes = b"{}") -> None:
    async def main() -> None:
        async with asyncio.timeout(20), await asyncio.start_unix_server(closing(handler), tmp_path / "engine"):
            client = EngineClient(tmp_path / "engine")
            async with client.post("/path", (body,), {"X-Request-Id": "one"}, on_sent=lambda: None) as answer:
                await use(answer)

    asyncio.run(main())


def respond(data: bytes) -> Handler:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        writer.write(data)

    return handler


def chunks(*parts: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)


@pytest.mark.parametrize(
    "data",
    [
        CHUNKED + chunks(b"one", b"two") + b"0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 6\r\n\r\nonetwo",
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\nonetwo",
    ],
)
def test_body_of_any_framing_is_read(tmp_path: Path, data: bytes) -> None:
    async def use(answer: EngineAnswer) -> None:
        assert (answer.status, answer.content_type) == (200, "text/event-stream")
        assert await answer.read() == b"onetwo"

    run(tmp_path, respond(data), use)


@pytest.mark.parametrize("data", [CHUNKED + chunks(b"one"), CHUNKED + chunks(b"one") + b"not a length\r\n"])
def test_body_without_its_end_raises(tmp_path: Path, data: bytes) -> None:
    async def use(answer: EngineAnswer) -> None:
        with pytest.raises(EngineLost):
            await answer.read()

    run(tmp_path, respond(data), use)


@pytest.mark.parametrize("data", [b"", b"no HTTP\r\n\r\n"])
def test_answer_without_headers_raises(tmp_path: Path, data: bytes) -> None:
    async def use(_: EngineAnswer) -> None:
        pytest.fail("there is no answer")

    with pytest.raises(EngineLost):
        run(tmp_path, respond(data), use)


def test_no_engine_raises(tmp_path: Path) -> None:
    async def main() -> None:
        async with EngineClient(tmp_path / "none").post("/", (), {}, on_sent=lambda: None):
            pytest.fail("there is no engine")

    with pytest.raises(EngineUnreachable):
        asyncio.run(main())


def test_engine_at_a_tcp_address_receives_its_key() -> None:
    async def main() -> None:
        async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            head = await reader.readuntil(b"\r\n\r\n")
            assert b"Authorization: Bearer secret\r\n" in head and f"Host: {host}\r\n".encode() in head
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")

        async with asyncio.timeout(20), await asyncio.start_server(closing(handler), "127.0.0.1", 0) as server:
            host = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
            client = EngineClient(URL(f"http://{host}"), "secret")
            async with client.post("/", (), {}, on_sent=lambda: None) as answer:
                assert await answer.read() == b"ok"

    asyncio.run(main())


def test_events_are_taken_in_the_callback_of_the_socket_without_a_task(tmp_path: Path) -> None:
    tasks: list[object] = []

    async def use(answer: EngineAnswer) -> None:
        def take(_: bytes) -> bool:
            tasks.append(asyncio.current_task())
            return True

        pumping = asyncio.create_task(answer.pump(take))
        await asyncio.sleep(0)
        go.set()
        assert await pumping

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        writer.write(CHUNKED)
        await go.wait()
        writer.write(chunks(b"one", b"two") + b"0\r\n\r\n")

    go = asyncio.Event()
    run(tmp_path, handler, use)
    assert tasks == [None, None]


def test_taker_that_is_full_pauses_and_gets_the_rest_later(tmp_path: Path) -> None:
    async def use(answer: EngineAnswer) -> None:
        for part in (b"one", b"two", b"three"):
            taken: list[bytes] = []
            assert not await answer.pump(lambda chunk, taken=taken: bool(taken.append(chunk)))  # type: ignore[misc]
            assert taken == [part]
        assert await answer.pump(lambda _: True)

    run(tmp_path, respond(CHUNKED + chunks(b"one", b"two", b"three") + b"0\r\n\r\n"), use)


def test_engine_is_not_read_while_its_answer_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_client, "_HIGH_WATER", 1000)
    size = 16 << 20  # more than the buffers of two sockets hold
    drained = asyncio.Event()
    reading = [True]

    def note(method: str) -> None:
        original = getattr(EngineAnswer, method)

        def observed(self: EngineAnswer, data: bytes) -> None:
            assert reading[0], "data arrived after the pause"
            original(self, data)
            reading[0] = not self._paused

        monkeypatch.setattr(EngineAnswer, method, observed)

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        writer.write(CHUNKED + chunks(bytes(size)) + b"0\r\n\r\n")
        await writer.drain()
        drained.set()

    async def use(answer: EngineAnswer) -> None:
        while reading[0]:
            await asyncio.sleep(0)
        for _ in range(100):
            await asyncio.sleep(0)
        assert not drained.is_set()
        reading[0] = True
        assert len(await answer.read()) == size

    note("data_received")
    run(tmp_path, handler, use)


@pytest.mark.parametrize("size", [2, 8 << 20])
def test_body_is_released_once_it_is_sent_and_before_the_answer_ends(tmp_path: Path, size: int) -> None:
    async def main() -> None:
        sent = asyncio.Event()

        async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            head = await reader.readuntil(b"\r\n\r\n")
            assert b"Content-Length: %d\r\n" % size in head and b"X-Request-Id: one\r\n" in head
            await reader.readexactly(size)
            await sent.wait()
            writer.write(CHUNKED + b"0\r\n\r\n")

        async with asyncio.timeout(20), await asyncio.start_unix_server(closing(handler), tmp_path / "engine"):
            parts = (memoryview(bytes(size - 1)), b"}")
            client = EngineClient(tmp_path / "engine")
            async with client.post("/", parts, {"X-Request-Id": "one"}, on_sent=sent.set) as answer:
                assert await answer.read() == b""

    asyncio.run(main())


def test_header_with_a_line_break_is_not_sent(tmp_path: Path) -> None:
    async def main() -> None:
        async with EngineClient(tmp_path / "none").post("/", (), {"X-Request-Id": "a\r\nb"}, on_sent=lambda: None):
            pytest.fail("it was sent")

    with pytest.raises(ValueError, match="line break"):
        asyncio.run(main())
