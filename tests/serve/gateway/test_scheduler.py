"""Fair scheduling: shares by weight, the paper's bound, work conservation, and exact slot accounting."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pedcxr_serve.gateway.auth.tenants import Tenant
from pedcxr_serve.gateway.scheduler import OUTPUT_COST, AdmissionRefused, FairQueue, FairScheduler, Ticket

FREE = Tenant("free", max_concurrent=10_000)


def fair_queue(
    slots: int = 2,
    max_waiting: int = 10_000,
    max_wait_s: float = 1e9,
    max_preparing: float = math.inf,
    max_starting: float = math.inf,
    spare: int = 0,
) -> FairQueue:
    return FairQueue(
        slots,
        max_waiting=max_waiting,
        max_wait_s=max_wait_s,
        max_preparing=max_preparing,
        max_starting=max_starting,
        spare=spare,
    )


@dataclass
class Engine:
    """A simulated engine: in each step every running request produces one token."""

    slots: int
    tenants: dict[str, tuple[Tenant, int, Callable[[], int], Callable[[], int]]]  # tenant, backlog, prompt, output
    queue: FairQueue = field(init=False)
    remaining: dict[Ticket, int] = field(default_factory=dict)
    now: float = 0.0

    def __post_init__(self) -> None:
        self.queue = fair_queue(self.slots)

    def refill(self) -> None:
        for name, (tenant, backlog, prompt, _) in self.tenants.items():
            while self.queue.counts().get(name, (0, 0))[0] < backlog:
                self.queue.enqueue(self.queue.open(tenant, self.now), prompt())

    def step(self) -> None:
        self.refill()
        while (ticket := self.queue.next(self.now)) is not None:
            self.remaining[ticket] = self.tenants[ticket.tenant.name][3]()
        self.now += 1
        for ticket in list(self.remaining):
            self.queue.charge(ticket, OUTPUT_COST)
            self.remaining[ticket] -= 1
            if not self.remaining[ticket]:
                del self.remaining[ticket]
                self.queue.close(ticket, self.now)

    def share(self, name: str) -> float:
        service = self.queue.service()
        return service[name] / sum(service.values())


@pytest.mark.parametrize(("weight", "share"), [(1.0, 0.5), (3.0, 0.75), (0.25, 0.2)])
def test_shares_follow_weights_under_unequal_load(weight: float, share: float) -> None:
    """The flood sends four times as many requests, with outputs three times as long."""
    draw = random.Random(1)
    team = Tenant("team", weight=weight, max_concurrent=10_000)
    flood = Tenant("flood", max_concurrent=10_000)
    engine = Engine(
        32,
        {
            "team": (team, 16, lambda: 300, lambda: draw.randint(20, 60)),
            "flood": (flood, 64, lambda: 300, lambda: draw.randint(60, 180)),
        },
    )
    for _ in range(4000):
        engine.step()
    assert engine.share("team") == pytest.approx(share, abs=0.02)


def test_rare_request_gets_the_next_free_slot() -> None:
    engine = Engine(4, {"flood": (Tenant("flood", max_concurrent=10_000), 100, lambda: 300, lambda: 50)})
    for _ in range(500):
        engine.step()
    rare = engine.queue.open(FREE, engine.now)
    engine.queue.enqueue(rare, 300)
    engine.tenants["free"] = (FREE, 0, lambda: 300, lambda: 50)
    waited = 0
    while rare.stage == "waiting":
        engine.step()
        waited += 1
    assert waited <= 51, "the request gets the first slot that becomes free"


def test_rare_request_does_not_wait_if_a_spare_slot_is_free() -> None:
    engine = Engine(4, {"flood": (Tenant("flood", max_concurrent=10_000), 100, lambda: 300, lambda: 50)})
    engine.queue = fair_queue(3, max_starting=1, spare=1)
    for _ in range(500):
        engine.step()
        for ticket in engine.remaining:
            engine.queue.mark_started(ticket)
    engine.refill()
    while engine.queue.next(engine.now) is not None:
        pass
    assert engine.queue.counts()["flood"][1] == 3, "the flood does not get the spare slot"
    rare = [engine.queue.open(FREE, engine.now) for _ in range(2)]
    for ticket in rare:
        engine.queue.enqueue(ticket, 300)
    assert [engine.queue.next(engine.now), engine.queue.next(engine.now)] == [rare[0], None]


def test_limit_on_starting_requests_lets_a_new_tenant_overtake() -> None:
    queue = fair_queue(8, max_starting=2)
    flood = [queue.open(Tenant("flood"), 0) for _ in range(6)]
    for ticket in flood:
        queue.enqueue(ticket, 300)
    sent = [queue.next(0), queue.next(0)]
    assert sent == flood[:2]
    assert queue.next(0) is None, "six slots are free, but two requests have not started"
    rare = queue.open(FREE, 1)
    queue.enqueue(rare, 300)
    queue.mark_started(flood[0])
    queue.mark_started(flood[0])
    assert [queue.next(1), queue.next(1)] == [rare, None]
    queue.close(flood[1], 1)  # the client disconnects before the first token
    assert [queue.next(1), queue.next(1)] == [flood[2], None]


def test_limit_on_preparing_requests() -> None:
    queue = fair_queue(8, max_preparing=1, max_starting=3)
    flood = [queue.open(Tenant("flood"), 0) for _ in range(5)]
    for ticket in flood:
        queue.enqueue(ticket, 300)
    sent = [queue.next(0), queue.next(0)]
    assert sent == [flood[0], None]
    rare = queue.open(FREE, 1)
    queue.enqueue(rare, 300)
    queue.mark_prepared(flood[0])
    queue.mark_prepared(flood[0])
    assert [queue.next(1), queue.next(1)] == [rare, None], "a new tenant waits for one image, not for the queue"
    queue.mark_prepared(rare)
    assert [queue.next(1), queue.next(1)] == [flood[1], None]
    queue.mark_started(flood[1])  # the first token implies that the image is prepared
    assert (queue.preparing, queue.starting) == (0, 2)
    assert [queue.next(1), queue.next(1)] == [flood[2], None]
    queue.mark_prepared(flood[2])
    assert queue.next(1) is None, "three requests are starting, two of them prepared"
    queue.close(rare, 2)  # the client disconnects before the first token
    assert [queue.next(2), queue.preparing] == [flood[3], 1]
    queue.close(flood[3], 2)  # a client disconnects while its image is being prepared
    assert [queue.next(2), queue.preparing] == [flood[4], 1]


def test_spare_slots_are_for_tenants_with_few_running_requests() -> None:
    queue = fair_queue(4, spare=2)
    flood = [queue.open(Tenant("flood"), 0) for _ in range(4)]
    for ticket in flood:
        queue.enqueue(ticket, 300)
    assert [queue.next(0) for _ in range(4)] == flood
    rare = [queue.open(FREE, 0) for _ in range(3)]
    for ticket in rare:
        queue.enqueue(ticket, 1)
    assert queue.next(0) is rare[0]
    assert queue.next(0) is None, "with one running request the tenant may use one spare slot, which is occupied"
    queue.close(flood[0], 1)
    assert [queue.next(1), queue.next(1)] == [rare[1], None]


def test_idle_time_earns_no_credit() -> None:
    late = Tenant("late", max_concurrent=10_000)
    engine = Engine(8, {"free": (FREE, 20, lambda: 300, lambda: 30)})
    for _ in range(1000):
        engine.step()
    before = engine.queue.service()["free"]
    engine.tenants["late"] = (late, 20, lambda: 300, lambda: 30)
    for _ in range(1000):
        engine.step()
    service = engine.queue.service()
    assert service["late"] / (service["late"] + service["free"] - before) == pytest.approx(0.5, abs=0.03)


def test_new_tenant_starts_at_the_counter_of_the_last_waiting_tenant() -> None:
    """Algorithm 2: with an empty queue the counter is lifted to that of the tenant that left the queue last."""
    queue = fair_queue(1)
    early, late = Tenant("early"), Tenant("late")

    def serve_next() -> str:
        ticket = queue.next(0)
        assert ticket is not None
        queue.close(ticket, 0)
        return ticket.tenant.name

    for _ in range(5):
        queue.enqueue(queue.open(early, 0), 300)
        serve_next()
    for tenant in (late, early) * 4:
        queue.enqueue(queue.open(tenant, 0), 300)
    assert [serve_next() for _ in range(8)] == ["late", "early"] * 4


def test_expected_wait_follows_weights() -> None:
    queue = fair_queue(1)
    light, heavy = Tenant("light"), Tenant("heavy", weight=3)
    first, second, third = queue.open(light, 0), queue.open(light, 0), queue.open(heavy, 0)
    queue.enqueue(first, 1)
    queue.next(0)
    queue.close(first, 12)  # a request runs for 12 s
    queue.enqueue(second, 1)
    queue.enqueue(third, 1)
    # Each tenant has one request in the queue, and a new one would be its second.
    assert queue.expected_wait(light) == pytest.approx(2 * 12 / 0.25)
    assert queue.expected_wait(heavy) == pytest.approx(2 * 12 / 0.75)


@settings(max_examples=40, deadline=None)
@given(
    slots=st.integers(1, 8),
    weights=st.lists(st.sampled_from([0.5, 1.0, 2.0, 3.0]), min_size=2, max_size=4),
    seed=st.integers(0, 2**32),
    begin=st.integers(0, 100),
)
def test_service_difference_is_within_the_paper_s_bound(
    slots: int, weights: list[float], seed: int, begin: int
) -> None:
    """Theorem 4.4, weighted, over any interval in which all tenants wait. Its M is all tokens of a full batch."""
    draw = random.Random(seed)
    longest, most = 400, 60
    tenants = {
        f"t{number}": (
            Tenant(f"t{number}", weight=weight, max_concurrent=10_000),
            slots + 1,  # a request still waits when a step sends `slots` requests
            lambda: draw.randint(1, longest),
            lambda: draw.randint(1, most),
        )
        for number, weight in enumerate(weights)
    }
    engine = Engine(slots, tenants)
    for _ in range(begin):
        engine.step()
    before = dict.fromkeys(tenants, 0.0) | engine.queue.service()
    bound = 2 * max(longest, OUTPUT_COST * slots * (longest + most)) / min(weights)
    for step in range(1500):  # enough steps for first come, first served to break the bound
        engine.step()
        if step % 10:
            continue
        service = engine.queue.service()
        differences = [(service[name] - before[name]) / tenants[name][0].weight for name in tenants]
        assert max(differences) - min(differences) <= bound


@settings(max_examples=300, deadline=None)
@given(
    slots=st.integers(1, 4),
    max_preparing=st.sampled_from([1, 2, math.inf]),
    max_starting=st.sampled_from([1, 2, math.inf]),
    spare=st.integers(0, 2),
    orders=st.lists(st.tuples(st.sampled_from("oqpbcx"), st.integers(0, 30)), max_size=80),
)
def test_slots_are_counted_exactly_and_none_is_idle(
    slots: int, max_preparing: float, max_starting: float, spare: int, orders: list[tuple[str, int]]
) -> None:
    queue = fair_queue(slots, max_preparing=max_preparing, max_starting=max_starting, spare=spare)
    teams = [Tenant(name, weight=weight, max_concurrent=5) for name, weight in (("a", 1), ("b", 2), ("c", 0.5))]
    tickets: list[Ticket] = []
    sent: set[int] = set()

    def pump(now: float) -> None:
        while (ticket := queue.next(now)) is not None:
            assert id(ticket) not in sent
            sent.add(id(ticket))

    for now, (order, number) in enumerate(orders):
        target = tickets[number % len(tickets)] if tickets else None
        if order == "o":
            with contextlib.suppress(AdmissionRefused):
                tickets.append(queue.open(teams[number % 3], now))
        elif order == "q" and target is not None and target.stage == "open":
            queue.enqueue(target, 10)
        elif order == "p" and target is not None:
            queue.mark_prepared(target)
        elif order == "b" and target is not None:
            queue.mark_started(target)
        elif order == "c" and target is not None and target.stage == "running":
            queue.charge(target, 2)
        elif order == "x" and target is not None:
            queue.close(target, now)
        pump(now)
        stages = [ticket.stage for ticket in tickets]
        running = [ticket for ticket in tickets if ticket.stage == "running"]
        assert queue.running == len(running) <= slots + spare
        assert queue.waiting == stages.count("waiting")
        assert queue.preparing == sum(not ticket.prepared for ticket in running) <= max_preparing + spare
        assert queue.starting == sum(not ticket.started for ticket in running) <= max_starting + spare
        full = queue.running >= slots or queue.preparing >= max_preparing or queue.starting >= max_starting
        assert full or queue.waiting == 0, "work conservation"
    for ticket in tickets:
        queue.close(ticket, 100)
        pump(100)
    assert (queue.running, queue.preparing, queue.starting, queue.waiting) == (0, 0, 0, 0)
    assert all(counts == (0, 0) for counts in queue.counts().values())
    for team in teams:
        for _ in range(5):
            queue.open(team, 200)


def test_limits_of_the_tenant() -> None:
    queue = fair_queue()
    team = Tenant("team", max_concurrent=2)
    tickets = [queue.open(team, 0), queue.open(team, 0)]
    with pytest.raises(AdmissionRefused) as caught:
        queue.open(team, 0)
    assert (caught.value.status, caught.value.code) == (429, "too_many_concurrent")
    for ticket in tickets:
        queue.close(ticket, 0)
    with pytest.raises(AdmissionRefused) as caught:
        queue.open(team, 21, tokens_left=0, reset_s=3600.5)
    assert (caught.value.code, caught.value.retry_after) == ("budget_spent", 3601)


def test_limits_of_the_server() -> None:
    queue = fair_queue(1, max_waiting=2, max_wait_s=15)
    first = queue.open(FREE, 0)
    queue.enqueue(first, 1)
    assert queue.next(0) is first
    queue.close(first, 10)  # a request takes ten seconds
    second = queue.open(FREE, 10)
    queue.enqueue(second, 1)
    queue.next(10)
    queue.enqueue(queue.open(FREE, 10), 1)
    with pytest.raises(AdmissionRefused) as caught:
        queue.enqueue(queue.open(FREE, 10), 1)
    assert (caught.value.status, caught.value.code, caught.value.retry_after) == (503, "wait_too_long", 5)
    full = fair_queue(1, max_waiting=1)
    full.enqueue(full.open(FREE, 0), 1)
    with pytest.raises(AdmissionRefused) as caught:
        full.enqueue(full.open(FREE, 0), 1)
    assert (caught.value.status, caught.value.code) == (503, "queue_full")


def test_cancelled_request_frees_its_place_in_the_queue() -> None:
    async def scene() -> None:
        scheduler = FairScheduler(fair_queue(1))
        tickets = [scheduler.open(FREE, tokens_left=1, reset_s=0) for _ in range(3)]
        turns = [asyncio.create_task(scheduler.wait_turn(ticket, 1)) for ticket in tickets]
        await turns[0]
        turns[1].cancel()
        await asyncio.gather(turns[1], return_exceptions=True)
        scheduler.close(tickets[1])
        assert not turns[2].done()
        scheduler.close(tickets[0])
        await turns[2]
        scheduler.close(tickets[2])
        assert (scheduler.queue.running, scheduler.queue.waiting) == (0, 0)

    asyncio.run(scene())


@pytest.mark.parametrize("limit", ["max_preparing", "max_starting"])
def test_unstreamed_request_counts_as_started_after_the_assumed_time(limit: str) -> None:
    async def scene() -> None:
        scheduler = FairScheduler(
            fair_queue(8, max_preparing=1) if limit == "max_preparing" else fair_queue(8, max_starting=1)
        )
        first, second = (scheduler.open(FREE, tokens_left=1, reset_s=0) for _ in range(2))
        await scheduler.wait_turn(first, 1)
        waits = asyncio.create_task(scheduler.wait_turn(second, 1))
        await asyncio.sleep(0)
        assert not waits.done()
        scheduler.assume_progress(first)
        await waits

    asyncio.run(scene())


def test_one_suspect_at_a_time_is_sent_and_others_overtake() -> None:
    queue = fair_queue(8)
    first, second, other = (queue.open(FREE, 0) for _ in range(3))
    first.suspect = second.suspect = True
    for ticket in (first, second, other):
        queue.enqueue(ticket, 1)
    assert [queue.next(0), queue.next(0), queue.next(0)] == [first, other, None]
    queue.mark_started(first)
    assert queue.next(0) is second
    third = queue.open(FREE, 0)
    third.suspect = True
    queue.enqueue(third, 1)
    assert queue.next(0) is None
    queue.close(second, 1)
    assert queue.next(1) is third


def test_unstreamed_suspect_is_not_assumed_to_have_started() -> None:
    async def scene() -> None:
        scheduler = FairScheduler(fair_queue(8))
        first, second = (scheduler.open(FREE, tokens_left=1, reset_s=0) for _ in range(2))
        first.suspect = second.suspect = True
        await scheduler.wait_turn(first, 1)
        waits = asyncio.create_task(scheduler.wait_turn(second, 1))
        scheduler.assume_progress(first)
        timer_of_zero_s = asyncio.Event()
        asyncio.get_running_loop().call_later(0, timer_of_zero_s.set)
        await timer_of_zero_s.wait()
        await asyncio.sleep(0)
        assert not waits.done()
        scheduler.close(first)
        await waits

    asyncio.run(scene())


def test_request_cancelled_at_the_moment_of_its_turn_frees_the_slot() -> None:
    async def scene() -> None:
        scheduler = FairScheduler(fair_queue(1))
        first, second, third = (scheduler.open(FREE, tokens_left=1, reset_s=0) for _ in range(3))
        await scheduler.wait_turn(first, 1)
        turns = [asyncio.create_task(scheduler.wait_turn(ticket, 1)) for ticket in (second, third)]
        await asyncio.sleep(0)
        scheduler.close(first)  # the second request has its turn, but its coroutine has not run yet
        turns[0].cancel()
        await asyncio.gather(turns[0], return_exceptions=True)
        scheduler.close(second)
        await turns[1]
        scheduler.close(third)
        assert scheduler.queue.running == 0

    asyncio.run(scene())


def fill(queue: FairQueue, tenant: Tenant) -> int:
    """Enqueue requests of a tenant until one is refused; return how many were not."""
    for count in range(10_000):
        ticket = queue.open(tenant, 0)
        try:
            queue.enqueue(ticket, 1)
        except AdmissionRefused as error:
            assert (error.status, error.code) == (503, "queue_full")  # noqa: PT017
            return count
    raise AssertionError("the queue has no limit")


def test_flood_of_many_tenants_leaves_room_in_the_queue_for_the_next() -> None:
    queue = FairQueue(1, max_waiting=1024, max_wait_s=1e9, multi_tenant=True)
    shares = [fill(queue, Tenant(f"flood{number}", max_concurrent=100_000)) for number in range(4)]
    assert shares == sorted(shares, reverse=True)
    assert fill(queue, Tenant("quiet", max_concurrent=100_000)) >= 10


def test_one_tenant_alone_may_use_a_large_part_of_the_queue() -> None:
    queue = FairQueue(1, max_waiting=700, max_wait_s=1e9, multi_tenant=True)
    assert fill(queue, Tenant("alone", max_concurrent=100_000)) == 300


def complete(queue: FairQueue, tenant: Tenant, run_s: float, *, completed: bool = True) -> None:
    ticket = queue.open(tenant, 0)
    queue.enqueue(ticket, 300)
    assert queue.next(0) is ticket
    queue.close(ticket, run_s, completed=completed)


def test_failed_requests_and_other_tenants_do_not_change_the_expected_wait() -> None:
    queue, good, bad = fair_queue(slots=1, max_preparing=0.5), Tenant("good"), Tenant("bad")
    complete(queue, good, 8.0)
    prepare_s = queue.assumed_prepare_s(good)
    for _ in range(60):
        complete(queue, bad, 0.02, completed=False)
    queue.enqueue(queue.open(good, 0), 300)
    queue.next(0)
    assert queue.expected_wait(good) == queue.expected_wait(bad) == 8.0, "the average of all tenants with an answer"
    assert queue.assumed_prepare_s(good) == queue.assumed_prepare_s(bad) == prepare_s == 2.0


def test_tenant_of_short_requests_cannot_shorten_the_wait_of_others() -> None:
    queue, good, short = fair_queue(slots=1, max_preparing=0.5), Tenant("good"), Tenant("short")
    complete(queue, good, 8.0)
    for _ in range(500):
        complete(queue, short, 0.1)
    queue.enqueue(queue.open(good, 0), 300)
    queue.next(0)
    assert queue.expected_wait(good) == 8.0 and queue.expected_wait(short) == pytest.approx(0.1)
    assert queue.assumed_prepare_s(short) >= 1.0, "it is at least that of an average tenant"
