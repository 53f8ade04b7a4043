"""`Admission` for coroutines: a request waits here until it is its turn."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from pedcxr_serve.gateway.auth.tenants import Tenant
from pedcxr_serve.gateway.scheduler import Admission, Ticket


class Gate:
    """Wakes those whose turn it is; used from one event loop."""

    def __init__(self, admission: Admission, clock: Callable[[], float] = time.monotonic) -> None:
        self.admission = admission
        self._clock = clock
        self._turns: dict[Ticket, asyncio.Future[None]] = {}

    def open(self, tenant: Tenant, *, tokens_left: float, reset_s: float) -> Ticket:
        """Let a request in; every ticket must be given to `close` once.

        Raises:
            Rejected: as `Admission.open`.
        """
        return self.admission.open(tenant, self._clock(), tokens_left=tokens_left, reset_s=reset_s)

    async def turn(self, ticket: Ticket, cost: float) -> None:
        """Wait for the request's turn. Cancelled, it keeps its place, or slot, until `close`.

        Raises:
            Rejected: as `Admission.queue`.
        """
        self.admission.queue(ticket, cost)
        turn = self._turns[ticket] = asyncio.get_running_loop().create_future()
        self._wake()
        await turn

    def prepared(self, ticket: Ticket) -> None:
        """The engine has a request's film ready: another may be sent."""
        self.admission.prepared(ticket)
        self._wake()

    def began(self, ticket: Ticket) -> None:
        """The engine writes a request's answer: another may start."""
        self.admission.began(ticket)
        self._wake()

    def begins_unseen(self, ticket: Ticket) -> None:
        """A request was sent whose answer comes in one piece: take it as prepared, and as begun, in a while."""
        loop = asyncio.get_running_loop()
        loop.call_later(self.admission.prepare_s, self.prepared, ticket)
        loop.call_later(self.admission.start_s, self.began, ticket)

    def close(self, ticket: Ticket) -> None:
        """End a request and give its place to the next."""
        self._turns.pop(ticket, None)
        self.admission.close(ticket, self._clock())
        self._wake()

    def _wake(self) -> None:
        while (ticket := self.admission.next(self._clock())) is not None:
            turn = self._turns.pop(ticket)
            if not turn.done():
                turn.set_result(None)
