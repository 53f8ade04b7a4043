"""Who is served next, and who is told to come back: the Virtual Token Counter with weights. Pure; time is passed in.

Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024), Algorithm 2: every tenant has a counter of the
service it got, divided by its weight; the tenant with the smallest counter among those that wait is next; a tenant
that comes back is lifted to the others, so that nobody saves up. While two tenants wait without a pause, their service
differs by at most twice the cost of the tokens that a full batch holds (Theorem 4.4).

What was sent waits in the engine's own lines until its first word: for its film to be prepared, one after the other,
and for a step that takes its prompt. Nobody can be put first there. So only as many are sent as keep both busy, and
some places are for those alone who have little in work, so that they need not wait for the others to begin or to end.
Nothing else is held back while there is a free slot (work conservation).

A request's life: ``open`` (counted, its body unread) ─▶ ``queue`` ─▶ ``next`` gives it out ─▶ ``prepared`` ─▶ ``began``
─▶ ``charge``* ─▶ ``close``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from pedcxr_serve.gateway.auth.tenants import Tenant

__all__ = ["OUTPUT_COST", "Admission", "Rejected", "Ticket"]

OUTPUT_COST = 2.0
"""Cost of a token of an answer, in tokens of a prompt: w_q / w_p of the paper, and of most price lists."""

_MEMORY = 0.1  # of the running mean of a request's seconds


class Rejected(Exception):
    """Not now.

    Attributes:
        status: 429 for a limit of the tenant's, 503 for the server's.
        code: a stable word for programs and for the metric.
        retry_after: seconds, at least 1.
    """

    def __init__(self, status: int, code: str, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.status, self.code, self.retry_after = status, code, max(1, math.ceil(retry_after))


@dataclass(eq=False, slots=True)
class Ticket:
    """One request; made by `Admission.open` and changed by `Admission` only.

    Attributes:
        tenant: as it was when the request came.
        stage: ``open``, ``waiting``, ``running`` or ``closed``.
        service: cost charged so far.
        prepared: whether the engine has read it and prepared its film.
        begun: whether its answer has begun.
    """

    tenant: Tenant
    cost: float = 0.0
    stage: str = "open"
    service: float = 0.0
    started: float = 0.0
    prepared: bool = False
    begun: bool = False


@dataclass(slots=True)
class _Account:
    counter: float = 0.0
    service: float = 0.0
    opened: int = 0
    running: int = 0
    waiting: dict[Ticket, None] = field(default_factory=dict)


class Admission:
    """The state of it all.

    Args:
        slots: requests in work at once; with ``spare`` the engine's ``max-num-seqs``, so that its queue stays empty.
        max_waiting: requests waiting at once, of all tenants.
        max_wait_s: a request that would wait longer is turned away at once.
        max_preparing: requests in work whose films the engine has not prepared, at once.
        max_starting: requests in work whose answers have not begun, at once; with the former.
        spare: how many more of each, less those that the tenant has in work already.
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
    ) -> None:
        self._slots, self._spare = slots, spare
        self._max_preparing, self._max_starting = max_preparing, max_starting
        self._max_waiting, self._max_wait_s = max_waiting, max_wait_s
        self._accounts: dict[str, _Account] = {}
        self._last_left = 0.0  # counter of the tenant that left the queue last
        self._seconds: float | None = None  # running mean of a request in work
        self.running = 0
        self.preparing = 0
        self.starting = 0
        self.waiting = 0

    def open(self, tenant: Tenant, now: float, *, tokens_left: float = math.inf, reset_s: float = 0) -> Ticket:
        """Let a request in, before its body is read.

        Args:
            tokens_left: of the tenant's day.
            reset_s: seconds until the next day.

        Raises:
            Rejected: 429, with what the tenant has too much of.
        """
        account = self._accounts.setdefault(tenant.name, _Account())
        if tokens_left <= 0:
            raise Rejected(429, "budget_spent", "the tokens of the day are spent; they are back at 0:00 UTC", reset_s)
        if account.opened >= tenant.max_concurrent:
            message = f"{tenant.max_concurrent} requests are open, as many as allowed; wait for one to end"
            raise Rejected(429, "too_many_concurrent", message, self._seconds or 1)
        account.opened += 1
        return Ticket(tenant)

    def queue(self, ticket: Ticket, cost: float) -> None:
        """Put a request in line.

        Args:
            cost: tokens of prompt and image, charged when it is given out.

        Raises:
            Rejected: 503; the line is full or too slow.
        """
        account = self._accounts[ticket.tenant.name]
        wait = self.expected_wait(ticket.tenant)
        if self.waiting >= self._max_waiting:
            raise Rejected(503, "queue_full", f"{self.waiting} requests wait already; try again later", wait)
        if wait > self._max_wait_s:
            message = f"it would take about {wait:.0f} s to begin, more than {self._max_wait_s:.0f}; try again later"
            raise Rejected(503, "wait_too_long", message, wait - self._max_wait_s)
        if not account.waiting:
            others = [other.counter for other in self._accounts.values() if other.waiting]
            account.counter = max(account.counter, min(others) if others else self._last_left)
        account.waiting[ticket] = None
        self.waiting += 1
        ticket.stage, ticket.cost = "waiting", cost

    def next(self, now: float) -> Ticket | None:
        """The request to send to the engine now; None if there is no place or nobody waits. Call until None."""
        if not self.waiting:
            return None
        line = (one for one in self._accounts.values() if one.waiting)
        account = min(line, key=lambda one: (one.counter, one.running))  # level after a lift: the one without work
        more = max(0, self._spare - account.running)
        if (
            self.running >= self._slots + more
            or self.preparing >= self._max_preparing + more
            or self.starting >= self._max_starting + more
        ):
            return None
        ticket = next(iter(account.waiting))
        self._leave(account, ticket)
        ticket.stage, ticket.started = "running", now
        account.running += 1
        self.running += 1
        self.preparing += 1
        self.starting += 1
        self.charge(ticket, ticket.cost)
        return ticket

    def prepared(self, ticket: Ticket) -> None:
        """The engine has its film ready; harmless when it was told before, or when the request has ended."""
        if ticket.stage == "running" and not ticket.prepared:
            ticket.prepared = True
            self.preparing -= 1

    def began(self, ticket: Ticket) -> None:
        """The engine writes its answer; harmless when it was told before, or when the request has ended."""
        self.prepared(ticket)
        if ticket.stage == "running" and not ticket.begun:
            ticket.begun = True
            self.starting -= 1

    def charge(self, ticket: Ticket, cost: float) -> None:
        """Count service; a negative cost corrects an estimate."""
        account = self._accounts[ticket.tenant.name]
        account.counter += cost / ticket.tenant.weight
        account.service += cost
        ticket.service += cost

    def close(self, ticket: Ticket, now: float) -> None:
        """The request has ended, wherever it stood; harmless when it had ended before."""
        account = self._accounts[ticket.tenant.name]
        if ticket.stage == "closed":
            return
        if ticket.stage == "waiting":
            self._leave(account, ticket)
        elif ticket.stage == "running":
            self.began(ticket)  # or will not any more
            account.running -= 1
            self.running -= 1
            took = now - ticket.started
            self._seconds = took if self._seconds is None else self._seconds + _MEMORY * (took - self._seconds)
        account.opened -= 1
        ticket.stage = "closed"

    @property
    def prepare_s(self) -> float:
        """Seconds after which a request that does not show it counts as prepared: half of what would hold a full engine
        back, 0 until a request has ended."""
        return self._unseen_s(self._max_preparing)

    @property
    def start_s(self) -> float:
        """Seconds after which an answer that does not show its beginning counts as begun, by the same measure."""
        return self._unseen_s(self._max_starting)

    def expected_wait(self, tenant: Tenant) -> float:
        """Seconds until a request of the tenant that comes now would begin; 0 until a request has ended."""
        if self._seconds is None or self.running + self.waiting < self._slots:
            return 0.0
        line = [account.waiting for account in self._accounts.values() if account.waiting]
        weights = {next(iter(waiting)).tenant.name: next(iter(waiting)).tenant.weight for waiting in line}
        weights[tenant.name] = tenant.weight
        share = tenant.weight / sum(weights.values())
        return (len(self._accounts[tenant.name].waiting) + 1) * self._seconds / (self._slots * share)

    def service(self) -> dict[str, float]:
        """Cost charged so far, by tenant."""
        return {name: account.service for name, account in self._accounts.items()}

    def counts(self) -> dict[str, tuple[int, int]]:
        """Requests waiting and in work, by tenant."""
        return {name: (len(account.waiting), account.running) for name, account in self._accounts.items()}

    def _unseen_s(self, places: float) -> float:
        return (self._seconds or 0.0) * min(1.0, places / self._slots) / 2

    def _leave(self, account: _Account, ticket: Ticket) -> None:
        del account.waiting[ticket]
        self.waiting -= 1
        if not account.waiting:
            self._last_left = account.counter
