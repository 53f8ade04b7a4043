"""Clients in Python and JavaScript against the real engine: complete, streamed and aborted requests."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path

import httpx
import openai
import pytest

from tests.support.languages import installed, javascript
from tests.support.servers.gateway_server import BODY, eventually
from tests.support.servers.live_server import family, held_still, title
from tests.support.servers.local_server import LocalServer

pytestmark = pytest.mark.slow

PAYLOAD = {"model": "pedcxr-demo", **BODY}
DISCONNECTS = 48


def gauge(running: LocalServer, name: str) -> float:
    page = httpx.get(running.metrics_url, timeout=60).text
    return sum(float(value) for value in re.findall(rf"^{name}(?:\{{[^}}]*\}})? (\S+)$", page, re.MULTILINE))


def engine_connections(running: LocalServer) -> int:
    """Return how many connections to its private socket the engine's API server has not closed."""
    path = next(
        words[words.index("--uds") + 1]
        for pid in family(running.process.pid)
        if "--uds" in (words := title(pid).split("\0"))
    )
    connected = "03"  # the state column of /proc/net/unix, SS_CONNECTED; a listening socket has 01
    rows = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    return sum(len(row) == 8 and row[5] == connected and row[7] == path for row in rows)


def test_disconnected_streams_are_aborted_in_the_engine(running: LocalServer) -> None:
    """Streams are sent while the engine core is stopped and closed before it continues, so that timing plays no part.

    The core continues only after vLLM's API server has seen every disconnect; it then has the aborts in its queue.
    """

    async def send_and_disconnect(idle: int) -> None:
        async with openai.AsyncOpenAI(base_url=running.url, api_key="none", max_retries=0) as client:
            streams = [
                asyncio.create_task(client.chat.completions.create(**PAYLOAD, stream=True)) for _ in range(DISCONNECTS)
            ]
            await wait_for(lambda: gauge(running, "pedcxr_requests_in_flight") == DISCONNECTS)
            await wait_for(lambda: engine_connections(running) > idle)
            for stream in streams:
                stream.cancel()
            ends = await asyncio.gather(*streams, return_exceptions=True)
            assert {type(end) for end in ends} <= {asyncio.CancelledError, openai.AsyncStream}
        await wait_for(lambda: gauge(running, "pedcxr_requests_in_flight") == 0)
        await wait_for(lambda: engine_connections(running) == idle)

    async def wait_for(condition: Callable[[], bool]) -> None:
        await asyncio.to_thread(eventually, condition, 60)

    with openai.OpenAI(base_url=running.url, api_key="none", max_retries=0) as client:
        report = client.chat.completions.create(**PAYLOAD)
        assert report.usage is not None
        before, idle = gauge(running, "vllm:generation_tokens_total"), engine_connections(running)
        with held_still(running.process.pid):
            asyncio.run(send_and_disconnect(idle))
        eventually(lambda: gauge(running, "vllm:num_requests_running") == 0, 60)
        generated = gauge(running, "vllm:generation_tokens_total") - before
        assert generated < 0.5 * DISCONNECTS * report.usage.completion_tokens
        again = client.chat.completions.create(**PAYLOAD)
    assert again.choices[0].message.content == report.choices[0].message.content


def test_javascript(running: LocalServer, tmp_path: Path) -> None:
    script = installed(tmp_path)
    whole = javascript(script, "sync", running.url, "none")
    streamed = javascript(script, "stream", running.url, "none")
    assert whole["text"] == streamed["text"] and whole["finish"] == streamed["finish"] == "stop"
    assert streamed["events"] > 5 and streamed["usage"]["completion_tokens"] > 5
    aborted = javascript(script, "abort", running.url, "none")
    assert aborted["aborted"] and whole["text"].startswith(aborted["text"])
    eventually(lambda: gauge(running, "vllm:num_requests_running") == 0)
