"""Calls to Redis: sent in batches over one connection, and given up when Redis does not answer in time.

Calls that arrive while Redis works on a batch form the next one, so that a thousand requests at once cost some tens of
round trips, and none waits for a connection. A batch may take 0.1 s of a free event loop: time that the loop spends on
other work, while an answer may lie unread in the socket, does not count, up to 0.5 s in all. After a failure one call
per second tries again, and the others are answered at once, without Redis.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, parse_qsl, urlsplit

from pedcxr_serve.errors import ConfigError
from pedcxr_serve.gateway.scheduler import AdmissionRefused

if TYPE_CHECKING:
    from redis.asyncio import ConnectionPool

URL_VARIABLE = "PEDCXR_LIMITS_URL"
_TIMEOUT_S = 0.1
_STEPS = 32  # of the time-out; each lets the event loop read what has arrived
_FEWEST_STEPS, _MOST_TIMEOUTS = 4, 5  # after so many steps, a busy loop waits no longer than 5 time-outs
_RETRY_S = 1.0  # until Redis is tried again
_OPTIONS = ("db", "username", "password", "protocol", "client_name", "health_check_interval", "socket_keepalive")
_BATCH = 64  # calls; Redis answers so many within a few milliseconds
_log = logging.getLogger("pedcxr.gateway")

Command = tuple[str | float, ...]
"""Name and arguments of a command of Redis."""


class RedisCalls:
    """Calls Redis for some of the limits; used from one event loop.

    Args:
        pool: connections to Redis; the caller closes it.
        limits: the limits in words, for the log.
        required: refuse requests while Redis does not answer.
        clock: seconds, monotonic; for the retries.

    Attributes:
        down: whether the last call failed.
    """

    def __init__(
        self, pool: ConnectionPool, limits: str, *, required: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        from redis.asyncio import Redis

        self._redis = Redis(connection_pool=pool)
        self._limits, self._required, self._clock = limits, required, clock
        self._waiting: list[tuple[tuple[Command, ...], asyncio.Future[list[Any] | None]]] = []
        self._sender: asyncio.Task[None] | None = None
        self._retry_at = -math.inf
        self.down = False

    async def ask(self, *command: str | float) -> Any:
        """Return the answer to a command that decides on a request, or None if this gateway has to decide alone.

        Raises:
            AdmissionRefused: 503, the limits are required, and Redis does not answer.
        """
        answers = await self.call(command)
        if answers is not None:
            return answers[0]
        if self._required:
            message = "the limits of this tenant cannot be checked; try again in a moment"
            raise AdmissionRefused(503, "limits_unknown", message, 2)
        return None

    async def call(self, *commands: Command) -> list[Any] | None:
        """Return the answers to commands, which Redis gets in this order and after those of earlier calls.

        None: one of them failed, Redis does not answer in time, or it was asked in vain a moment ago.
        """
        if self._clock() < self._retry_at:
            return None
        if self.down:
            self._retry_at = self._clock() + _RETRY_S  # this call tries Redis, the others do not wait
        answers: asyncio.Future[list[Any] | None] = asyncio.get_running_loop().create_future()
        self._waiting.append((commands, answers))
        if self._sender is None:
            self._sender = asyncio.create_task(self._send())
        return await answers

    async def _send(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:_BATCH], self._waiting[_BATCH:]
            try:
                answers = iter(await self._execute([command for commands, _ in batch for command in commands]))
                results = [list(itertools.islice(answers, len(commands))) for commands, _ in batch]
                errors = [answer for result in results for answer in result if isinstance(answer, Exception)]
            except Exception as error:  # a failure of Redis fails no request unless the limits are required
                results, errors = [[error] for _ in batch], [error]
            if errors:
                self._failed(errors[0])
                results += [errors[:1] for _ in self._waiting]
                batch, self._waiting = batch + self._waiting, []
            elif self.down:
                self.down, self._retry_at = False, -math.inf
                _log.warning("limits: Redis answers again; %s are shared", self._limits)
            for (_, future), result in zip(batch, results, strict=True):
                if not future.done():  # its request may have been cancelled
                    future.set_result(None if any(isinstance(answer, Exception) for answer in result) else result)
        self._sender = None

    async def _execute(self, commands: list[Command]) -> list[Any]:
        """Return the answers, errors of Redis among them. Raise TimeoutError if they do not arrive in time."""
        pipeline = self._redis.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        execution = asyncio.ensure_future(pipeline.execute(raise_on_error=False))
        began = time.monotonic()
        for step in range(_STEPS):
            await asyncio.wait((execution,), timeout=_TIMEOUT_S / _STEPS)
            if execution.done():
                return execution.result()
            if step >= _FEWEST_STEPS and time.monotonic() - began > _MOST_TIMEOUTS * _TIMEOUT_S:
                break
        execution.cancel()
        await asyncio.gather(execution, return_exceptions=True)
        raise TimeoutError

    def _failed(self, error: Exception) -> None:
        self._retry_at = self._clock() + _RETRY_S
        if not self.down:
            self.down = True
            effect = "cannot be checked, so requests are refused" if self._required else "count for this gateway alone"
            # The error's message may contain the address, and the address a password.
            _log.error("limits: Redis does not answer (%s); %s %s", type(error).__name__, self._limits, effect)


def url_from(setting: str, env: Mapping[str, str]) -> str:
    """Return the address of Redis from the setting, else from the environment, else an empty string."""
    return setting or env.get(URL_VARIABLE, "")


def connection_pool(url: str) -> ConnectionPool:
    """Return a pool of connections to Redis, none of them open yet.

    Raises:
        ConfigError: the address is invalid, or the client is not installed. The message does not contain the address,
            which may contain a password.
    """
    try:
        from redis.asyncio import ConnectionPool
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
    except ImportError as error:
        raise ConfigError("gateway.limits_url: the Redis client is not installed; install pedcxr[redis]") from error
    try:
        parts = urlsplit(url)
        _require_known_parts(parts)
        pool = ConnectionPool.from_url(
            url,
            socket_timeout=None,  # `RedisCalls` has a time limit of its own
            socket_connect_timeout=None,
            retry=Retry(NoBackoff(), 1),  # Redis may have closed an idle connection: retry once
        )
        pool.make_connection()  # type: ignore[no-untyped-call]  # an option that the client does not know fails here
    except Exception:  # the client raises errors of many kinds, and their messages may contain parts of the address
        raise ConfigError(
            f"gateway.limits_url, or {URL_VARIABLE}: must be redis://HOST:PORT/DB, rediss://HOST:PORT/DB or "
            "unix:///PATH, with user and password before the host, as in redis://USER:PASSWORD@HOST. DB must be a "
            f"number. Allowed after a question mark: {', '.join(_OPTIONS)}, and the ssl_ options of the Redis client."
        ) from None
    return pool


def _require_known_parts(parts: SplitResult) -> None:
    """Raise ValueError for what the client would ignore, or what would change its answers."""
    if parts.scheme == "unix":
        is_known = bool(parts.path)
    else:
        database = parts.path.strip("/")
        is_known = parts.scheme in ("redis", "rediss") and bool(parts.hostname)
        is_known = is_known and (not database or database.isdecimal())
    names = [name for name, _ in parse_qsl(parts.query, keep_blank_values=True)]
    if not is_known or parts.fragment or any(name not in _OPTIONS and not name.startswith("ssl_") for name in names):
        raise ValueError
