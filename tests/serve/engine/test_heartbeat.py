"""Waiting for the engine to be looked at: by whoever is next in line, and by whoever leaves just then."""

from __future__ import annotations

import asyncio

import pytest

from pedcxr_serve.engine.heartbeat import Pulse


@pytest.mark.parametrize("doubted", [False, True])
@pytest.mark.parametrize("steps", range(6))
def test_whoever_leaves_while_it_waits_has_left(doubted: bool, steps: int) -> None:
    async def leave() -> None:
        pulse = Pulse()
        if doubted:
            pulse.doubt()

        async def request() -> None:
            await pulse.settled()
            await asyncio.sleep(60)

        asked = asyncio.create_task(request())
        if doubted:
            await asyncio.sleep(0.01)
            pulse.settle()
        for _ in range(steps):
            await asyncio.sleep(0)
        asked.cancel()
        await asyncio.wait([asked], timeout=1)
        assert asked.cancelled()

    asyncio.run(leave())


def test_a_doubt_that_nobody_looks_into_holds_nobody_up_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pedcxr_serve.engine.heartbeat._LOOK_S", 0.05)

    async def wait() -> bool:
        pulse = Pulse()
        pulse.doubt()
        async with asyncio.timeout(5):
            await pulse.settled()
        return pulse.doubted.is_set()

    assert not asyncio.run(wait())
