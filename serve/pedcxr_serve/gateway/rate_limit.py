"""Limits on requests per minute, counted in this process or, for several gateways together, in Redis.

Both use a moving window: at most N requests in any 60 seconds. In this process its clock is monotonic, so that setting
the clock of the machine changes nothing; in Redis it is the time of day. A request waits at most 0.1 s for Redis. While
Redis does not answer, each gateway counts by itself, and starts from the requests that it admitted within the last
minute.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from limits import RateLimitItemPerMinute
from limits.aio.storage import RedisStorage
from limits.aio.strategies import MovingWindowRateLimiter
from prometheus_client import CollectorRegistry, Gauge

from pedcxr_serve.errors import ConfigError
from pedcxr_serve.gateway.auth.tenants import Tenant
from pedcxr_serve.gateway.scheduler import AdmissionRefused

if TYPE_CHECKING:
    from redis.asyncio import BlockingConnectionPool

URL_VARIABLE = "PEDCXR_LIMITS_URL"
_TIMEOUT_S = 0.1
_WINDOW_S = 60.0
_RETRY_S = 1.0  # until Redis is tried again
_CONNECTIONS = 16
_log = logging.getLogger("pedcxr.gateway")


class RateLimiter:
    """Counts requests against ``requests_per_minute``; used from one event loop.

    Args:
        pool: connections to Redis, closed by `close`. None counts in this process only.
        clock: seconds, monotonic.

    Attributes:
        redis_down: whether the last call to Redis failed.
    """

    def __init__(
        self, pool: BlockingConnectionPool | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._pool, self._clock = pool, clock
        self._local = _MovingWindow()
        self._shared: MovingWindowRateLimiter | None = None
        if pool is not None:
            storage = RedisStorage(
                "async+redis://",  # the address is that of the pool
                implementation="redispy",
                key_prefix="pedcxr",
                connection_pool=pool,  # type: ignore[arg-type]  # limits accepts it among its options
            )
            self._shared = MovingWindowRateLimiter(storage)
        self._retry_at = -1.0
        self.redis_down = False

    def register(self, registry: CollectorRegistry) -> None:
        """Add a gauge of Redis failures to a registry, if the limits are shared."""
        if self._shared is not None:
            fallback = Gauge(
                "pedcxr_limits_fallback",
                "1 while Redis does not answer and each gateway counts by itself.",
                registry=registry,
            )
            fallback.set_function(lambda: self.redis_down)

    async def take(self, tenant: Tenant) -> None:
        """Count a request.

        Raises:
            AdmissionRefused: 429, the request is over the limit. It is not counted then.
        """
        if tenant.requests_per_minute is None:
            return
        limit, now = tenant.requests_per_minute, self._clock()
        wait = None if self._shared is None else await self._hit_shared(RateLimitItemPerMinute(limit), tenant.name)
        if wait is None:
            wait = self._local.hit(tenant.name, limit, now)
        elif not wait:
            self._local.add(tenant.name, now)
        if wait:
            message = f"the limit of {tenant.requests_per_minute} requests per minute is reached; slow down"
            raise AdmissionRefused(429, "rate_limited", message, wait)

    def remaining(self, tenant: Tenant) -> int:
        """Return how many requests the tenant may send now, as this gateway counts them.

        ``tenant.requests_per_minute`` must not be None.
        """
        assert tenant.requests_per_minute is not None
        return max(0, tenant.requests_per_minute - self._local.count(tenant.name, self._clock()))

    async def close(self) -> None:
        """Close the connections to Redis."""
        if self._pool is not None:
            await self._pool.disconnect()

    async def _hit_shared(self, item: RateLimitItemPerMinute, name: str) -> float | None:
        """Count a request in Redis. Return the seconds to wait, or None if Redis does not answer in time."""
        if self._shared is None or self._clock() < self._retry_at:
            return None
        if self.redis_down:
            self._retry_at = self._clock() + _RETRY_S  # this request tries Redis, the others do not wait
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                wait = await _hit(self._shared, item, name)
        except Exception as error:  # no failure of Redis may fail a request
            self._retry_at = self._clock() + _RETRY_S
            if not self.redis_down:
                self.redis_down = True
                # The error's message may contain the address, and the address a password.
                _log.error("limits: Redis does not answer (%s); each gateway counts by itself", type(error).__name__)
            return None
        if self.redis_down:
            self.redis_down = False
            self._retry_at = -1.0
            _log.warning("limits: Redis answers again; limits are shared")
        return wait


class _MovingWindow:
    """The times of the requests that were admitted in the last minute, by tenant."""

    def __init__(self) -> None:
        self._times: dict[str, deque[float]] = {}

    def hit(self, name: str, limit: int, now: float) -> float:
        """Count a request. Return 0, or the seconds until the window has room for it; it is not counted then."""
        over = self.count(name, now) - limit
        if over < 0:
            self.add(name, now)
            return 0.0
        return max(0.001, self._times[name][over] + _WINDOW_S - now)

    def add(self, name: str, now: float) -> None:
        """Count a request, whatever the limit."""
        self._times.setdefault(name, deque()).append(now)

    def count(self, name: str, now: float) -> int:
        """Return the number of requests in the window."""
        times = self._times.get(name, deque())
        while times and times[0] <= now - _WINDOW_S:
            times.popleft()
        return len(times)


async def _hit(limiter: MovingWindowRateLimiter, item: RateLimitItemPerMinute, name: str) -> float:
    """Count a request. Return 0, or the seconds until the oldest request leaves the full window."""
    if await limiter.hit(item, name):
        return 0.0
    return max(0.001, (await limiter.get_window_stats(item, name)).reset_time - time.time())


def url_from(setting: str, env: Mapping[str, str]) -> str:
    """Return the address of Redis from the setting, else from the environment, else an empty string."""
    return setting or env.get(URL_VARIABLE, "")


def connection_pool(url: str) -> BlockingConnectionPool:
    """Return a pool of connections to Redis, none of them open yet.

    Raises:
        ConfigError: the address is invalid, or the client is not installed. The message does not contain the address,
            which may contain a password.
    """
    try:
        from redis.asyncio import BlockingConnectionPool
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
    except ImportError as error:
        raise ConfigError("gateway.limits_url: the Redis client is not installed; install pedcxr[redis]") from error
    try:
        parts = urlsplit(url)
        if not (parts.hostname if parts.scheme in ("redis", "rediss") else parts.scheme == "unix" and parts.path):
            raise ValueError
        return BlockingConnectionPool.from_url(
            url,
            max_connections=_CONNECTIONS,
            timeout=_TIMEOUT_S,
            socket_timeout=_TIMEOUT_S,
            socket_connect_timeout=_TIMEOUT_S,
            retry=Retry(NoBackoff(), 1),  # Redis may have closed an idle connection: retry once
        )
    except ValueError:
        raise ConfigError(
            f"gateway.limits_url, or {URL_VARIABLE}: must be redis://HOST:PORT/DB, rediss://HOST:PORT/DB or "
            "unix:///PATH, with user and password before the host, as in redis://USER:PASSWORD@HOST"
        ) from None
