"""Many calls at once to a real Redis, which answers slowly, is read late, or refuses a command."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from pedcxr_serve.config import load
from pedcxr_serve.errors import ConfigError
from pedcxr_serve.gateway.accounting import redis_calls
from pedcxr_serve.gateway.accounting.redis_calls import RedisCalls
from pedcxr_serve.gateway.accounting.shared_limits import SharedLimits
from pedcxr_serve.gateway.auth.tenants import Tenant
from pedcxr_serve.gateway.rate_limit import RateLimiter
from pedcxr_serve.gateway.scheduler import AdmissionRefused
from pedcxr_serve.gateway.state import open_state
from tests.support.http_server import reserved_port
from tests.support.servers.redis_server import Redis, redis

TEAM = Tenant("team", max_concurrent=10_000, requests_per_minute=10_000)
SOME = Tenant("some", max_concurrent=10_000, requests_per_minute=100)


@pytest.fixture
def server() -> Iterator[Redis]:
    with redis() as running:
        yield running


@contextlib.asynccontextmanager
async def slow(server: Redis, folder: Path, delay_s: float) -> AsyncIterator[str]:
    """Pass bytes to Redis, and its answers back with a delay; yield the address."""
    copies: set[asyncio.Task[None]] = set()

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pause_s: float) -> None:
        with contextlib.closing(writer):
            while data := await reader.read(1 << 20):
                await asyncio.sleep(pause_s)
                writer.write(data)

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, requests = await asyncio.open_unix_connection(server.url.removeprefix("unix://"))
        copies.update(
            (asyncio.create_task(copy(reader, requests, 0)), asyncio.create_task(copy(answers, writer, delay_s)))
        )

    path = folder / "slow.sock"
    proxy = await asyncio.start_unix_server(connect, path)
    try:
        yield f"unix://{path}"
    finally:
        proxy.close()
        await asyncio.gather(*copies)


@pytest.mark.parametrize("number", [400, 1000])
def test_many_requests_at_once_wait_for_no_connection(server: Redis, tmp_path: Path, number: int) -> None:
    """One after the other on 16 connections, the last of 400 would wait for 0.05 s 25 times, longer than the limit."""

    async def scene(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(redis_calls, "_TIMEOUT_S", 1.0)
        async with slow(server, tmp_path, 0.05) as address:
            pool = redis_calls.connection_pool(address)
            limiter, shared = RateLimiter(pool, required=True), SharedLimits(pool, ledger="one", required=True)

            async def request(tenant: Tenant) -> str:
                name = await shared.admit(tenant)
                assert name is not None
                try:
                    await limiter.take(tenant)
                except AdmissionRefused as error:
                    return error.code
                return "admitted"

            answers = await asyncio.gather(*(request(TEAM) for _ in range(number)))
            assert answers == ["admitted"] * number
            answers = await asyncio.gather(*(request(SOME) for _ in range(number)))
            assert answers.count("admitted") == 100 and answers.count("rate_limited") == number - 100
            await shared.stop()
            await limiter.close()

    with pytest.MonkeyPatch.context() as monkeypatch:
        asyncio.run(scene(monkeypatch))


def test_time_that_the_event_loop_is_busy_does_not_count(server: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_calls, "_TIMEOUT_S", 1.0)

    async def keep_busy() -> None:
        for _ in range(3):
            time.sleep(1.2)  # more than the time-out
            await asyncio.sleep(0)

    async def scene() -> None:
        pool = redis_calls.connection_pool(server.url)
        limiter = RateLimiter(pool, required=True)
        await asyncio.gather(*(limiter.take(TEAM) for _ in range(200)), keep_busy())
        assert limiter.remaining(TEAM) == 9_800
        await limiter.close()

    asyncio.run(scene())


def test_hanging_redis_delays_a_busy_gateway_by_a_few_time_limits(server: Redis) -> None:
    passes = 0

    async def keep_busy() -> None:
        nonlocal passes
        while True:
            time.sleep(0.1)
            passes += 1
            await asyncio.sleep(0)

    async def scene() -> None:
        pool = redis_calls.connection_pool(server.url)
        limiter = RateLimiter(pool)
        await limiter.take(TEAM)  # opens the connection
        server.pause()
        busy = asyncio.create_task(keep_busy())
        try:
            await limiter.take(TEAM)
            assert passes < 40, "each of 32 steps would cost three or more passes of the loop"
        finally:
            busy.cancel()
            server.resume()
        assert limiter.redis_down
        await limiter.close()

    asyncio.run(scene())


def test_connections_that_do_not_close_hold_no_shutdown(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Redis with TLS that hangs does not answer to the end of a connection."""

    async def scene() -> None:
        pool = redis_calls.connection_pool("redis://127.0.0.1:9")

        async def disconnect() -> None:
            await asyncio.sleep(3600)

        monkeypatch.setattr(pool, "disconnect", disconnect)
        await RateLimiter(pool).close()

    asyncio.run(scene())


def test_hanging_redis_delays_many_requests_by_one_time_limit(server: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_calls, "_TIMEOUT_S", 0.5)
    monkeypatch.setattr(redis_calls, "_RETRY_S", 3600.0)  # nothing is tried again

    async def scene() -> None:
        pool = redis_calls.connection_pool(server.url)
        limiter = RateLimiter(pool)
        server.pause()
        try:
            began = time.monotonic()
            answers = await asyncio.gather(*(limiter.take(SOME) for _ in range(1000)), return_exceptions=True)
            assert time.monotonic() - began < 1000 / 64 * 0.5, "each batch would wait"
        finally:
            server.resume()
        assert answers.count(None) == 100, "this gateway counts alone"
        assert limiter.redis_down
        await limiter.close()

    asyncio.run(scene())


def test_answers_belong_to_their_calls(server: Redis, caplog: pytest.LogCaptureFixture) -> None:
    """A call with an error among those of a batch fails alone, also with several commands."""

    async def scene() -> None:
        pool = redis_calls.connection_pool(server.url)
        calls = RedisCalls(pool, "numbers")
        await calls.call(("SET", "text", "word"))
        answers = await asyncio.gather(
            calls.call(("SET", "a", 1), ("GET", "a")),
            calls.call(("INCR", "text"), ("GET", "a")),
            calls.call(("GET", "text")),
        )
        assert answers == [[True, b"1"], None, [b"word"]]
        assert calls.down
        assert await calls.call(("GET", "a")) is None, "Redis is not asked again at once"
        await pool.disconnect()

    asyncio.run(scene())
    (record,) = caplog.records
    assert record.getMessage() == "limits: Redis does not answer (ResponseError); numbers count for this gateway alone"


def test_required_limits_refuse_requests_without_redis(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As in `serve.toml`: requests per minute need Redis as the other limits do."""
    with reserved_port() as port:
        flags = {"gateway.limits_url": f"redis://127.0.0.1:{port}", "gateway.limits_required": True}
        settings = load.load(None, flags)

        async def scene() -> None:
            with open_state(settings, tmp_path / "s", slots=2, image_tokens=64, demo=True, env={}) as state:
                for limit in (state.rate_limiter.take, state.shared_limits.admit):
                    with pytest.raises(AdmissionRefused) as caught:
                        await limit(TEAM)
                    assert (caught.value.status, caught.value.code) == (503, "limits_unknown")
                await state.shared_limits.stop()
                await state.rate_limiter.close()

        asyncio.run(scene())
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [
        f"limits: Redis does not answer (ConnectionError); {limits} cannot be checked, so requests are refused"
        for limits in ("requests per minute", "open requests and tokens")
    ]


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:6379", "http://s3cret@host", "redis://", "unix://", "redis://:s3cret@host:port", "redis://[s3cret",
        "redis://:s3cret@host/db", "redis://host/1/2", "redis://host/-1", "redis://:s3cret@host?foo=1",
        "redis://host?db=s3cret", "redis://host?socket_timeout=1", "redis://host?decode_responses=1",
        "redis://host?ssl_ca_certs=s3cret", "rediss://host?ssl_s3cret=1", "redis://:s3cret@host#1", "redis://host?s3cret",
    ],
)  # fmt: skip
def test_invalid_address_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ConfigError, match="redis://HOST:PORT/DB") as caught:
        redis_calls.connection_pool(url)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "database"),
    [
        ("redis://host", None), ("redis://host/", None), ("redis://user:s3cret@host:1/3", 3), ("redis://host?db=4", 4),
        ("rediss://host/0?ssl_cert_reqs=none", 0), ("unix:///run/redis.sock", None), ("unix://:s3cret@/r.sock?db=2", 2),
        ("redis://host/0?protocol=2&client_name=one&health_check_interval=5&socket_keepalive=true", 0),
        ("redis://host/0?username=user&password=s3cret", 0),
    ],
)  # fmt: skip
def test_valid_address(url: str, database: int | None) -> None:
    assert redis_calls.connection_pool(url).connection_kwargs.get("db") == database
