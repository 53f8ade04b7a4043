"""Limits that several gateways share in Redis: the open requests and the tokens of the day of each tenant.

A request costs one call of a script, which counts and admits in one step. Everything else is written by a background
task: ended requests, the leases of open ones, and the tokens that this gateway counted today. The task writes absolute
values every 5 s, so that a Redis that was restarted empty is correct again within that time. The leases of a gateway
that was killed expire after 15 s, by the clock of Redis. It writes without requests too, so that a Redis with another
password, or a full one, is reported at the start of the gateway.

While Redis does not answer, each gateway applies the limits by itself, or refuses requests if the limits are required.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import math
import time
import uuid
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Gauge

from pedcxr_serve.gateway.accounting.redis_calls import Command, RedisCalls
from pedcxr_serve.gateway.auth.tenants import Tenant
from pedcxr_serve.gateway.scheduler import AdmissionRefused

if TYPE_CHECKING:
    from redis.asyncio import ConnectionPool

_RETRY_S = 1.0  # until the background task writes again after a failure
_RENEW_S = 5.0
_LEASE_S = 15
_KEEP_TOKENS_S = 2 * 86_400
_log = logging.getLogger("pedcxr.gateway")

# KEYS: open requests, tokens of the day by ledger. ARGV: id, limit of open requests, budget or -1, lease in seconds.
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
        ledger: id of the sums that this gateway counts in, the same after a restart; no other gateway has it.
        required: refuse requests while Redis does not answer.
        today: the current day, YYYY-MM-DD in UTC.
        clock: seconds, monotonic; for the retries of Redis.

    Attributes:
        read_tokens: return the tokens of today by tenant, as this gateway has counted them, for tenants with a budget.
    """

    def __init__(
        self,
        pool: ConnectionPool | None = None,
        *,
        ledger: str = "",
        required: bool = False,
        today: Callable[[], str] = lambda: time.strftime("%Y-%m-%d", time.gmtime()),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger, self._today, self._clock = ledger, today, clock
        self._redis: RedisCalls | None = None
        if pool is not None:
            self._redis = RedisCalls(pool, "open requests and tokens", required=required, clock=clock)
        self._instance, self._numbers = uuid.uuid4().hex[:12], itertools.count()
        self._open: dict[str, str] = {}  # id -> tenant
        self._ended: list[tuple[str, str]] = []  # id and tenant, to be removed from Redis
        self._tokens: dict[tuple[str, str], int] = {}  # day and tenant -> counted by this gateway
        self._counted: set[tuple[str, str]] = set()  # those of `_tokens` that Redis does not have
        self._left: dict[str, float] = {}  # tenant -> rest of the budget when Redis was asked last
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        self._renew_at = -math.inf
        self._is_alive = False  # whether Redis knows this instance
        self._rival: bytes | None = None  # the instance that was reported last to use the same ledger
        self.read_tokens: Callable[[], Mapping[str, int]] = dict

    @property
    def redis_down(self) -> bool:
        """Whether the last call to Redis failed."""
        return self._redis is not None and self._redis.down

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
        name, day = f"{self._instance}-{next(self._numbers)}", self._today()
        budget = -1 if tenant.tokens_per_day is None else tenant.tokens_per_day
        keys = (_open_key(tenant.name), _tokens_key(day, tenant.name))
        answer = await self._redis.ask("EVAL", _OPEN, 2, *keys, name, tenant.max_concurrent, budget, _LEASE_S)
        if answer is None:
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
            self._tokens |= {(today, tenant): tokens for tenant, tokens in self.read_tokens().items()}
            counted = set(self._tokens)
            for name, tenant in self._open.items():
                renewed.setdefault(tenant, []).append(name)

        # Written each time: without it, nothing might ask Redis, or show that another gateway has this ledger.
        alive = f"pedcxr:alive:{self._ledger}"
        commands: list[Command] = [("GET", alive), ("SET", alive, self._instance, "EX", _LEASE_S)]
        commands += [("ZREM", _open_key(tenant), name) for name, tenant in ended]
        commands += [("EVAL", _RENEW, 1, _open_key(tenant), _LEASE_S, *names) for tenant, names in renewed.items()]
        for day, tenant in counted & set(self._tokens):
            key = _tokens_key(day, tenant)
            commands += [("HSET", key, self._ledger, self._tokens[day, tenant]), ("EXPIRE", key, _KEEP_TOKENS_S)]
        assert self._redis is not None
        if (answers := await self._redis.call(*commands)) is None:
            self._ended = ended + self._ended
            self._counted |= counted
            return False
        self._report_rival(answers[0])
        if whole:
            self._renew_at = self._clock() + _RENEW_S
        return True

    def _report_rival(self, instance: bytes | None) -> None:
        """Log the instance that wrote last, unless it may be the one that this instance replaces."""
        if self._is_alive and instance not in (None, self._instance.encode(), self._rival):
            self._rival = instance
            _log.error(
                "limits: another gateway counts in a copy of this usage database, and each replaces the tokens of the "
                "other in Redis; stop that gateway, move its copy away, and start it again"
            )
        self._is_alive = True


# The braces keep both keys of a tenant on one node of a cluster.
def _open_key(tenant: str) -> str:
    return f"pedcxr:{{{tenant}}}:open"


def _tokens_key(day: str, tenant: str) -> str:
    return f"pedcxr:{{{tenant}}}:ledgers:{day}"
