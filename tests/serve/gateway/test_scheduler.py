"""Weighted fair admission: the paper's bound, work conservation, slots neither lost nor doubled."""

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
from pedcxr_serve.gateway.gate import Gate
from pedcxr_serve.gateway.scheduler import OUTPUT_COST, Admission, Rejected, Ticket

FREE = Tenant("free", max_concurrent=10_000)


def admission(
    slots: int = 2,
    max_waiting: int = 10_000,
    max_wait_s: float = 1e9,
    max_preparing: float = math.inf,
    max_starting: float = math.inf,
    spare: int = 0,
) -> Admission:
    return Admission(
        slots,
        max_waiting=max_waiting,
        max_wait_s=max_wait_s,
        max_preparing=max_preparing,
        max_starting=max_starting,
        spare=spare,
    )


@dataclass
class Engine:
    """A simulated engine: each step, every request in work writes one token."""

    slots: int
    tenants: dict[str, tuple[Tenant, int, Callable[[], int], Callable[[], int]]]  # tenant, backlog, prompt, output
    gate: Admission = field(init=False)
    left: dict[Ticket, int] = field(default_factory=dict)
    now: float = 0.0

    def __post_init__(self) -> None:
        self.gate = admission(self.slots)

    def refill(self) -> None:
        for name, (tenant, backlog, prompt, _) in self.tenants.items():
            while self.gate.counts().get(name, (0, 0))[0] < backlog:
                self.gate.queue(self.gate.open(tenant, self.now), prompt())

    def step(self) -> None:
        self.refill()
        while (ticket := self.gate.next(self.now)) is not None:
            self.left[ticket] = self.tenants[ticket.tenant.name][3]()
        self.now += 1
        for ticket in list(self.left):
            self.gate.charge(ticket, OUTPUT_COST)
            self.left[ticket] -= 1
            if not self.left[ticket]:
                del self.left[ticket]
                self.gate.close(ticket, self.now)

    def share(self, name: str) -> float:
        service = self.gate.service()
        return service[name] / sum(service.values())


@pytest.mark.parametrize(("weight", "share"), [(1.0, 0.5), (3.0, 0.75), (0.25, 0.2)])
def test_shares_follow_weights_whatever_is_sent(weight: float, share: float) -> None:
    """The other sends four times as many requests, three times as long."""
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


def test_a_rare_request_does_not_wait_behind_a_flood() -> None:
    engine = Engine(4, {"flood": (Tenant("flood", max_concurrent=10_000), 100, lambda: 300, lambda: 50)})
    for _ in range(500):
        engine.step()
    rare = engine.gate.open(FREE, engine.now)
    engine.gate.queue(rare, 300)
    engine.tenants["free"] = (FREE, 0, lambda: 300, lambda: 50)
    waited = 0
    while rare.stage == "waiting":
        engine.step()
        waited += 1
    assert waited <= 51, "it is given the first slot that comes free"


def test_a_rare_request_does_not_wait_at_all_where_slots_are_spare() -> None:
    engine = Engine(4, {"flood": (Tenant("flood", max_concurrent=10_000), 100, lambda: 300, lambda: 50)})
    engine.gate = admission(3, max_starting=1, spare=1)
    for _ in range(500):
        engine.step()
        for ticket in engine.left:
            engine.gate.began(ticket)
    engine.refill()
    while engine.gate.next(engine.now) is not None:
        pass
    assert engine.gate.counts()["flood"][1] == 3, "a spare slot is not the flood's"
    rare = [engine.gate.open(FREE, engine.now) for _ in range(2)]
    for ticket in rare:
        engine.gate.queue(ticket, 300)
    assert [engine.gate.next(engine.now), engine.gate.next(engine.now)] == [rare[0], None]


def test_few_start_at_once_so_that_a_newcomer_is_put_before_the_others() -> None:
    gate = admission(8, max_starting=2)
    flood = [gate.open(Tenant("flood"), 0) for _ in range(6)]
    for ticket in flood:
        gate.queue(ticket, 300)
    sent = [gate.next(0), gate.next(0)]
    assert sent == flood[:2]
    assert gate.next(0) is None, "six slots are free, but these two have not begun"
    rare = gate.open(FREE, 1)
    gate.queue(rare, 300)
    gate.began(flood[0])
    gate.began(flood[0])
    assert [gate.next(1), gate.next(1)] == [rare, None]
    gate.close(flood[1], 1)  # the client left before a word
    assert [gate.next(1), gate.next(1)] == [flood[2], None]


def test_a_film_is_sent_when_the_engine_has_prepared_the_one_before() -> None:
    gate = admission(8, max_preparing=1, max_starting=3)
    flood = [gate.open(Tenant("flood"), 0) for _ in range(5)]
    for ticket in flood:
        gate.queue(ticket, 300)
    sent = [gate.next(0), gate.next(0)]
    assert sent == [flood[0], None]
    rare = gate.open(FREE, 1)
    gate.queue(rare, 300)
    gate.prepared(flood[0])
    gate.prepared(flood[0])
    assert [gate.next(1), gate.next(1)] == [rare, None], "whoever comes waits for one film, not for those in line"
    gate.prepared(rare)
    assert [gate.next(1), gate.next(1)] == [flood[1], None]
    gate.began(flood[1])  # its first word, though nothing was heard of its film
    assert (gate.preparing, gate.starting) == (0, 2)
    assert [gate.next(1), gate.next(1)] == [flood[2], None]
    gate.prepared(flood[2])
    assert gate.next(1) is None, "three start: two films are ready, but their answers have not begun"
    gate.close(rare, 2)  # the client left before a word
    assert [gate.next(2), gate.preparing] == [flood[3], 1]
    gate.close(flood[3], 2)  # and another while its film was prepared
    assert [gate.next(2), gate.preparing] == [flood[4], 1]


def test_spare_places_are_for_whoever_has_little_in_work() -> None:
    gate = admission(4, spare=2)
    flood = [gate.open(Tenant("flood"), 0) for _ in range(4)]
    for ticket in flood:
        gate.queue(ticket, 300)
    assert [gate.next(0) for _ in range(4)] == flood
    rare = [gate.open(FREE, 0) for _ in range(3)]
    for ticket in rare:
        gate.queue(ticket, 1)
    assert gate.next(0) is rare[0]
    assert gate.next(0) is None, "with one in work it may take one of the two, and one is taken"
    gate.close(flood[0], 1)
    assert [gate.next(1), gate.next(1)] == [rare[1], None]


def test_whoever_was_idle_has_saved_nothing_up() -> None:
    late = Tenant("late", max_concurrent=10_000)
    engine = Engine(8, {"free": (FREE, 20, lambda: 300, lambda: 30)})
    for _ in range(1000):
        engine.step()
    before = engine.gate.service()["free"]
    engine.tenants["late"] = (late, 20, lambda: 300, lambda: 30)
    for _ in range(1000):
        engine.step()
    service = engine.gate.service()
    assert service["late"] / (service["late"] + service["free"] - before) == pytest.approx(0.5, abs=0.03)


@settings(max_examples=40, deadline=None)
@given(
    slots=st.integers(1, 8),
    weights=st.lists(st.sampled_from([0.5, 1.0, 2.0, 3.0]), min_size=2, max_size=4),
    seed=st.integers(0, 2**32),
    begin=st.integers(0, 100),
)
def test_the_bound_of_the_paper(slots: int, weights: list[float], seed: int, begin: int) -> None:
    """Theorem 4.4, by weight, over any interval in which all wait; its M are all tokens of a full batch."""
    draw = random.Random(seed)
    longest, most = 400, 60
    tenants = {
        f"t{number}": (
            Tenant(f"t{number}", weight=weight, max_concurrent=10_000),
            slots + 1,  # one waits even when a step gives out all slots
            lambda: draw.randint(1, longest),
            lambda: draw.randint(1, most),
        )
        for number, weight in enumerate(weights)
    }
    engine = Engine(slots, tenants)
    for _ in range(begin):
        engine.step()
    before = dict.fromkeys(tenants, 0.0) | engine.gate.service()
    bound = 2 * max(longest, OUTPUT_COST * slots * (longest + most)) / min(weights)
    for step in range(1500):  # long enough for first come first served to break the bound
        engine.step()
        if step % 10:
            continue
        service = engine.gate.service()
        got = [(service[name] - before[name]) / tenants[name][0].weight for name in tenants]
        assert max(got) - min(got) <= bound


@settings(max_examples=300, deadline=None)
@given(
    slots=st.integers(1, 4),
    max_preparing=st.sampled_from([1, 2, math.inf]),
    max_starting=st.sampled_from([1, 2, math.inf]),
    spare=st.integers(0, 2),
    orders=st.lists(st.tuples(st.sampled_from("oqpbcx"), st.integers(0, 30)), max_size=80),
)
def test_no_slot_is_lost_or_doubled_and_none_idles(
    slots: int, max_preparing: float, max_starting: float, spare: int, orders: list[tuple[str, int]]
) -> None:
    gate = admission(slots, max_preparing=max_preparing, max_starting=max_starting, spare=spare)
    teams = [Tenant(name, weight=weight, max_concurrent=5) for name, weight in (("a", 1), ("b", 2), ("c", 0.5))]
    tickets: list[Ticket] = []
    given_out: set[int] = set()

    def pump(now: float) -> None:
        while (ticket := gate.next(now)) is not None:
            assert id(ticket) not in given_out
            given_out.add(id(ticket))

    for now, (order, number) in enumerate(orders):
        chosen = tickets[number % len(tickets)] if tickets else None
        if order == "o":
            with contextlib.suppress(Rejected):
                tickets.append(gate.open(teams[number % 3], now))
        elif order == "q" and chosen is not None and chosen.stage == "open":
            gate.queue(chosen, 10)
        elif order == "p" and chosen is not None:
            gate.prepared(chosen)
        elif order == "b" and chosen is not None:
            gate.began(chosen)
        elif order == "c" and chosen is not None and chosen.stage == "running":
            gate.charge(chosen, 2)
        elif order == "x" and chosen is not None:
            gate.close(chosen, now)
        pump(now)
        stages = [ticket.stage for ticket in tickets]
        running = [ticket for ticket in tickets if ticket.stage == "running"]
        assert gate.running == len(running) <= slots + spare
        assert gate.waiting == stages.count("waiting")
        assert gate.preparing == sum(not one.prepared for one in running) <= max_preparing + spare
        assert gate.starting == sum(not one.begun for one in running) <= max_starting + spare
        full = gate.running >= slots or gate.preparing >= max_preparing or gate.starting >= max_starting
        assert full or gate.waiting == 0, "work conservation"
    for ticket in tickets:
        gate.close(ticket, 100)
        pump(100)
    assert (gate.running, gate.preparing, gate.starting, gate.waiting) == (0, 0, 0, 0)
    assert all(counts == (0, 0) for counts in gate.counts().values())
    for team in teams:
        for _ in range(5):
            gate.open(team, 200)


def test_limits_of_a_tenant() -> None:
    gate = admission()
    team = Tenant("team", max_concurrent=2)
    tickets = [gate.open(team, 0), gate.open(team, 0)]
    with pytest.raises(Rejected) as caught:
        gate.open(team, 0)
    assert (caught.value.status, caught.value.code) == (429, "too_many_concurrent")
    for ticket in tickets:
        gate.close(ticket, 0)
    with pytest.raises(Rejected) as caught:
        gate.open(team, 21, tokens_left=0, reset_s=3600.5)
    assert (caught.value.code, caught.value.retry_after) == ("budget_spent", 3601)


def test_limits_of_the_server() -> None:
    gate = admission(1, max_waiting=2, max_wait_s=15)
    first = gate.open(FREE, 0)
    gate.queue(first, 1)
    assert gate.next(0) is first
    gate.close(first, 10)  # a request takes ten seconds
    second = gate.open(FREE, 10)
    gate.queue(second, 1)
    gate.next(10)
    gate.queue(gate.open(FREE, 10), 1)
    with pytest.raises(Rejected) as caught:
        gate.queue(gate.open(FREE, 10), 1)
    assert (caught.value.status, caught.value.code, caught.value.retry_after) == (503, "wait_too_long", 5)
    full = admission(1, max_waiting=1)
    full.queue(full.open(FREE, 0), 1)
    with pytest.raises(Rejected) as caught:
        full.queue(full.open(FREE, 0), 1)
    assert (caught.value.status, caught.value.code) == (503, "queue_full")


def test_whoever_leaves_frees_its_place() -> None:
    async def scene() -> None:
        gate = Gate(admission(1))
        tickets = [gate.open(FREE, tokens_left=1, reset_s=0) for _ in range(3)]
        turns = [asyncio.create_task(gate.turn(ticket, 1)) for ticket in tickets]
        await turns[0]
        turns[1].cancel()
        await asyncio.gather(turns[1], return_exceptions=True)
        gate.close(tickets[1])
        assert not turns[2].done()
        gate.close(tickets[0])
        await turns[2]
        gate.close(tickets[2])
        assert (gate.admission.running, gate.admission.waiting) == (0, 0)

    asyncio.run(scene())


@pytest.mark.parametrize("limit", ["max_preparing", "max_starting"])
def test_an_answer_in_one_piece_counts_as_begun_after_a_while(limit: str) -> None:
    async def scene() -> None:
        gate = Gate(admission(8, max_preparing=1) if limit == "max_preparing" else admission(8, max_starting=1))
        first, second = (gate.open(FREE, tokens_left=1, reset_s=0) for _ in range(2))
        await gate.turn(first, 1)
        waits = asyncio.create_task(gate.turn(second, 1))
        await asyncio.sleep(0)
        assert not waits.done()
        gate.begins_unseen(first)
        await waits

    asyncio.run(scene())


def test_whoever_leaves_at_the_moment_of_its_turn_frees_the_slot() -> None:
    async def scene() -> None:
        gate = Gate(admission(1))
        first, second, third = (gate.open(FREE, tokens_left=1, reset_s=0) for _ in range(3))
        await gate.turn(first, 1)
        turns = [asyncio.create_task(gate.turn(ticket, 1)) for ticket in (second, third)]
        await asyncio.sleep(0)
        gate.close(first)  # the second's turn is set, its coroutine has not run yet
        turns[0].cancel()
        await asyncio.gather(turns[0], return_exceptions=True)
        gate.close(second)
        await turns[1]
        gate.close(third)
        assert gate.admission.running == 0

    asyncio.run(scene())
