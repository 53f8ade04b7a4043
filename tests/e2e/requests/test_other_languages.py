"""The openai packages for Python and JavaScript with real vLLM: complete, streamed and disconnected."""

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

REQUEST = {"model": "pedcxr-demo", "messages": [{"role": "user", "content": "Generate a report."}]}
CLIENTS = 48


def gauge(running: LocalServer, name: str) -> float:
    page = httpx.get(running.metrics_url).text
    return sum(float(value) for value in re.findall(rf"^{name}(?:\{{[^}}]*\}})? (\S+)$", page, re.MULTILINE))


async def first_word(client: openai.AsyncOpenAI) -> None:
    async with await client.chat.completions.create(**REQUEST, stream=True) as stream:
        assert (await anext(aiter(stream))).choices


def test_disconnected_streams_stop_the_engine(running: LocalServer) -> None:
    """All clients disconnect after the first token of one, while the engine is stopped: it then writes few tokens."""

    async def disconnect_all() -> None:
        async with openai.AsyncOpenAI(base_url=running.url, api_key="none", max_retries=0) as client:
            streams = [asyncio.create_task(first_word(client)) for _ in range(CLIENTS)]
            await asyncio.wait(streams, return_when=asyncio.FIRST_COMPLETED)
            with held_still(running.process.pid):
                for stream in streams:
                    stream.cancel()
                ends = await asyncio.gather(*streams, return_exceptions=True)
                assert None in ends and {type(end) for end in ends} <= {type(None), asyncio.CancelledError}
                await client.close()
                await asyncio.to_thread(eventually, lambda: gauge(running, "pedcxr_requests_in_flight") == 0, 10)

    with openai.OpenAI(base_url=running.url, api_key="none", max_retries=0) as client:
        whole = client.chat.completions.create(**REQUEST)
        assert whole.usage is not None
        before = gauge(running, "vllm:generation_tokens_total")
        asyncio.run(disconnect_all())
        eventually(lambda: gauge(running, "vllm:num_requests_running") == 0, 10)
        tokens = gauge(running, "vllm:generation_tokens_total") - before
        assert tokens < 0.5 * CLIENTS * whole.usage.completion_tokens
        again = client.chat.completions.create(**REQUEST)
    assert again.choices[0].message.content == whole.choices[0].message.content


def test_javascript(running: LocalServer, tmp_path: Path) -> None:
    script = installed(tmp_path)
    whole = javascript(script, "sync", running.url, "none")
    streamed = javascript(script, "stream", running.url, "none")
    assert whole["text"] == streamed["text"] and whole["finish"] == streamed["finish"] == "stop"
    assert streamed["events"] > 5 and streamed["usage"]["completion_tokens"] > 5
    aborted = javascript(script, "abort", running.url, "none")
    assert aborted["aborted"] and whole["text"].startswith(aborted["text"])
    eventually(lambda: gauge(running, "vllm:num_requests_running") == 0, 10)
