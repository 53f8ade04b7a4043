"""Open requests and tokens of the day, shared by gateways through a real Redis that fails, fills up and restarts."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis as RedisClient

from pedcxr_serve.gateway.accounting import metrics, redis_calls, shared_limits
from pedcxr_serve.gateway.accounting.shared_limits import SharedLimits
from pedcxr_serve.gateway.accounting.usage import UsageStore, UsageTotals
from pedcxr_serve.gateway.auth.tenant_store import TenantStore
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
    monkeypatch.setattr(redis_calls, "_TIMEOUT_S", 10.0)
    monkeypatch.setattr(redis_calls, "_RETRY_S", 0.1)
    monkeypatch.setattr(shared_limits, "_RETRY_S", 0.1)


@pytest.fixture
def server() -> Iterator[Redis]:
    with redis() as running:
        yield running


def limits(server: Redis, ledger: str, *, required: bool = False) -> SharedLimits:
    return SharedLimits(redis_calls.connection_pool(server.url), ledger=ledger, required=required)


async def command(url: str, *words: str | int) -> Any:
    """Run a command of Redis; return its answer."""
    client = RedisClient.from_url(url)
    try:
        return await client.execute_command(*words)
    finally:
        await client.aclose()


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
        assert shared._redis is not None
        await shared._redis._redis.connection_pool.disconnect()


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
    monkeypatch.setattr(redis_calls, "_TIMEOUT_S", 30.0)  # a busy machine is not a Redis that is away

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


def test_redis_learns_the_tokens_of_gateways_that_get_no_request(
    server: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a restart of gateways and Redis, and for a tenant that gets a budget. Both gateways have one name."""
    monkeypatch.setattr(shared_limits, "_RENEW_S", 0.1)
    path = tmp_path / "tenants.toml"
    path.write_text("[tenant.team]\ntokens_per_day = 1000\n[tenant.other]\n")

    def tokens(tenant: str) -> list[int]:
        key = f"pedcxr:{{{tenant}}}:ledgers:{metrics.today()}"
        return sorted(int(value) for value in asyncio.run(command(server.url, "HVALS", key)))

    with contextlib.ExitStack() as stack:
        engine = stack.enter_context(FakeEngine(uds=tmp_path / "engine.sock"))
        for number in (1, 2):
            usage = UsageStore(tmp_path / f"{number}.sqlite")
            stack.callback(usage.close)
            for tenant in ("team", "other"):
                usage.add(metrics.today(), tenant, UsageTotals(1, 1, 300 * number))
            pool = redis_calls.connection_pool(server.url)
            shared = SharedLimits(pool, ledger=usage.ledger)
            state = {"tenants": TenantStore(path), "usage": usage, "shared_limits": shared, "replica": "gpu"}
            stack.enter_context(running(engine, rate_limiter=RateLimiter(pool), **state))
        eventually(lambda: tokens("team") == [300, 600])
        asyncio.run(command(server.url, "FLUSHALL"))
        eventually(lambda: tokens("team") == [300, 600])
        assert tokens("other") == []
        path.write_text("[tenant.team]\ntokens_per_day = 1000\n[tenant.other]\ntokens_per_day = 1000\n")
        eventually(lambda: tokens("other") == [300, 600])


def test_copy_of_a_usage_database_is_reported(
    server: Redis, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(shared_limits, "_RENEW_S", 0.05)

    async def written(shared: SharedLimits, times: int) -> None:
        """Wait until a gateway has written some times more."""
        for _ in range(times):
            last = shared._renew_at
            async with asyncio.timeout(60):
                while shared._renew_at == last:
                    await asyncio.sleep(0.01)

    async def scene() -> None:
        killed, restarted, copy = (limits(server, "same") for _ in range(3))
        killed.start()
        await written(killed, 2)
        assert killed._task is not None and killed._redis is not None
        killed._task.cancel()
        while killed._redis._sender is not None:  # its last write
            await asyncio.sleep(0.01)
        restarted.start()  # within the lease of the killed one
        await written(restarted, 5)
        assert not caplog.records
        copy.start()
        for _ in range(10):
            await written(restarted, 1)
            await written(copy, 1)
        await closed(restarted, copy)
        killed._task = None
        await closed(killed)

    asyncio.run(scene())
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2 and len(set(messages)) == 1, "one line of each"
    assert "another gateway counts in a copy of this usage database" in messages[0]


@pytest.mark.parametrize("trouble", ["password", "full"])
def test_wrong_password_and_full_redis_are_as_no_redis(trouble: str, caplog: pytest.LogCaptureFixture) -> None:
    async def scene(server: Redis) -> None:
        url = server.url.replace(":secret@", ":wrong@") if trouble == "password" else server.url
        one = SharedLimits(redis_calls.connection_pool(url), ledger="one")
        if trouble == "full":
            await command(url, "CONFIG", "SET", "maxmemory", 1)
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

    with redis("secret") as server, FakeEngine(uds=tmp_path / "engine.sock") as engine:
        if trouble == "full":
            asyncio.run(command(server.url, "CONFIG", "SET", "maxmemory", 1))
        url = server.url.replace(":secret@", ":wrong@") if trouble == "password" else server.url
        pool = redis_calls.connection_pool(url)
        shared = SharedLimits(pool, ledger="one")
        with running(engine, rate_limiter=RateLimiter(pool), shared_limits=shared) as gateway:
            page = gateway.listeners.metrics_url
            eventually(lambda: "pedcxr_shared_limits_fallback 1.0" in httpx.get(page, timeout=60).text)
            assert shared._redis is not None
            tried_at = shared._redis._retry_at
            eventually(lambda: shared._redis is not None and shared._redis._retry_at > tried_at)
            assert shared.redis_down
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1 and "Redis does not answer" in lines[0], lines


def test_slow_redis_costs_a_request_at_most_the_timeout(server: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_calls, "_TIMEOUT_S", 0.1)

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
            pool = redis_calls.connection_pool(server.url)
            shared = SharedLimits(pool, ledger=name, required=required)
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
