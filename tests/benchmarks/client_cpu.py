"""CPU time per report: Client and AsyncClient against the openai SDK's AsyncOpenAI.

    python -m tests.benchmarks.client_cpu [REQUESTS]

All send the same encoded film, one request at a time, to a fake engine in another process and read the same stream.
Prints milliseconds of CPU time per request.
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

from pedcxr_client import AsyncClient, Client, EncodedImage
from pedcxr_client.films.film import encode, load
from pedcxr_client.request.prompts import card, messages
from tests.support.servers.fake_engine import FakeEngine


def serve(ready: Any) -> None:
    with FakeEngine() as engine:
        engine.requests = deque(maxlen=1)  # type: ignore[assignment]
        ready.send(engine.url)
        ready.recv()


def noise_film(megabytes: float) -> EncodedImage:
    """Return a film whose base64 text has the given size. Noise is incompressible, so one pixel takes one byte."""
    from PIL import Image

    side = int((megabytes * 1e6 * 3 / 4) ** 0.5)
    return encode(load(Image.frombytes("L", (side, side), os.urandom(side * side))))


def measure_client(url: str, image: EncodedImage, requests: int) -> float:
    with Client(url, model="fake") as client:
        client.report(image)
        start = time.process_time()
        for _ in range(requests):
            client.report(image)
        return (time.process_time() - start) / requests * 1000


async def measure_async_client(url: str, image: EncodedImage, requests: int) -> float:
    async with AsyncClient(url, model="fake") as client:
        await client.report(image)
        start = time.process_time()
        for _ in range(requests):
            await client.report(image)
        return (time.process_time() - start) / requests * 1000


async def measure_sdk(url: str, image: EncodedImage, requests: int) -> float:
    http_client = openai.DefaultAsyncHttpxClient(trust_env=False)  # no proxy, as for pedcxr's client
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, http_client=http_client) as client:

        async def report() -> None:
            stream = await client.chat.completions.create(
                model="fake", messages=messages(card(), image.data_url), max_tokens=500, temperature=0, stream=True,
                stream_options={"include_usage": True},
            )  # fmt: skip
            async for _ in stream:
                pass

        await report()
        start = time.process_time()
        for _ in range(requests):
            await report()
        return (time.process_time() - start) / requests * 1000


def main() -> None:
    requests = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    parent, child = multiprocessing.get_context("spawn").Pipe()
    engine = multiprocessing.get_context("spawn").Process(target=serve, args=(child,), daemon=True)
    engine.start()
    url = parent.recv()
    print(f"{requests} requests each, one at a time; ms of CPU per request")
    for megabytes in (0.5, 3.0):
        image = noise_film(megabytes)
        sdk = asyncio.run(measure_sdk(url, image, requests))
        async_client = asyncio.run(measure_async_client(url, image, requests))
        client = measure_client(url, image, requests)
        print(
            f"body {len(image.base64) / 1e6:.1f} MB: AsyncClient {async_client:.2f}, Client {client:.2f}, "
            f"AsyncOpenAI {sdk:.2f}, ratio {async_client / sdk:.2f} and {client / sdk:.2f}"
        )
    parent.send(None)
    engine.join(5)


if __name__ == "__main__":
    main()
