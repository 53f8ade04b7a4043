"""Open requests and tokens of the day, shared by gateways through a real Redis that fails, fills up and restarts."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from pedcxr_serve.gateway import rate_limit
from pedcxr_serve.gateway.accounting import shared_limits
from pedcxr_serve.gateway.accounting.shared_limits import SharedLimits
from pedcxr_serve.gateway.auth.tenants import Tenant
from pedcxr_serve.gateway.rate_limit import RateLimiter
from pedcxr_serve.gateway.scheduler import AdmissionRefused
from tests.support.servers.fake_engine import Answer, FakeEngine
from tests.support.servers.gateway_server import BODY, CHAT, Gateway, assert_openai_error, eventually, running
from tests.support.servers.redis_server import Redis, redis

TEAM = Tenant("team", max_concurrent=2, tokens_per_day=1000)


@pytest.fixture(autouse=True)
def long_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may take longer than 0.1 s; a test that stops Redis closes its socket instead."""
    monkeypatch.setattr(shared_limits, "_TIMEOUT_S", 10.0)
    monkeypatch.setattr(rate_limit, "_TIMEOUT_S", 10.0)
    monkeypatch.setattr(shared_limits, "_RETRY_S", 0.1)


@pytest.fixture
def server() -> Iterator[Redis]:
    with redis() as running:
        yield running


def limits(server: Redis, replica: str, *, required: bool = False) -> SharedLimits:
    return SharedLimits(rate_limit.connection_pool(server.url), replica=replica, required=required)


async def refusal(shared: SharedLimits, tenant: Tenant = TEAM) -> tuple[int, str]:
    with pytest.raises(AdmissionRefused) as caught:
        await shared.admit(tenant)
    return caught.value.status, caught.value.code


async def admitted_again(shared: SharedLimits, tenant: Tenant = TEAM) -> str | None:
    async with asyncio.timeout(30):
        while True:
            with contextlib.suppress(AdmissionRefused):
                return await shared.admit(tenant)
            await asyncio.sleep(0.02)


async def closed(*all_limits: SharedLimits) -> None:
    for shared in all_limits:
        await shared.stop()
        await shared._redis.connection_pool.disconnect()


def test_open_requests_count_over_all_gateways(server: Redis) -> None:
    async def scene() -> None:
        one, two = limits(server, "one"), limits(server, "two")
        first = await one.admit(TEAM)
        await two.admit(TEAM)
        assert await refusal(one) == await refusal(two) == (429, "too_many_concurrent")
        await two.admit(Tenant("other", max_concurrent=1))
        one.close(first)
        assert await admitted_again(two) is not None
        await closed(one, two)

    asyncio.run(scene())


def test_leases_of_a_killed_gateway_expire(server: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_limits, "_LEASE_S", 5)  # the second gateway must ask before the leases expire

    async def scene() -> None:
        one, two = limits(server, "one"), limits(server, "two")
        for _ in range(2):
            await one.admit(TEAM)
        assert one._task is not None
        one._task.cancel()  # killed: nothing is renewed or removed
        assert await refusal(two) == (429, "too_many_concurrent")
        assert await admitted_again(two) is not None
        one._task = None
        await closed(one, two)

    asyncio.run(scene())


def test_open_requests_outlive_the_lease(server: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_limits, "_LEASE_S", 5)  # no pause of a busy machine lasts as long
    monkeypatch.setattr(shared_limits, "_RENEW_S", 0.1)

    async def scene() -> None:
        one, two = limits(server, "one"), limits(server, "two")
        for _ in range(2):
            await one.admit(TEAM)
        await asyncio.sleep(6)  # the lease is a time of Redis, which has no injected clock
        assert await refusal(two) == (429, "too_many_concurrent")
        await closed(one, two)

    asyncio.run(scene())


def test_tokens_count_over_all_gateways_and_days(server: Redis) -> None:
    async def scene() -> None:
        one, two = limits(server, "one"), limits(server, "two")
        today = one._today()
        await one.admit(Tenant("other"))  # starts the background task
        await two.admit(Tenant("other"))
        one.set_tokens("2001-01-01", "team", 5000)
        one.set_tokens(today, "team", 400)
        one.set_tokens(today, "team", 600)  # the total of this gateway, not a further amount
        two.set_tokens(today, "team", 500)
        async with asyncio.timeout(30):
            while two.tokens_left(TEAM) > 0:
                with contextlib.suppress(AdmissionRefused):
                    two.close(await two.admit(TEAM))
                await asyncio.sleep(0.02)
        assert await refusal(one) == (429, "budget_spent")
        await one.admit(Tenant("rich", max_concurrent=2, tokens_per_day=1_000_000))
        assert one.tokens_left(Tenant("rich")) == 1_000_000
        assert two.tokens_left(TEAM) == -100
        await closed(one, two)

    asyncio.run(scene())


@pytest.mark.parametrize("required", [False, True])
def test_without_redis(
    server: Redis, required: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_limits, "_TIMEOUT_S", 30.0)  # a busy machine is not a Redis that is away

    async def scene() -> None:
        one = limits(server, "one", required=required)
        await one.admit(TEAM)
        server.kill()
        for _ in range(20):  # more than the limit of the tenant
            if required:
                assert await refusal(one) == (503, "limits_unknown")
            else:
                assert await one.admit(TEAM) is None
        assert one.redis_down
        server.start()
        async with asyncio.timeout(30):
            while one.redis_down:
                with contextlib.suppress(AdmissionRefused):
                    one.close(await one.admit(TEAM))
                await asyncio.sleep(0.02)
        await closed(one)

    asyncio.run(scene())
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]


def test_redis_that_was_restarted_empty_is_filled_again(server: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_limits, "_RENEW_S", 0.1)

    async def scene() -> None:
        one, two = limits(server, "one"), limits(server, "two")
        for _ in range(2):
            await one.admit(TEAM)
        one.set_tokens(one._today(), "rich", 700)
        server.kill()
        server.start()
        async with asyncio.timeout(30):
            while two.tokens_left(Tenant("rich", tokens_per_day=1000)) != 300:
                two.close(await two.admit(Tenant("rich", tokens_per_day=1000)))
                await asyncio.sleep(0.02)
        async with asyncio.timeout(30):
            code = ""
            while code != "too_many_concurrent":
                try:
                    two.close(await two.admit(TEAM))
                except AdmissionRefused as error:
                    code = error.code
                await asyncio.sleep(0.02)
        await closed(one, two)

    asyncio.run(scene())


@pytest.mark.parametrize("trouble", ["password", "full"])
def test_wrong_password_and_full_redis_are_as_no_redis(trouble: str, caplog: pytest.LogCaptureFixture) -> None:
    async def scene(server: Redis) -> None:
        url = server.url.replace(":secret@", ":wrong@") if trouble == "password" else server.url
        one = SharedLimits(rate_limit.connection_pool(url), replica="one")
        if trouble == "full":
            await one._redis.config_set("maxmemory", 1)
        assert await one.admit(TEAM) is None
        assert one.redis_down
        await closed(one)

    with redis("secret" if trouble == "password" else "") as server:
        asyncio.run(scene(server))
    assert "wrong" not in caplog.text and "secret" not in caplog.text


@pytest.mark.parametrize("trouble", ["password", "full"])
def test_redis_that_refuses_is_reported_at_the_start(
    trouble: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """No request is sent: the gauge follows the background task, and stays 1."""

    async def fill(url: str) -> None:
        client = SharedLimits(rate_limit.connection_pool(url))._redis
        await client.config_set("maxmemory", 1)
        await client.connection_pool.disconnect()

    with redis("secret") as server, FakeEngine(uds=tmp_path / "engine.sock") as engine:
        if trouble == "full":
            asyncio.run(fill(server.url))
        url = server.url.replace(":secret@", ":wrong@") if trouble == "password" else server.url
        pool = rate_limit.connection_pool(url)
        shared = SharedLimits(pool, replica="one")
        with running(engine, rate_limiter=RateLimiter(pool), shared_limits=shared) as gateway:
            page = gateway.listeners.metrics_url
            eventually(lambda: "pedcxr_shared_limits_fallback 1.0" in httpx.get(page, timeout=60).text)
            tried_at = shared._retry_at
            eventually(lambda: shared._retry_at > tried_at)
            assert shared.redis_down
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1 and "Redis does not answer" in lines[0], lines


def test_slow_redis_costs_a_request_at_most_the_timeout(server: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_limits, "_TIMEOUT_S", 0.1)

    async def scene() -> None:
        one = limits(server, "one")
        server.pause()
        try:
            async with asyncio.timeout(5):  # without the time-out of 0.1 s it would wait for 10 s
                assert await one.admit(TEAM) is None
        finally:
            server.resume()
        await closed(one)

    asyncio.run(scene())


@contextlib.contextmanager
def two_gateways(server: Redis, engine: FakeEngine, tmp_path: Path, *, required: bool) -> Iterator[list[Gateway]]:
    with contextlib.ExitStack() as stack:
        gateways = []
        for name in ("one", "two"):
            pool = rate_limit.connection_pool(server.url)
            shared = SharedLimits(pool, replica=name, required=required)
            gateways.append(stack.enter_context(running(engine, rate_limiter=RateLimiter(pool), shared_limits=shared)))
        yield gateways


@pytest.mark.parametrize("required", [False, True])
def test_gateways_without_redis(server: Redis, tmp_path: Path, required: bool) -> None:
    with FakeEngine(uds=tmp_path / "engine.sock") as engine:
        engine.answer = Answer()
        with two_gateways(server, engine, tmp_path, required=required) as gateways:
            clients = [gateway.client() for gateway in gateways]
            assert [client.post(CHAT, json=BODY).status_code for client in clients] == [200, 200]
            server.kill()
            answers: list[httpx.Response] = [client.post(CHAT, json=BODY) for client in clients for _ in range(3)]
            if required:
                for answer in answers:
                    assert_openai_error(answer, 503, "limits_unknown")
                    assert answer.headers["retry-after"] == "2"
            else:
                assert {answer.status_code for answer in answers} == {200}
            page = gateways[0].metrics()
            assert "pedcxr_shared_limits_fallback 1.0" in page
            server.start()
            eventually(lambda: clients[0].post(CHAT, json=BODY).status_code == 200)
            for client in clients:
                client.close()
