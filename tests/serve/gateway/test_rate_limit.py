"""Limits per minute: in one process, and shared by two gateways through a real Redis that fails and recovers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis.asyncio import Redis as Client

from pedcxr_serve.config import load
from pedcxr_serve.errors import ConfigError
from pedcxr_serve.gateway.accounting import redis_calls
from pedcxr_serve.gateway.auth import api_keys
from pedcxr_serve.gateway.auth.tenant_store import TenantStore
from pedcxr_serve.gateway.auth.tenants import Tenant
from pedcxr_serve.gateway.rate_limit import RateLimiter
from pedcxr_serve.gateway.request.validation import Rules
from pedcxr_serve.gateway.scheduler import AdmissionRefused
from tests.support.servers.fake_engine import FakeEngine
from tests.support.servers.gateway_server import BODY, CHAT, Gateway, assert_openai_error, eventually, running
from tests.support.servers.redis_server import Redis, redis

SHARED, FALLBACK = "pedcxr_limits_fallback 0.0", "pedcxr_limits_fallback 1.0"


class Clock:
    """Replaces `time.time`."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "time", clock)
    return clock


@pytest.fixture
def long_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exact counts on a busy machine need a long timeout of Redis."""
    monkeypatch.setattr(redis_calls, "_TIMEOUT_S", 10.0)


async def refused(counter: RateLimiter, tenant: Tenant) -> int:
    with pytest.raises(AdmissionRefused) as caught:
        await counter.take(tenant)
    assert (caught.value.status, caught.value.code) == (429, "rate_limited")
    return caught.value.retry_after


@pytest.mark.usefixtures("long_timeout")
@pytest.mark.parametrize("url", ["memory", "redis"])
def test_limit_holds_in_any_minute(clock: Clock, url: str) -> None:
    async def scene(address: str | None) -> None:
        counter = RateLimiter(redis_calls.connection_pool(address) if address else None, clock=clock)
        team, other = Tenant("team", requests_per_minute=3), Tenant("other", requests_per_minute=3)
        begin = clock.now
        for second in (0, 20, 50.5):
            clock.now = begin + second
            await counter.take(team)
        assert await refused(counter, team) == 10, "the first request leaves the window then"
        await counter.take(other)
        await counter.take(Tenant("free"))
        for _ in range(100):
            await refused(counter, team)
        clock.now = begin + 60.5
        await counter.take(team)
        assert await refused(counter, team) == 20
        assert not counter.redis_down
        await counter.close()

    with redis() if url == "redis" else contextlib.nullcontext() as shared:
        asyncio.run(scene(shared.url if isinstance(shared, Redis) else None))


def test_clock_that_is_set_back_locks_no_tenant_out(clock: Clock) -> None:
    async def scene() -> None:
        counter, team = RateLimiter(), Tenant("team", requests_per_minute=2)
        await counter.take(team)
        await counter.take(team)
        clock.now -= 3600
        assert await refused(counter, team) <= 60

    asyncio.run(scene())


def test_limit_that_was_lowered_waits_for_all_requests_over_it(clock: Clock) -> None:
    async def scene() -> None:
        counter = RateLimiter(clock=clock)
        for clock.now in (0.0, 10.0, 20.0):
            await counter.take(Tenant("team", requests_per_minute=3))
        assert counter.remaining(Tenant("team", requests_per_minute=3)) == 0
        assert await refused(counter, Tenant("team", requests_per_minute=1)) == 60

    asyncio.run(scene())


@pytest.mark.usefixtures("long_timeout")
def test_concurrent_requests_are_counted_once_each() -> None:
    async def scene(address: str) -> None:
        counters = [RateLimiter(redis_calls.connection_pool(address)) for _ in range(2)]
        team = Tenant("team", requests_per_minute=50)
        answers = await asyncio.gather(
            *(counters[number % 2].take(team) for number in range(200)), return_exceptions=True
        )
        assert [answer is None for answer in answers].count(True) == 50
        assert not any(counter.redis_down for counter in counters)
        for counter in counters:
            await counter.close()

    with redis() as shared:
        asyncio.run(scene(shared.url))


@pytest.mark.usefixtures("long_timeout")
def test_limit_of_a_gateway_holds_although_redis_has_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_calls, "_RETRY_S", 0.0)

    async def scene(shared: Redis) -> None:
        counter, team = RateLimiter(redis_calls.connection_pool(shared.url)), Tenant("team", requests_per_minute=4)
        await counter.take(team)
        shared.kill()
        await counter.take(team)
        assert counter.redis_down
        shared.start()  # empty
        for _ in range(2):
            await counter.take(team)
        assert not counter.redis_down
        await refused(counter, team)
        assert counter.remaining(team) == 0
        shared.kill()
        await refused(counter, team)
        shared.start()
        await refused(counter, team)  # the gateway notices Redis although it admits nothing
        assert not counter.redis_down
        await counter.close()

    with redis() as shared:
        asyncio.run(scene(shared))


@pytest.mark.usefixtures("long_timeout")
def test_remaining_requests_are_those_of_all_gateways() -> None:
    async def scene(address: str) -> None:
        one, two = (RateLimiter(redis_calls.connection_pool(address)) for _ in range(2))
        team = Tenant("team", requests_per_minute=3)
        left = []
        for counter in (one, two, two):
            await counter.take(team)
            left.append(counter.remaining(team))
        assert left == [2, 1, 0]
        await refused(one, team)
        assert one.remaining(team) == 0
        for counter in (one, two):
            await counter.close()

    with redis() as shared:
        asyncio.run(scene(shared.url))


@pytest.mark.usefixtures("long_timeout")
def test_required_limits_are_never_those_of_a_gateway_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Redis that refuses the script is as none: no gateway admits by its own count."""
    monkeypatch.setattr(redis_calls, "_RETRY_S", 0.0)

    async def scene(address: str) -> None:
        pools = [redis_calls.connection_pool(address) for _ in range(3)]
        counters, team = [RateLimiter(pool, required=True) for pool in pools[:2]], Tenant("team", requests_per_minute=3)
        admin = Client(connection_pool=pools[2])
        await counters[0].take(team)
        await admin.execute_command("ACL", "SETUSER", "default", "-eval")
        for number in range(8):
            with pytest.raises(AdmissionRefused) as caught:
                await counters[number % 2].take(team)
            assert (caught.value.status, caught.value.code) == (503, "limits_unknown")
        await admin.execute_command("ACL", "SETUSER", "default", "+eval")
        for counter in counters:
            await counter.take(team)
        await refused(counters[1], team)
        for pool in pools:
            await pool.disconnect()

    with redis() as shared:
        asyncio.run(scene(shared.url))


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[FakeEngine]:
    with FakeEngine(uds=tmp_path / "engine.sock") as engine:
        yield engine


class Pair:
    """Two gateways with the same tenants."""

    def __init__(self, gateways: list[Gateway], key: str) -> None:
        self.gateways, self.key = gateways, key

    def post(self, number: int) -> int:
        """Send a request to a gateway; return the status."""
        with self.gateways[number].client(self.key) as client:
            answer = client.post(CHAT, json=BODY)
        if answer.status_code == 429:
            assert_openai_error(answer, 429, "rate_limited")
            assert 50 <= int(answer.headers["retry-after"]) <= 60
        return answer.status_code

    def statuses(self, *numbers: int) -> list[int]:
        return [self.post(number) for number in numbers]

    def in_all_metrics(self, line: str) -> bool:
        return all(line in gateway.metrics() for gateway in self.gateways)


@contextlib.contextmanager
def pair(engine: FakeEngine, folder: Path, address: str, limit: int) -> Iterator[Pair]:
    path = folder / "tenants.toml"
    path.write_text(f"[tenant.team]\nrequests_per_minute = {limit}\n")
    key = api_keys.new(path, "team")
    with contextlib.ExitStack() as stack:
        gateways = [
            stack.enter_context(
                running(
                    engine,
                    tenants=TenantStore(path),
                    rules=Rules("fake", 500),
                    rate_limiter=RateLimiter(redis_calls.connection_pool(address)),
                )
            )
            for _ in range(2)
        ]
        yield Pair(gateways, key)


@pytest.mark.usefixtures("long_timeout")
def test_two_gateways_share_a_limit(engine: FakeEngine, tmp_path: Path) -> None:
    with redis() as shared, pair(engine, tmp_path, shared.url, 6) as both:
        assert both.statuses(0, 1, 0, 0, 0, 1) == [200] * 6
        assert both.statuses(0, 1, 1) == [429] * 3
        assert both.in_all_metrics(SHARED)


@pytest.mark.usefixtures("long_timeout")
def test_redis_that_dies_fails_no_request(engine: FakeEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with redis("s3cret-word") as shared, pair(engine, tmp_path, shared.url, 4) as both:
        assert both.statuses(0, 0, 0, 1) == [200] * 4
        assert both.statuses(1) == [429]
        shared.kill()
        # Each gateway now counts by itself, from the requests that it admitted: three and one.
        assert both.statuses(0, 0) == [200, 429]
        assert both.statuses(1, 1, 1, 1) == [200] * 3 + [429]
        assert both.in_all_metrics(FALLBACK)
        shared.start()
        eventually(lambda: both.statuses(0, 1) and both.in_all_metrics(SHARED))
        messages = [record.getMessage() for record in caplog.records if record.name == "pedcxr.gateway"]
        assert sum("does not answer" in message for message in messages) == 2, "once per gateway"
        assert sum("answers again" in message for message in messages) == 2
        assert "s3cret-word" not in caplog.text and "redis.sock" not in caplog.text


def test_hanging_redis_does_not_delay_requests(
    engine: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_calls, "_TIMEOUT_S", 0.5)
    with redis() as shared, pair(engine, tmp_path, shared.url, 1000) as both:
        both.statuses(0, 0)
        shared.pause()
        try:
            began = time.monotonic()
            assert both.statuses(*[0] * 50) == [200] * 50
            assert time.monotonic() - began < 50 * 0.5, "one request per second waits 0.5 s"
        finally:
            shared.resume()
        eventually(lambda: both.statuses(0, 1) == [200, 200] and both.in_all_metrics(SHARED))


def test_wrong_password_counts_as_redis_down(
    engine: FakeEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with redis("right") as shared, pair(engine, tmp_path, shared.url.replace(":right@", ":wr0ng@"), 1) as both:
        assert both.statuses(0, 1, 0, 1) == [200, 200, 429, 429]
        assert both.in_all_metrics(FALLBACK)
        assert "wr0ng" not in caplog.text


def test_source_of_the_address(tmp_path: Path) -> None:
    assert redis_calls.url_from("", {}) == ""
    assert redis_calls.url_from("", {"PEDCXR_LIMITS_URL": "redis://a"}) == "redis://a"
    assert redis_calls.url_from("redis://b", {"PEDCXR_LIMITS_URL": "redis://a"}) == "redis://b"
    secret = "redis://user:s3cret@host/0"
    with pytest.raises(ConfigError, match="visible to every user") as caught:
        load.load(None, {"gateway.limits_url": secret})
    assert "s3cret" not in str(caught.value)
    path = tmp_path / "serve.toml"
    path.write_text(f'[gateway]\nlimits_url = "{secret}"\n')
    assert load.load(path, {}).gateway.limits_url == secret
    assert load.load(None, {"gateway.limits_url": "redis://host"}).gateway.limits_url == "redis://host"
