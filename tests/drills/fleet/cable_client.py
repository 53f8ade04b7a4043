"""The client of the drill ``cable``: eight users for 40 s; exits with 1 if a request took too long."""

from __future__ import annotations

import asyncio
import sys
import time

import aiohttp

from tests.support.servers.fleet_load import Load, body, send

TOLD_S = 12.0
"""The longest time until a request on the cut cable is told."""


async def _run(url: str, key: str) -> int:
    load = Load()
    headers = {"Authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession() as session:
        while (await send(session, url, body(), **headers)).kind != "ok":
            await asyncio.sleep(0.2)
        print("running", flush=True)
        end = time.monotonic() + 40

        async def user(number: int) -> None:
            data = body(film_bytes=100_000, stream=bool(number % 2))
            while time.monotonic() < end:
                load.outcomes.append(await send(session, url, data, **headers))

        await asyncio.gather(*(user(number) for number in range(8)))
    longest = max(one.seconds for one in load.outcomes)
    print(f"{load.summary()}; longest {longest:.1f} s", flush=True)
    return int(longest > TOLD_S or len(load.failures) > 8 or not {one.kind for one in load.failures} <= KINDS)


KINDS = {"server_lost", "cut"}

if __name__ == "__main__":
    sys.exit(asyncio.run(_run(*sys.argv[1:])))
