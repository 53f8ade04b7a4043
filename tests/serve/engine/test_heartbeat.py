"""Requests that wait until a suspected engine has been checked, cancelled and timed-out waits included."""

from __future__ import annotations

import asyncio

import pytest

from pedcxr_serve.engine.heartbeat import EngineHeartbeat


@pytest.mark.parametrize("suspected", [False, True])
@pytest.mark.parametrize("steps", range(6))
def test_cancelled_wait_is_cancelled(suspected: bool, steps: int) -> None:
    async def cancel() -> None:
        heartbeat = EngineHeartbeat()
        if suspected:
            heartbeat.suspect()

        async def request() -> None:
            await heartbeat.wait_checked()
            await asyncio.sleep(60)

        task = asyncio.create_task(request())
        if suspected:
            await asyncio.sleep(0.01)
            heartbeat.clear()
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task], timeout=30)
        assert task.cancelled()

    asyncio.run(cancel())


def test_unchecked_suspicion_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pedcxr_serve.engine.heartbeat._CHECK_TIMEOUT_S", 0.05)

    async def wait() -> bool:
        heartbeat = EngineHeartbeat()
        heartbeat.suspect()
        async with asyncio.timeout(30):
            await heartbeat.wait_checked()
        return heartbeat.suspicion.is_set()

    assert not asyncio.run(wait())
