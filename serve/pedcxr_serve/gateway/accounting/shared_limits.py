"""Limits that several gateways share in Redis: the open requests and the tokens of the day of each tenant.

A request costs one call of a script, which counts and admits in one step. Everything else is written by a background
task: ended requests, the leases of open ones, and the tokens that this gateway counted today. The task writes absolute
values every 5 s, so that a Redis that was restarted empty is correct again within that time. The leases of a gateway
that was killed expire after 15 s, by the clock of Redis. It writes without requests too, so that a Redis with another
password, or a full one, is reported at the start of the gateway.

A request waits at most 0.1 s for Redis. While Redis does not answer, each gateway applies the limits by itself, or
refuses requests if the limits are required.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import math
import time
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Gauge

from pedcxr_serve.gateway.auth.tenants import Tenant
from pedcxr_serve.gateway.scheduler import AdmissionRefused

if TYPE_CHECKING:
    from redis.asyncio import BlockingConnectionPool

_TIMEOUT_S = 0.1
_RETRY_S = 1.0  # until Redis is tried again
_RENEW_S = 5.0
_LEASE_S = 15
_KEEP_TOKENS_S = 2 * 86_400
_log = logging.getLogger("pedcxr.gateway")

# KEYS: open requests, tokens of the day by replica. ARGV: id, limit of open requests, budget or -1, lease in seconds.
_OPEN = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local tokens = 0
for _, value in ipairs(redis.call('HVALS', KEYS[2])) do tokens = tokens + value end
local budget = tonumber(ARGV[3])
if budget >= 0 and tokens >= budget then return {'budget_spent', tokens} end
if redis.call('ZCOUNT', KEYS[1], now, '+inf') >= tonumber(ARGV[2]) then return {'too_many_concurrent', tokens} end
redis.call('ZADD', KEYS[1], now + ARGV[4], ARGV[1]) -- the first write, which a full Redis refuses
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
redis.call('EXPIRE', KEYS[1], ARGV[4])
return {'', tokens}
"""
# KEYS: open requests. ARGV: lease in seconds, then ids.
_RENEW = """
local time = redis.call('TIME')
local ends = time[1] + time[2] / 1000000 + ARGV[1]
for index = 2, #ARGV do redis.call('ZADD', KEYS[1], ends, ARGV[index]) end
redis.call('EXPIRE', KEYS[1], ARGV[1])
"""


class SharedLimits:
    """Admits requests by counters in Redis; used from one event loop.

    Args:
        pool: connections to Redis; the caller closes it. None: nothing is shared, and every request is admitted here.
        replica: name of this gateway, different from that of any other.
        required: refuse requests while Redis does not answer.
        today: the current day, YYYY-MM-DD in UTC.
        clock: seconds, monotonic; for the retries of Redis.

    Attributes:
        redis_down: whether the last call to Redis failed.
    """

    def __init__(
        self,
        pool: BlockingConnectionPool | None = None,
        *,
        replica: str = "",
        required: bool = False,
        today: Callable[[], str] = lambda: time.strftime("%Y-%m-%d", time.gmtime()),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._replica, self._required, self._today, self._clock = replica, required, today, clock
        self._redis: Any = None
        if pool is not None:
            from redis.asyncio import Redis

            self._redis = Redis(connection_pool=pool)
        self._prefix, self._numbers = uuid.uuid4().hex[:12], itertools.count()
        self._open: dict[str, str] = {}  # id -> tenant
        self._ended: list[tuple[str, str]] = []  # id and tenant, to be removed from Redis
        self._tokens: dict[tuple[str, str], int] = {}  # day and tenant -> counted by this gateway
        self._counted: set[tuple[str, str]] = set()  # those of `_tokens` that Redis does not have
        self._left: dict[str, float] = {}  # tenant -> rest of the budget when Redis was asked last
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        self._retry_at = self._renew_at = -math.inf
        self.redis_down = False

    def register(self, registry: CollectorRegistry) -> None:
        """Add a gauge of Redis failures to a registry, if limits are shared."""
        if self._redis is not None:
            text = "1 while Redis does not answer and open requests and tokens are not shared."
            gauge = Gauge("pedcxr_shared_limits_fallback", text, registry=registry)
            gauge.set_function(lambda: self.redis_down)

    def start(self) -> None:
        """Start the background task, which asks Redis at once. Idempotent; no effect if nothing is shared."""
        if self._redis is not None and self._task is None:
            self._changed.set()
            self._task = asyncio.create_task(self._write_changes())

    async def admit(self, tenant: Tenant) -> str | None:
        """Count a request as open; return its id for `close`, or None if it is not counted in Redis.

        Raises:
            AdmissionRefused: 429, the tenant is over a limit of all gateways together; or 503, the limits are required
                and Redis does not answer.
        """
        if self._redis is None:
            return None
        self.start()
        name, day = f"{self._prefix}-{next(self._numbers)}", self._today()
        budget = -1 if tenant.tokens_per_day is None else tenant.tokens_per_day
        keys = (_open_key(tenant.name), _tokens_key(day, tenant.name))
        answer = await self._try(
            lambda redis: redis.eval(_OPEN, 2, *keys, name, tenant.max_concurrent, budget, _LEASE_S)
        )
        if answer is None:
            if self._required:
                message = "the limits of this tenant cannot be checked; try again in a moment"
                raise AdmissionRefused(503, "limits_unknown", message, 2)
            return None
        code, tokens = answer[0].decode(), int(answer[1])
        if tenant.tokens_per_day is not None:
            self._left[tenant.name] = tenant.tokens_per_day - tokens
        if code == "budget_spent":
            message = "the daily token budget is spent; it is reset at 00:00 UTC"
            raise AdmissionRefused(429, code, message, 86_400 - time.time() % 86_400)
        if code:
            message = f"the limit of {tenant.max_concurrent} open requests is reached; wait until one ends"
            raise AdmissionRefused(429, code, message, 1)
        self._open[name] = tenant.name
        return name

    def close(self, name: str | None) -> None:
        """End a request that `admit` counted."""
        if name is not None and (tenant := self._open.pop(name, None)) is not None:
            self._ended.append((name, tenant))
            self._changed.set()

    def set_tokens(self, day: str, tenant: str, tokens: int) -> None:
        """Tell the other gateways how many tokens this one has counted for a tenant on a day."""
        if self._redis is not None:
            self._tokens[day, tenant] = tokens
            self._counted.add((day, tenant))
            self._changed.set()

    def tokens_left(self, tenant: Tenant) -> float:
        """Return the rest of the tenant's budget as Redis knew it at the last request; infinite if unknown."""
        return math.inf if self.redis_down else self._left.get(tenant.name, math.inf)

    async def stop(self) -> None:
        """Remove what is left of this gateway's requests from Redis, and end the background task."""
        if self._task is not None:
            self._stopping = True
            self._task.cancel()  # the client of Redis may swallow it
            await asyncio.gather(self._task, return_exceptions=True)
            await self._write()

    async def _write_changes(self) -> None:
        while not self._stopping:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_RENEW_S):
                    await self._changed.wait()
            self._changed.clear()
            if not await self._write():
                await asyncio.sleep(_RETRY_S)

    async def _write(self) -> bool:
        """Write what has changed, and every 5 s the whole state of this gateway; return whether Redis has it."""
        whole = self.redis_down or self._clock() >= self._renew_at
        today = self._today()
        self._tokens = {key: tokens for key, tokens in self._tokens.items() if key[0] >= today}
        ended, self._ended = self._ended, []
        counted, self._counted = self._counted, set()
        renewed: dict[str, list[str]] = {}
        if whole:
            counted = set(self._tokens)
            for name, tenant in self._open.items():
                renewed.setdefault(tenant, []).append(name)

        def send(redis: Any) -> Any:
            pipeline = redis.pipeline(transaction=False)
            pipeline.set(f"pedcxr:alive:{self._replica}", 1, ex=_LEASE_S)  # without it, nothing might ask Redis
            for name, tenant in ended:
                pipeline.zrem(_open_key(tenant), name)
            for tenant, names in renewed.items():
                pipeline.eval(_RENEW, 1, _open_key(tenant), _LEASE_S, *names)
            for day, tenant in counted & set(self._tokens):
                pipeline.hset(_tokens_key(day, tenant), self._replica, self._tokens[day, tenant])
                pipeline.expire(_tokens_key(day, tenant), _KEEP_TOKENS_S)
            return pipeline.execute()

        if await self._try(send) is None:
            self._ended = ended + self._ended
            self._counted |= counted
            return False
        if whole:
            self._renew_at = self._clock() + _RENEW_S
        return True

    async def _try(self, call: Callable[[Any], Any]) -> Any:
        """Return the answer of Redis, or None if it does not answer in time or was asked in vain a moment ago."""
        if self._clock() < self._retry_at:
            return None
        if self.redis_down:
            self._retry_at = self._clock() + _RETRY_S  # this call tries Redis, the others do not wait
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                answer = await call(self._redis)
        except Exception as error:  # a failure of Redis fails no request unless the limits are required
            self._retry_at = self._clock() + _RETRY_S
            if not self.redis_down:
                self.redis_down = True
                # The error's message may contain the address, and the address a password.
                _log.error("limits: Redis does not answer (%s); open requests and tokens %s", type(error).__name__,
                           "are refused" if self._required else "count for this gateway alone")  # fmt: skip
            return None
        if self.redis_down:
            self.redis_down = False
            self._retry_at = -math.inf
            _log.warning("limits: Redis answers again; open requests and tokens are shared")
        return answer


# The braces keep both keys of a tenant on one node of a cluster.
def _open_key(tenant: str) -> str:
    return f"pedcxr:{{{tenant}}}:open"


def _tokens_key(day: str, tenant: str) -> str:
    return f"pedcxr:{{{tenant}}}:tokens:{day}"
