"""CPU of a request: AsyncClient against the plain AsyncOpenAI of the SDK, on an engine in a process of its own.

    python -m tests.benchmarks.client_cpu [REQUESTS]

Both send the same film, encoded beforehand, and read the same stream. Milliseconds of process time a request.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import sys
import time
from collections import deque
from typing import Any

import openai

from pedcxr_client import AsyncClient, EncodedImage
from pedcxr_client.films.film import encode, load
from pedcxr_client.request.prompts import card, messages
from tests.support.fake_engine import FakeEngine


def serve(ready: Any) -> None:
    with FakeEngine() as engine:
        engine.requests = deque(maxlen=1)  # type: ignore[assignment]
        ready.send(engine.url)
        ready.recv()


def film(megabytes: float) -> EncodedImage:
    from PIL import Image

    side = int((megabytes * 1e6 * 3 / 4) ** 0.5)  # noise does not compress: a byte a pixel, 4/3 of it as base64
    return encode(load(Image.frombytes("L", (side, side), os.urandom(side * side))))


async def ours(url: str, image: EncodedImage, requests: int) -> float:
    async with AsyncClient(url, model="fake") as client:
        await client.report(image)
        began = time.process_time()
        for _ in range(requests):
            await client.report(image)
        return (time.process_time() - began) / requests * 1000


async def plain(url: str, image: EncodedImage, requests: int) -> float:
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:

        async def ask() -> None:
            stream = await client.chat.completions.create(
                model="fake", messages=messages(card(), image.data_url), max_tokens=500, temperature=0, stream=True,
                stream_options={"include_usage": True},
            )  # fmt: skip
            async for _ in stream:
                pass

        await ask()
        began = time.process_time()
        for _ in range(requests):
            await ask()
        return (time.process_time() - began) / requests * 1000


def main() -> None:
    requests = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    here, there = multiprocessing.get_context("spawn").Pipe()
    engine = multiprocessing.get_context("spawn").Process(target=serve, args=(there,), daemon=True)
    engine.start()
    url = here.recv()
    print(f"{requests} requests each, one at a time; ms of CPU a request")
    for megabytes in (0.5, 3.0):
        image = film(megabytes)
        own, theirs = asyncio.run(ours(url, image, requests)), asyncio.run(plain(url, image, requests))
        size = len(image.base64) / 1e6
        print(f"body {size:.1f} MB: AsyncClient {own:.2f}, AsyncOpenAI {theirs:.2f}, ratio {own / theirs:.2f}")
    here.send(None)
    engine.join(5)


if __name__ == "__main__":
    main()
