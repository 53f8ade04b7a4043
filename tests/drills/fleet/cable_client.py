"""The client of the drill ``cable``: eight users for 40 s; prints what is wrong, and then exits with 1."""

from __future__ import annotations

import asyncio
import sys
import time

import aiohttp

from tests.support.servers.fleet_load import Load, body, send

TOLD_S = 12.0
"""The longest time until a request on the cut cable is told."""
HIT_S = 5.0
"""A request that took longer was on the cut cable; a report takes 1 s."""
KINDS = {"server_lost", "cut"}


def failures(load: Load) -> list[str]:
    """Return what is wrong with the requests of eight users while the cable was cut, in words."""
    longest, lost = max(one.seconds for one in load.outcomes), load.failures
    failures = [f"a request ended as {one.kind}" for one in lost if one.kind not in KINDS]
    if longest > TOLD_S:
        failures.append(f"a request took {longest:.1f} s")
    if len(lost) > 8:
        failures.append(f"{len(lost)} requests were lost")
    if not lost and longest <= HIT_S and not any(one.resent for one in load.outcomes):
        failures.append("no request was on the cut cable")
    return failures


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
    print(f"{load.summary()}; longest {max(one.seconds for one in load.outcomes):.1f} s", *failures(load), sep="\n  ")
    return int(bool(failures(load)))


if __name__ == "__main__":
    sys.exit(asyncio.run(_run(*sys.argv[1:])))
