"""Ask the engine for its health, its models, one token, a warm-up report, a refusal or the effect of an adapter."""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
from typing import Literal

import aiohttp

from pedcxr_client.films.age import Age
from pedcxr_client.request import prompts
from pedcxr_serve.demo import drawing
from pedcxr_serve.demo.findings import Case
from pedcxr_serve.engine import access
from pedcxr_serve.errors import AdapterError, EngineNotReady
from pedcxr_serve.vllm_plugin import refusals

# Limits of asyncio, not of aiohttp 3.14. A limit of aiohttp that ends together with a limit around it, or with a
# cancellation, swallows the other: aiohttp takes back two cancellations for its own one (``helpers.TimerContext``).
_HEALTH_TIMEOUT_S = 2.0
_PROGRESS_TIMEOUT_S = 5.0
_PROGRESS_COUNTERS = ("vllm:prompt_tokens_total", "vllm:generation_tokens_total", "vllm:iteration_tokens_total_count")
_SEED = 1
DEEP_PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABEAAAAABq7kcWAAAAC0lEQVR4nGPg3gEAANEAxDWDj4AAAAAASUVORK5CYII="
"""A grey PNG of 1 x 1 pixels with 16 bits, in base64. vLLM alone would turn it white."""
_ALTERNATIVES = 5  # tokens whose log probabilities are compared
# In natural logarithms. An adapter without effect gives the same numbers as the base, up to rounding.
_SAME_LOGPROB = 1e-4
_MAX_TOKENS = 16  # enough to run the vision tower, a prefill and decode steps; the text itself is not checked


Health = Literal["healthy", "dead", "silent", "stopping"]


async def check(engine: aiohttp.ClientSession) -> Health:
    """Return ``healthy`` if the engine answers ``/health`` with 200 within 2 s, ``silent`` if it does not answer.

    It is ``stopping`` if it says so (`pedcxr_serve.engine.access`), and ``dead`` if it answers another status, as vLLM
    does after a failure, or accepts no connection.
    """
    try:
        async with asyncio.timeout(_HEALTH_TIMEOUT_S), engine.get("/health") as response:
            if response.status == 200:
                return "healthy"
            return "stopping" if access.is_stopping(await response.read()) else "dead"
    except aiohttp.ClientConnectorError:
        return "dead"
    except (aiohttp.ClientError, TimeoutError):
        return "silent"


async def is_healthy(engine: aiohttp.ClientSession) -> bool:
    """Return whether `check` finds the engine healthy, which it is not while it loads."""
    return await check(engine) == "healthy"


async def model_names(engine: aiohttp.ClientSession) -> frozenset[str]:
    """Return the names of all models, adapters included, or raise EngineNotReady unless the engine answers 200."""
    async with engine.get("/v1/models") as response:
        body = await response.json()
    if response.status != 200:
        raise EngineNotReady(f"the engine answered the request for its models with status {response.status}")
    return frozenset(model["id"] for model in body["data"])


async def probe(engine: aiohttp.ClientSession, model: str) -> None:
    """Have the engine generate one token, which shows that its scheduler and its model still make progress.

    Raises EngineNotReady unless the engine answers 200.
    """
    body = {"model": model, "messages": [{"role": "user", "content": "ok"}], "max_tokens": 1, "temperature": 0}
    async with engine.post("/v1/chat/completions", json=body) as response:
        await response.read()
    if response.status != 200:
        raise EngineNotReady(f"the engine answered the one-token probe with status {response.status}")


async def progress(engine: aiohttp.ClientSession) -> float | None:
    """Return the number of tokens and steps that the engine has counted, or None if it does not answer within 5 s.

    The counters are on vLLM's ``/metrics`` (0.32, ``v1/metrics/loggers.py``). They stand still while a step hangs.
    """
    try:
        async with asyncio.timeout(_PROGRESS_TIMEOUT_S), engine.get("/metrics") as response:
            page = await response.text()
    except (aiohttp.ClientError, TimeoutError):
        return None
    values = [float(line.rpartition(" ")[2]) for line in page.splitlines() if line.startswith(_PROGRESS_COUNTERS)]
    return sum(values) if values else None


async def warm_up(engine: aiohttp.ClientSession, model: str) -> str:
    """Have the engine report a drawn film, and return the text.

    Raises:
        EngineNotReady: if the status is not 200, or the report is empty.
    """
    headers = {"Content-Type": "application/json"}
    async with engine.post("/v1/chat/completions", data=warm_up_request(model), headers=headers) as response:
        body = await response.json()
    if response.status != 200:
        message = body.get("error", {}).get("message", "no reason given")
        raise EngineNotReady(f"the engine answered the warm-up report with status {response.status}: {message}")
    text: str = body["choices"][0]["message"]["content"] or ""
    if not text.strip():
        raise EngineNotReady("the warm-up report is empty; check the weights with `pedcxr-serve check`")
    return text


async def check_plugin(engine: aiohttp.ClientSession, model: str) -> None:
    """Have the engine refuse a film with 16 bits, which shows that the plugin decodes the films.

    Raises:
        EngineNotReady: the engine accepted the film, or refused it for another reason.
    """
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{DEEP_PNG}"}}
    body = {"model": model, "messages": [{"role": "user", "content": [image]}], "max_tokens": 1, "temperature": 0}
    async with engine.post("/v1/chat/completions", json=body) as response:
        data = await response.read()
    refusal = refusals.read(data) if response.status != 200 else None
    if refusal is None or refusal.code != "film_refused":
        raise EngineNotReady(
            f"the engine answered a film with 16 bits with status {response.status} instead of a refusal: the plugin "
            "of pedcxr is not loaded, and films would be changed; check VLLM_PLUGINS and the version of vLLM"
        )


async def check_adapter(engine: aiohttp.ClientSession, adapter: str, base: str) -> None:
    """Compare the distributions of the first token of a drawn film with and without an adapter.

    Raises:
        AdapterError: they are equal: the engine answers with the base under the adapter's name.
        EngineNotReady: the engine does not answer.
    """
    changed, unchanged = [await first_token(engine, model) for model in (adapter, base)]
    if changed.keys() == unchanged.keys() and all(
        abs(changed[token] - unchanged[token]) <= _SAME_LOGPROB for token in changed
    ):
        raise AdapterError(
            f"adapters.{adapter}: has no effect: the first token of a film has the same probabilities as with {base}. "
            "The engine would answer with reports of the base; compare the names of the adapter's weights with those "
            "of the base, and check that it was trained"
        )


async def first_token(engine: aiohttp.ClientSession, model: str) -> dict[str, float]:
    """Return the log probabilities of the most likely first tokens of a drawn film, by token.

    Raises EngineNotReady unless the engine answers 200 with log probabilities.
    """
    # A new salt: with a cached prefix, the same model gives slightly other numbers.
    more = {"max_tokens": 1, "logprobs": True, "top_logprobs": _ALTERNATIVES, "cache_salt": secrets.token_hex(16)}
    async with engine.post("/v1/chat/completions", json=_drawn_film(model) | more) as response:
        body = await response.json()
    try:
        [token] = body["choices"][0]["logprobs"]["content"]
        return {entry["token"]: float(entry["logprob"]) for entry in token["top_logprobs"]}
    except (KeyError, TypeError, ValueError, IndexError):
        raise EngineNotReady(
            f"the engine answered the request for one token of {model} with status {response.status} and without log "
            "probabilities"
        ) from None


def warm_up_request(model: str) -> bytes:
    """Return the JSON body of a short, greedy report of a drawn film."""
    return json.dumps(_drawn_film(model)).encode()


def _drawn_film(model: str) -> dict[str, object]:
    case = Case(age=Age(5, "Y"), sex="M", findings=())
    png = drawing.encode_png(drawing.render(case, _SEED))
    url = "data:image/png;base64," + base64.b64encode(png).decode()
    return {
        "model": model,
        "messages": prompts.messages(prompts.card(case.age, case.sex), url),
        "max_tokens": _MAX_TOKENS,
        "temperature": 0,
    }
