"""A discrete-event model of a replica: the gateway's own queue, film preparation, engine steps, events. No I/O.

::

    request ─▶ `FairQueue` ─▶ API process prepares the film ─▶ engine step with the prompt ─▶ decode steps ─▶ end
                  ▲                                                                                          │
                  └────────────────────────────────── slot ◀─────────────────────────────────────────────────┘

An API process prepares one film at a time. The engine runs one step after the other. A step lasts ``step``, and longer
by ``decode`` for each report that decodes and by ``prompt`` for each prompt that it takes in. Prompts enter a step in
the order in which their films were prepared, as many as `Replica.prompts_per_step` allows. The gateway forwards one
event after the other; while it cannot keep up, tokens arrive late.

What the model does not contain: network, clients that read slowly, processes that compete for a core. On a machine with
few cores, `simulate.fit` puts the last into the times of steps and films, for loads up to the number of slots.

Several replicas on one `Agenda` make a fleet.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pedcxr_serve.gateway.auth.tenants import Tenant
from pedcxr_serve.gateway.scheduler import FairQueue, Ticket


@dataclass(frozen=True, slots=True)
class Replica:
    """What a replica consists of and how long its parts take, in seconds.

    Attributes:
        prepare: of an API process for one film.
        step: of an engine step in any case.
        decode: more of a step for each report that decodes.
        arithmetic: of the arithmetic for each report that decodes; a step lasts at least as long for all of them.
        prompt: more of a step for each prompt.
        event: of the gateway for each event of a stream.
        request: of the gateway for each request.
        lengths: numbers of tokens of reports, each as probable as the others.
        slots: maximum number of requests in the engine.
        prompts_per_step: maximum number of prompts that a step takes in.
        api_processes: number of processes that prepare films.
        stream_interval: tokens per event.
    """

    prepare: float
    step: float
    decode: float
    prompt: float
    lengths: Sequence[int]
    slots: int
    arithmetic: float = 0.0
    event: float = 0.0
    request: float = 0.0
    prompts_per_step: int = 8
    api_processes: int = 1
    stream_interval: int = 1

    def step_s(self, decoding: int, prompts: int) -> float:
        """Return the seconds of a step."""
        return max(self.step + self.decode * decoding, self.arithmetic * decoding) + self.prompt * prompts


@dataclass(eq=False, slots=True)
class Request:
    """A simulated request; times in seconds.

    Attributes:
        tokens: length of the report.
        cost: charged to the tenant when the request leaves the gateway's queue.
        first, last: of the tokens at the client, once they are there.
        ticket: in the gateway's queue.
    """

    tenant: Tenant
    tokens: int
    arrived: float
    cost: float = 1.0
    first: float = 0.0
    last: float = 0.0
    ticket: Ticket | None = None

    @property
    def wait_s(self) -> float:
        """Seconds in the gateway's queue, once it has left it."""
        return self.ticket.sent_at - self.arrived if self.ticket else 0.0

    @property
    def tpot(self) -> float:
        """Seconds per token after the first."""
        return (self.last - self.first) / max(1, self.tokens - 1)


class Agenda:
    """A simulated clock, and what happens when.

    Attributes:
        now: seconds.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[Any], None], Any]] = []
        self._order = itertools.count()

    def at(self, time: float, call: Callable[[Any], None], argument: Any = None) -> None:
        """Call a function at a time; of equal times, the one that was set first comes first."""
        heapq.heappush(self._events, (time, next(self._order), call, argument))

    def step(self) -> None:
        """Let the next thing happen."""
        self.now, _, call, argument = heapq.heappop(self._events)
        call(argument)

    def run(self, until: float) -> None:
        """Let everything happen that happens until a time."""
        while self._events and self._events[0][0] <= until:
            self.step()
        self.now = until


@dataclass(slots=True)
class _Steps:
    """Equal steps of an engine, the first of which took prompts in.

    Attributes:
        forwarded: number of them whose events the gateway has forwarded.
        version: of the event that ends them; an event of another version is void.
    """

    begin: float
    number: int
    seconds: float
    prompts: list[Request]
    version: int
    forwarded: int = 0


class RunningReplica:
    """A `Replica` at work.

    Args:
        ended: called with each complete request, at the time of its last step.

    Attributes:
        busy: seconds that each part worked: ``films``, ``decode``, ``prompts`` and ``gateway``.
        decode_s: seconds of decoding, summed over the reports.
    """

    def __init__(self, times: Replica, agenda: Agenda, ended: Callable[[Request], None]) -> None:
        self._times, self._agenda, self._ended = times, agenda, ended
        self._queue = FairQueue(times.slots, max_waiting=10**9, max_wait_s=math.inf)
        self._requests: dict[Ticket, Request] = {}
        self._films: deque[Request] = deque()
        self._preparing = 0
        self._prompts: deque[Request] = deque()
        self._decoding = 0
        self._steps: _Steps | None = None
        self._step_count, self._version = 0, 0
        self._ending: defaultdict[int, list[Request]] = defaultdict(list)  # by step
        self._ends: list[int] = []  # a heap of the keys of `_ending`
        self._gateway_free = 0.0
        self.decode_s = 0.0
        self.busy = {"films": 0.0, "decode": 0.0, "prompts": 0.0, "gateway": 0.0}

    @property
    def open(self) -> int:
        """Number of requests that have not ended."""
        return len(self._requests)

    @property
    def waiting(self) -> int:
        """Number of requests in the gateway's queue."""
        return self._queue.waiting

    def service(self) -> dict[str, float]:
        """Return the cost of what has left the gateway's queue, by tenant."""
        return self._queue.service()

    def take(self, request: Request) -> None:
        """Begin a request."""
        ticket = request.ticket = self._queue.open(request.tenant, self._agenda.now)
        self._requests[ticket] = request
        self._forward_steps(self._completed())
        self._forward(1, self._times.request)
        self._queue.enqueue(ticket, request.cost)
        self._work()

    def lose(self) -> list[Request]:
        """End the replica; return the requests that it had open."""
        lost = list(self._requests.values())
        self._requests.clear()
        self._version += 1
        return lost

    def _work(self) -> None:
        now, times = self._agenda.now, self._times
        while (ticket := self._queue.next(now)) is not None:
            self._films.append(self._requests[ticket])
        while self._films and self._preparing < times.api_processes:
            self._preparing += 1
            self.busy["films"] += times.prepare
            self._agenda.at(now + times.prepare, self._prepared, self._films.popleft())
        if self._steps is None and (self._decoding or self._prompts):
            self._start_steps()

    def _prepared(self, request: Request) -> None:
        if request.ticket not in self._requests:
            return
        self._preparing -= 1
        self._queue.mark_prepared(request.ticket)
        self._prompts.append(request)
        self._end_early()
        self._work()

    def _start_steps(self) -> None:
        times, now = self._times, self._agenda.now
        prompts = [self._prompts.popleft() for _ in range(min(len(self._prompts), times.prompts_per_step))]
        seconds = times.step_s(self._decoding, len(prompts))
        # Without a prompt, equal steps follow until a report ends or a prompt arrives.
        number = 1 if prompts or not seconds else self._ends[0] - self._step_count
        self._schedule(_Steps(now, number, seconds, prompts, self._version))

    def _end_early(self) -> None:
        """End equal steps with the one that runs now, because a prompt waits."""
        steps = self._steps
        if steps is not None and (number := self._completed() + 1) < steps.number:
            self._version += 1
            steps.number, steps.version = number, self._version
            self._schedule(steps)

    def _schedule(self, steps: _Steps) -> None:
        self._steps = steps
        self._agenda.at(steps.begin + steps.number * steps.seconds, self._end_steps, steps.version)

    def _completed(self) -> int:
        """Return how many of the equal steps are complete; the last one is complete when `_end_steps` is called."""
        steps = self._steps
        if steps is None or steps.number == 1:
            return 0
        return min(steps.number - 1, int((self._agenda.now - steps.begin) / steps.seconds))

    def _end_steps(self, version: int) -> None:
        steps = self._steps
        if steps is None or version != self._version:
            return
        self._forward_steps(steps.number - 1)
        self._step_count += steps.number
        decode_s = steps.number * self._times.step_s(self._decoding, 0)
        self.busy["decode"] += decode_s
        self.busy["prompts"] += self._times.prompt * len(steps.prompts)
        self.decode_s += steps.number * steps.seconds * self._decoding
        at = self._forward(len(steps.prompts) + self._events(), self._times.event)
        ended = self._ending.pop(self._step_count, [])
        if ended:
            heapq.heappop(self._ends)
        self._decoding += len(steps.prompts) - len(ended)
        for request in steps.prompts:
            self._decode(request, at)
        self._steps = None
        for request in ended:
            request.last = at
            assert request.ticket is not None
            del self._requests[request.ticket]
            self._queue.close(request.ticket, self._agenda.now)
        self._work()
        for request in ended:
            self._ended(request)

    def _decode(self, request: Request, first: float) -> None:
        request.first = first
        assert request.ticket is not None
        self._queue.mark_started(request.ticket)
        end = self._step_count + max(1, request.tokens - 1)
        if end not in self._ending:
            heapq.heappush(self._ends, end)
        self._ending[end].append(request)

    def _events(self) -> float:
        """Return the events of a step without prompts."""
        return self._decoding / self._times.stream_interval

    def _forward_steps(self, until: int) -> None:
        """Let the gateway forward the events of the first equal steps, at their times.

        A backlog is longest after the first or after the last of them.
        """
        steps = self._steps
        if steps is None or (number := until - steps.forwarded) <= 0:
            return
        seconds = number * self._events() * self._times.event
        first = steps.begin + (steps.forwarded + 1) * steps.seconds
        self._gateway_free = max(self._gateway_free, first) + seconds
        self.busy["gateway"] += seconds
        steps.forwarded = until

    def _forward(self, number: float, seconds: float) -> float:
        """Let the gateway work now, and return when it has done so."""
        self.busy["gateway"] += number * seconds
        self._gateway_free = max(self._gateway_free, self._agenda.now) + number * seconds
        return self._gateway_free
