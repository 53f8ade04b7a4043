"""Weighted fair scheduling of requests: which request the engine gets next, and which requests are refused.

`FairQueue` is the Virtual Token Counter with weights of Sheng et al., "Fairness in Serving Large Language Models"
(OSDI 2024), Algorithm 2. It does no I/O and gets the time as an argument. Each tenant has a counter of the service that
it received, divided by its weight. The waiting tenant with the smallest counter is next. When an idle tenant returns,
its counter is lifted to the smallest counter of the waiting tenants, so that idle time earns no credit. While two
tenants wait without a pause, their service differs by at most twice the cost of the tokens that a full batch holds
(Theorem 4.4).

A request that was sent waits in the engine's own queues until its first token: first for its image to be preprocessed,
one image at a time, then for a prefill step. The gateway cannot reorder those queues. It therefore sends only as many
requests as keep both busy. Some further slots are reserved for tenants with few running requests, so that these need
not wait for the requests of others to start or to end. Apart from these two limits the queue is work-conserving: no
request waits while a slot is free.

`FairScheduler` is the queue for coroutines: a request awaits its turn there.

States of a request: ``open`` (counted, body not read) ─▶ ``enqueue`` ─▶ ``next`` (sent) ─▶ ``mark_prepared`` ─▶
``mark_started`` ─▶ ``charge``* ─▶ ``close``.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from pedcxr_serve.gateway.auth.tenants import Tenant

OUTPUT_COST = 2.0
"""Cost of an output token in units of a prompt token: w_q / w_p of the paper, and the ratio of most price lists."""

_QUEUE_SHARE = 0.75
"""Largest number of waiting requests of a tenant, as a fraction of the free places of the queue. Each tenant that
floods it leaves 4/7 of them free for the next."""

_SMOOTHING = 0.1  # weight of the latest request in the moving average of running times


class AdmissionRefused(Exception):
    """The request cannot be served now.

    Attributes:
        status: 429 for a limit of the tenant, 503 for a limit of the server.
        code: a stable error code, also the value of a metric label.
        retry_after: seconds, an integer of at least 1.
    """

    def __init__(self, status: int, code: str, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.status, self.code, self.retry_after = status, code, max(1, math.ceil(retry_after))


@dataclass(eq=False, slots=True)
class Ticket:
    """One request in a `FairQueue`, which creates it and alone changes it.

    Attributes:
        tenant: the tenant's settings when the request arrived.
        cost: cost of the prompt, in prompt tokens.
        stage: ``open``, ``waiting``, ``running`` or ``closed``.
        service: cost charged so far.
        sent_at: the time when the request left the queue.
        prepared: whether the engine has read the request and preprocessed its image.
        started: whether the engine has produced the first token.
        shared: id in the limits that gateways share, set by the gateway; None if the request is not counted there.
        suspect: whether its film may have ended the engine, set by the gateway: it is sent only while no other suspect
            runs without a first token.
    """

    tenant: Tenant
    cost: float = 0.0
    stage: str = "open"
    service: float = 0.0
    sent_at: float = 0.0
    prepared: bool = False
    started: bool = False
    shared: str | None = None
    suspect: bool = False


@dataclass(slots=True)
class _Account:
    counter: float = 0.0
    service: float = 0.0
    opened: int = 0
    running: int = 0
    mean_run_s: float | None = None  # moving average of the time from `next` to `close`, of completed requests
    waiting: dict[Ticket, None] = field(default_factory=dict)


class FairQueue:
    """All open requests and the service that each tenant received.

    Args:
        slots: maximum number of running requests. ``slots`` and ``spare`` add up to the engine's ``max-num-seqs``, so
            that the engine's own queue stays empty.
        max_waiting: maximum number of waiting requests of all tenants.
        multi_tenant: limit the part of the queue that one tenant may fill.
        max_wait_s: a request whose expected wait is longer is refused at once.
        max_preparing: maximum number of running requests in image preprocessing.
        max_starting: maximum number of running requests without a first token, requests in preprocessing included.
        spare: number by which a tenant may exceed the last three limits, less the requests that it has running.
    """

    def __init__(
        self,
        slots: int,
        *,
        max_waiting: int,
        max_wait_s: float,
        max_preparing: float = math.inf,
        max_starting: float = math.inf,
        spare: int = 0,
        multi_tenant: bool = False,
    ) -> None:
        self._multi_tenant = multi_tenant
        self.resize(slots, max_preparing=max_preparing, max_starting=max_starting, spare=spare)
        self._max_waiting, self._max_wait_s = max_waiting, max_wait_s
        self._accounts: dict[str, _Account] = {}
        self._last_counter = 0.0  # counter of the tenant that left the queue last
        self.running = 0
        self.preparing = 0
        self.starting = 0
        self._suspect_starting = False
        self.waiting = 0

    def resize(self, slots: int, *, max_preparing: float, max_starting: float, spare: int) -> None:
        """Set the limits of the engine, for example after it was replaced. Running requests may then exceed them."""
        self._slots, self._spare = slots, spare
        self._max_preparing, self._max_starting = max_preparing, max_starting

    def open(self, tenant: Tenant, now: float, *, tokens_left: float = math.inf, reset_s: float = 0) -> Ticket:
        """Admit a request before its body is read.

        Args:
            tokens_left: rest of the tenant's daily token budget.
            reset_s: seconds until the budget is reset.

        Raises:
            AdmissionRefused: 429, the tenant is over its budget or its number of open requests.
        """
        account = self._accounts.setdefault(tenant.name, _Account())
        if tokens_left <= 0:
            message = "the daily token budget is spent; it is reset at 00:00 UTC"
            raise AdmissionRefused(429, "budget_spent", message, reset_s)
        if account.opened >= tenant.max_concurrent:
            message = f"the limit of {tenant.max_concurrent} open requests is reached; wait until one ends"
            raise AdmissionRefused(429, "too_many_concurrent", message, self._run_s(account) or 1)
        account.opened += 1
        return Ticket(tenant)

    def enqueue(self, ticket: Ticket, cost: float) -> None:
        """Add a request to the queue.

        Args:
            cost: of the prompt and its image, charged when the request is sent.

        Raises:
            AdmissionRefused: 503, the queue is full or the expected wait is too long.
        """
        account = self._accounts[ticket.tenant.name]
        wait = self.expected_wait(ticket.tenant)
        if self.waiting >= self._max_waiting:
            message = f"the queue is full ({self.waiting} requests); try again later"
            raise AdmissionRefused(503, "queue_full", message, wait)
        if self._multi_tenant and len(account.waiting) >= math.ceil(_QUEUE_SHARE * (self._max_waiting - self.waiting)):
            message = f"this tenant's share of the queue is full ({len(account.waiting)} requests); try again later"
            raise AdmissionRefused(503, "queue_full", message, wait)
        if wait > self._max_wait_s:
            message = f"the expected wait is {wait:.0f} s, over the limit of {self._max_wait_s:.0f} s; try again later"
            raise AdmissionRefused(503, "wait_too_long", message, wait - self._max_wait_s)
        if not account.waiting:
            others = [other.counter for other in self._accounts.values() if other.waiting]
            account.counter = max(account.counter, min(others) if others else self._last_counter)
        account.waiting[ticket] = None
        self.waiting += 1
        ticket.stage, ticket.cost = "waiting", cost

    def next(self, now: float) -> Ticket | None:
        """Return the request to send to the engine now, or None. Call it until it returns None."""
        if not self.waiting:
            return None
        accounts = self._accounts.values()
        candidates = [(account, head) for account in accounts if (head := self._head(account)) is not None]
        if not candidates:
            return None
        # Counters are equal after a lift: then the tenant with fewer running requests is next.
        account, ticket = min(candidates, key=lambda candidate: (candidate[0].counter, candidate[0].running))
        spare = max(0, self._spare - account.running)
        if (
            self.running >= self._slots + spare
            or self.preparing >= self._max_preparing + spare
            or self.starting >= self._max_starting + spare
        ):
            return None
        self._leave_queue(account, ticket)
        ticket.stage, ticket.sent_at = "running", now
        self._suspect_starting |= ticket.suspect
        account.running += 1
        self.running += 1
        self.preparing += 1
        self.starting += 1
        self.charge(ticket, ticket.cost)
        return ticket

    def mark_prepared(self, ticket: Ticket) -> None:
        """Record that the image is preprocessed. Idempotent; no effect on a request that has ended."""
        if ticket.stage == "running" and not ticket.prepared:
            ticket.prepared = True
            self.preparing -= 1

    def mark_started(self, ticket: Ticket) -> None:
        """Record the first token, which implies `mark_prepared`. Idempotent; no effect on a request that has ended."""
        self.mark_prepared(ticket)
        if ticket.stage == "running" and not ticket.started:
            ticket.started = True
            self.starting -= 1
            if ticket.suspect:
                self._suspect_starting = False

    def charge(self, ticket: Ticket, cost: float) -> None:
        """Charge service to the request's tenant; a negative cost corrects an estimate."""
        account = self._accounts[ticket.tenant.name]
        account.counter += cost / ticket.tenant.weight
        account.service += cost
        ticket.service += cost

    def close(self, ticket: Ticket, now: float, *, completed: bool = True) -> None:
        """End a request in any stage. Idempotent.

        Args:
            completed: whether the engine wrote the whole answer. Others, which may end at once, say nothing about how
                long the next request will run.
        """
        account = self._accounts[ticket.tenant.name]
        if ticket.stage == "closed":
            return
        if ticket.stage == "waiting":
            self._leave_queue(account, ticket)
        elif ticket.stage == "running":
            self.mark_started(ticket)  # a request may end without a token
            account.running -= 1
            self.running -= 1
            if completed:
                run_s, mean = now - ticket.sent_at, account.mean_run_s
                account.mean_run_s = run_s if mean is None else mean + _SMOOTHING * (run_s - mean)
        account.opened -= 1
        ticket.stage = "closed"

    def assumed_prepare_s(self, tenant: Tenant) -> float:
        """Return the seconds after which an unstreamed request counts as prepared: its answer arrives in one piece.

        It is ``max_preparing / slots / 2`` of the mean running time, and 0 until a request has ended.
        """
        return self._assumed_s(tenant, self._max_preparing)

    def assumed_start_s(self, tenant: Tenant) -> float:
        """Return the seconds after which an unstreamed request counts as started; see `assumed_prepare_s`."""
        return self._assumed_s(tenant, self._max_starting)

    def expected_wait(self, tenant: Tenant) -> float:
        """Return the seconds until a new request of the tenant would be sent; 0 until a request has ended."""
        if self.running + self.waiting < self._slots:
            return 0.0
        account = self._accounts.get(tenant.name) or _Account()
        queues = [account.waiting for account in self._accounts.values() if account.waiting]
        weights = {next(iter(waiting)).tenant.name: next(iter(waiting)).tenant.weight for waiting in queues}
        weights[tenant.name] = tenant.weight
        share = tenant.weight / sum(weights.values())
        return (len(account.waiting) + 1) * self._run_s(account) / (self._slots * share)

    @property
    def slots(self) -> int:
        """Maximum number of running requests, the reserved ones included."""
        return self._slots + self._spare

    def service(self) -> dict[str, float]:
        """Return the cost charged so far, by tenant."""
        return {name: account.service for name, account in self._accounts.items()}

    def counts(self) -> dict[str, tuple[int, int]]:
        """Return the numbers of waiting and of running requests, by tenant."""
        return {name: (len(account.waiting), account.running) for name, account in self._accounts.items()}

    def _assumed_s(self, tenant: Tenant, limit: float) -> float:
        # A tenant cannot shorten these times below the average of all tenants by sending requests of one token.
        run_s = max(self._run_s(self._accounts[tenant.name]), self._mean_of_tenants_s())
        return run_s * min(1.0, limit / self._slots) / 2

    def _run_s(self, account: _Account) -> float:
        """Return the mean running time of a tenant, before its first answer that of all tenants, else 0."""
        return self._mean_of_tenants_s() if account.mean_run_s is None else account.mean_run_s

    def _mean_of_tenants_s(self) -> float:
        means = [other.mean_run_s for other in self._accounts.values() if other.mean_run_s is not None]
        return sum(means) / len(means) if means else 0.0

    def _head(self, account: _Account) -> Ticket | None:
        """Return the next request of a tenant; None without one, or if all wait for another suspect's first token."""
        return next((ticket for ticket in account.waiting if not (ticket.suspect and self._suspect_starting)), None)

    def _leave_queue(self, account: _Account, ticket: Ticket) -> None:
        del account.waiting[ticket]
        self.waiting -= 1
        if not account.waiting:
            self._last_counter = account.counter


class FairScheduler:
    """A `FairQueue` whose requests are coroutines of one event loop. ``clock`` returns seconds, monotonic."""

    def __init__(self, queue: FairQueue, clock: Callable[[], float] = time.monotonic) -> None:
        self.queue = queue
        self._clock = clock
        self._turns: dict[Ticket, asyncio.Future[None]] = {}

    def open(self, tenant: Tenant, *, tokens_left: float, reset_s: float) -> Ticket:
        """Admit a request, or raise as `FairQueue.open` does. Every ticket must be passed to `close`."""
        return self.queue.open(tenant, self._clock(), tokens_left=tokens_left, reset_s=reset_s)

    async def wait_turn(self, ticket: Ticket, cost: float) -> None:
        """Add a request to the queue, or raise as `FairQueue.enqueue` does, and wait until it may be sent.

        A cancelled request keeps its place in the queue, or its slot, until `close`.
        """
        self.queue.enqueue(ticket, cost)
        turn = self._turns[ticket] = asyncio.get_running_loop().create_future()
        self._send_next()
        await turn

    def mark_prepared(self, ticket: Ticket) -> None:
        """Record that the image is preprocessed, which may let another request be sent."""
        self.queue.mark_prepared(ticket)
        self._send_next()

    def mark_started(self, ticket: Ticket) -> None:
        """Record the first token, which may let another request be sent."""
        self.queue.mark_started(ticket)
        self._send_next()

    def assume_progress(self, ticket: Ticket) -> None:
        """Mark an unstreamed request as prepared and as started after the times that its queue assumes.

        A suspect is started by its answer alone: an engine that it stops may be noticed only after these times.
        """
        if ticket.suspect:
            return
        loop = asyncio.get_running_loop()
        loop.call_later(self.queue.assumed_prepare_s(ticket.tenant), self.mark_prepared, ticket)
        loop.call_later(self.queue.assumed_start_s(ticket.tenant), self.mark_started, ticket)

    def close(self, ticket: Ticket, *, completed: bool = True) -> None:
        """End a request and give its slot to the next; ``completed`` is explained at `FairQueue.close`."""
        self._turns.pop(ticket, None)
        self.queue.close(ticket, self._clock(), completed=completed)
        self._send_next()

    def _send_next(self) -> None:
        while (ticket := self.queue.next(self._clock())) is not None:
            turn = self._turns.pop(ticket)
            if not turn.done():
                turn.set_result(None)
