"""Clients that people have, at the real engine: whole, streamed, and gone in the middle."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import httpx
import openai
import pytest

from tests.benchmarks.local_server import LocalServer
from tests.support.gateway_server import eventually
from tests.support.languages import installed, javascript
from tests.support.live_server import held_still

pytestmark = pytest.mark.slow

ASKED = {"model": "pedcxr-demo", "messages": [{"role": "user", "content": "Generate a report."}]}
LEAVERS = 48


def gauge(running: LocalServer, name: str) -> float:
    page = httpx.get(running.metrics_url).text
    return sum(float(value) for value in re.findall(rf"^{name}(?:\{{[^}}]*\}})? (\S+)$", page, re.MULTILINE))


async def first_word(client: openai.AsyncOpenAI) -> None:
    async with await client.chat.completions.create(**ASKED, stream=True) as stream:
        assert (await anext(aiter(stream))).choices


def test_who_leaves_a_stream_stops_the_engine(running: LocalServer) -> None:
    """All leave once one has its first word, while the engine is held still: it writes hardly anything more."""

    async def all_of_them() -> None:
        async with openai.AsyncOpenAI(base_url=running.url, api_key="none", max_retries=0) as client:
            asked = [asyncio.create_task(first_word(client)) for _ in range(LEAVERS)]
            await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
            with held_still(running.process.pid):
                for one in asked:
                    one.cancel()
                ends = await asyncio.gather(*asked, return_exceptions=True)
                assert None in ends and {type(end) for end in ends} <= {type(None), asyncio.CancelledError}
                await client.close()
                await asyncio.to_thread(eventually, lambda: gauge(running, "pedcxr_requests_in_flight") == 0, 10)

    with openai.OpenAI(base_url=running.url, api_key="none", max_retries=0) as client:
        whole = client.chat.completions.create(**ASKED)
        assert whole.usage is not None
        before = gauge(running, "vllm:generation_tokens_total")
        asyncio.run(all_of_them())
        eventually(lambda: gauge(running, "vllm:num_requests_running") == 0, 10)
        written = gauge(running, "vllm:generation_tokens_total") - before
        assert written < 0.5 * LEAVERS * whole.usage.completion_tokens
        again = client.chat.completions.create(**ASKED)
    assert again.choices[0].message.content == whole.choices[0].message.content


def test_javascript(running: LocalServer, tmp_path: Path) -> None:
    script = installed(tmp_path)
    whole = javascript(script, "sync", running.url, "none")
    streamed = javascript(script, "stream", running.url, "none")
    assert whole["text"] == streamed["text"] and whole["finish"] == streamed["finish"] == "stop"
    assert streamed["events"] > 5 and streamed["usage"]["completion_tokens"] > 5
    left = javascript(script, "abort", running.url, "none")
    assert left["aborted"] and whole["text"].startswith(left["text"])
    eventually(lambda: gauge(running, "vllm:num_requests_running") == 0, 10)
