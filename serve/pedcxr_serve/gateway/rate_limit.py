"""Limits on requests per minute, counted in this process or, for several gateways together, in Redis.

Both use a moving window: at most N requests in any 60 seconds. In this process its clock is monotonic, so that setting
the clock of the machine changes nothing; in Redis it is the time of day. A request has to find room in both windows, so
that this gateway never admits more than the limit, whether Redis answers all, some or none of the requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
import uuid
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Gauge

from pedcxr_serve.gateway.accounting.redis_calls import RedisCalls
from pedcxr_serve.gateway.auth.tenants import Tenant
from pedcxr_serve.gateway.scheduler import AdmissionRefused

if TYPE_CHECKING:
    from redis.asyncio import ConnectionPool

_WINDOW_S = 60
_CLOSE_S = 0.5
# KEYS: ids of the admitted requests, by time. ARGV: time, start of the window, its seconds, limit, id.
# Returns an empty text and how many more requests are admitted now, or the time of the request that must leave first.
_HIT = """
local limit = tonumber(ARGV[4])
local count = redis.call('ZCOUNT', KEYS[1], '(' .. ARGV[2], '+inf')
if count >= limit then return {redis.call('ZREVRANGE', KEYS[1], limit - 1, limit - 1, 'WITHSCORES')[2], 0} end
redis.call('ZADD', KEYS[1], ARGV[1], ARGV[5]) -- the first write, which a full Redis refuses
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[3])
return {'', limit - count - 1}
"""


class RateLimiter:
    """Counts requests against ``requests_per_minute``; used from one event loop.

    Args:
        pool: connections to Redis, closed by `close`. None counts in this process only.
        required: refuse requests while Redis does not answer.
        clock: seconds, monotonic.
    """

    def __init__(
        self, pool: ConnectionPool | None = None, *, required: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._pool, self._clock = pool, clock
        self._local = _MovingWindow()
        self._redis: RedisCalls | None = None
        if pool is not None:
            self._redis = RedisCalls(pool, "requests per minute", required=required, clock=clock)
        self._prefix, self._numbers = uuid.uuid4().hex[:12], itertools.count()
        self._left: dict[str, int] = {}  # tenant -> what Redis had left when it was asked last

    @property
    def redis_down(self) -> bool:
        """Whether the last call to Redis failed."""
        return self._redis is not None and self._redis.down

    def register(self, registry: CollectorRegistry) -> None:
        """Add a gauge of Redis failures to a registry, if the limits are shared."""
        if self._redis is not None:
            fallback = Gauge(
                "pedcxr_limits_fallback",
                "1 while Redis does not answer and requests per minute are not shared.",
                registry=registry,
            )
            fallback.set_function(lambda: self.redis_down)

    async def take(self, tenant: Tenant) -> None:
        """Count a request.

        Raises:
            AdmissionRefused: 429, the request is over the limit; or 503, the limits are required and Redis does not
                answer. The request is not counted then.
        """
        if tenant.requests_per_minute is None:
            return
        limit, now = tenant.requests_per_minute, self._clock()
        # A request has its place here before Redis is asked: of many at once, Redis may answer some and fail others.
        wait = self._local.hit(tenant.name, limit, now)
        if wait and self.redis_down:
            await self._hit_shared(tenant.name, limit)  # only to notice that Redis answers again
        elif not wait:
            try:
                wait = await self._hit_shared(tenant.name, limit)
            except BaseException:
                self._local.remove(tenant.name, now)
                raise
            if wait:
                self._local.remove(tenant.name, now)
        if wait:
            message = f"the limit of {tenant.requests_per_minute} requests per minute is reached; slow down"
            raise AdmissionRefused(429, "rate_limited", message, wait)

    def remaining(self, tenant: Tenant) -> int:
        """Return how many requests the tenant may send now: to all gateways together if Redis answered the last one.

        ``tenant.requests_per_minute`` must not be None.
        """
        assert tenant.requests_per_minute is not None
        local = max(0, tenant.requests_per_minute - self._local.count(tenant.name, self._clock()))
        return local if self.redis_down else min(local, self._left.get(tenant.name, local))

    async def close(self) -> None:
        """Close the connections to Redis, within half a second. With TLS, each waits for an answer to its end."""
        if self._pool is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CLOSE_S):
                    await self._pool.disconnect()

    async def _hit_shared(self, name: str, limit: int) -> float:
        """Count a request in Redis. Return 0 if it is admitted or Redis does not answer, or the seconds to wait."""
        if self._redis is None:
            return 0.0
        now = time.time()
        request_id = f"{self._prefix}-{next(self._numbers)}"
        # The braces keep all keys of a tenant on one node of a cluster.
        key = f"pedcxr:{{{name}}}:minute"
        answer = await self._redis.ask("EVAL", _HIT, 1, key, now, now - _WINDOW_S, _WINDOW_S, limit, request_id)
        if answer is None:
            return 0.0
        blocking, self._left[name] = answer
        return max(0.001, float(blocking) + _WINDOW_S - now) if blocking else 0.0


class _MovingWindow:
    """The times of the requests that were admitted in the last minute, by tenant."""

    def __init__(self) -> None:
        self._times: dict[str, deque[float]] = {}

    def hit(self, name: str, limit: int, now: float) -> float:
        """Count a request. Return 0, or the seconds until the window has room for it; it is not counted then."""
        over = self.count(name, now) - limit
        if over < 0:
            self._times.setdefault(name, deque()).append(now)
            return 0.0
        return max(0.001, self._times[name][over] + _WINDOW_S - now)

    def remove(self, name: str, time_of_request: float) -> None:
        """Take back a request that was counted."""
        with contextlib.suppress(ValueError):  # it has left the window
            self._times[name].remove(time_of_request)

    def count(self, name: str, now: float) -> int:
        """Return the number of requests in the window."""
        times = self._times.get(name, deque())
        while times and times[0] <= now - _WINDOW_S:
            times.popleft()
        return len(times)
