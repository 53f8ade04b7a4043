"""Requests a minute: counted in this process, or for several gateways together in Redis.

Either way it is the moving window of `limits`: no more than so many in any 60 seconds. Redis is never waited for longer
than 0.1 s. While it does not answer, each gateway counts for itself, from what it let in itself during the last minute.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.strategies import MovingWindowRateLimiter
from prometheus_client import CollectorRegistry, Gauge

from pedcxr_serve.errors import ConfigError
from pedcxr_serve.gateway.auth.tenants import Tenant
from pedcxr_serve.gateway.scheduler import Rejected

if TYPE_CHECKING:
    from redis.asyncio import BlockingConnectionPool

__all__ = ["URL_VARIABLE", "Rate", "pool_of", "url_from"]

URL_VARIABLE = "PEDCXR_LIMITS_URL"
_WAIT_S = 0.1
_AWAY_S = 1.0  # until Redis is asked again
_CONNECTIONS = 16
_log = logging.getLogger("pedcxr.gateway")


class Rate:
    """Counts requests against ``requests_per_minute``; used from one event loop.

    Args:
        pool: connections to Redis, closed by `close`; None counts in this process only.
    """

    def __init__(
        self, pool: BlockingConnectionPool | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._pool, self._clock = pool, clock
        self._memory = MemoryStorage()
        self._local = MovingWindowRateLimiter(self._memory)
        self._shared: MovingWindowRateLimiter | None = None
        if pool is not None:
            storage = RedisStorage(
                "async+redis://",  # the pool knows the address
                implementation="redispy",
                key_prefix="pedcxr",
                connection_pool=pool,  # type: ignore[arg-type]  # limits takes it out of the options that it passes on
            )
            self._shared = MovingWindowRateLimiter(storage)
        self._ask_again = -1.0
        self.away = False
        """Whether Redis did not answer when it was last asked."""

    def register(self, registry: CollectorRegistry) -> None:
        """Show among a server's metrics whether the limits are shared as they should be."""
        if self._shared is not None:
            shown = Gauge(
                "pedcxr_limits_fallback", "1 while Redis does not answer: limits by gateway.", registry=registry
            )
            shown.set_function(lambda: self.away)

    async def take(self, tenant: Tenant) -> None:
        """Count a request.

        Raises:
            Rejected: 429, it would be one too many; it is not counted then.
        """
        if tenant.requests_per_minute is None:
            return
        item = RateLimitItemPerMinute(tenant.requests_per_minute)
        wait = await self._ask(item, tenant.name)
        if wait is None:
            wait = await _hit(self._local, item, tenant.name)
        elif not wait:
            await self._local.hit(item, tenant.name)
        if wait:
            message = f"{tenant.requests_per_minute} requests a minute are allowed; slow down"
            raise Rejected(429, "rate_limited", message, wait)

    async def close(self) -> None:
        """Close the connections."""
        if (timer := self._memory.timer) is not None:
            timer.cancel()
            await asyncio.gather(timer, return_exceptions=True)
        if self._pool is not None:
            await self._pool.disconnect()

    async def _ask(self, item: RateLimitItemPerMinute, name: str) -> float | None:
        """Seconds to wait by the shared count; None if nobody tells in time."""
        if self._shared is None or self._clock() < self._ask_again:
            return None
        if self.away:
            self._ask_again = self._clock() + _AWAY_S  # one request finds out, the others need not wait
        try:
            async with asyncio.timeout(_WAIT_S):
                wait = await _hit(self._shared, item, name)
        except Exception as error:  # whatever it is, it costs nobody a report
            self._ask_again = self._clock() + _AWAY_S
            if not self.away:
                self.away = True
                # Its text may hold the address, and an address a password.
                _log.error("limits: Redis does not answer (%s); every gateway counts for itself", type(error).__name__)
            return None
        if self.away:
            self.away = False
            self._ask_again = -1.0
            _log.warning("limits: Redis answers again; limits are shared")
        return wait


async def _hit(limiter: MovingWindowRateLimiter, item: RateLimitItemPerMinute, name: str) -> float:
    """Count one; 0, or seconds until the oldest of a full minute leaves it."""
    if await limiter.hit(item, name):
        return 0.0
    return max(0.001, (await limiter.get_window_stats(item, name)).reset_time - time.time())


def url_from(setting: str, env: Mapping[str, str]) -> str:
    """The address of Redis: the setting's, else the environment's, else none."""
    return setting or env.get(URL_VARIABLE, "")


def pool_of(url: str) -> BlockingConnectionPool:
    """Connections to Redis, none of them open yet.

    Raises:
        ConfigError: no such address, or the client is not installed. The address is not repeated: it may hold a
            password.
    """
    try:
        from redis.asyncio import BlockingConnectionPool
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
    except ImportError as error:
        raise ConfigError("gateway.limits_url: needs the client of Redis; install pedcxr[redis]") from error
    try:
        parts = urlsplit(url)
        if not (parts.hostname if parts.scheme in ("redis", "rediss") else parts.scheme == "unix" and parts.path):
            raise ValueError
        return BlockingConnectionPool.from_url(
            url,
            max_connections=_CONNECTIONS,
            timeout=_WAIT_S,
            socket_timeout=_WAIT_S,
            socket_connect_timeout=_WAIT_S,
            retry=Retry(NoBackoff(), 1),  # once: a connection that Redis closed while it idled is no failure
        )
    except ValueError:
        raise ConfigError(
            f"gateway.limits_url, or {URL_VARIABLE}: allowed are redis://HOST:PORT/DB, rediss://HOST:PORT/DB and "
            "unix:///PATH; user and password stand before the host, as in redis://USER:PASSWORD@HOST"
        ) from None
