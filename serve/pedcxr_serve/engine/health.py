"""The first report: proof that a film goes in and words come out, before a server calls itself ready."""

from __future__ import annotations

import base64
import json

import aiohttp

from pedcxr_client.films.age import Age
from pedcxr_client.request import prompts
from pedcxr_serve.demo import drawing
from pedcxr_serve.errors import EngineNotReady

_SEED = 1
_MAX_TOKENS = 16  # enough to run the tower, a prefill and decode steps; the text itself is not judged here


def request(model: str) -> bytes:
    """The body of a short, greedy report of a drawn film, for the model of that name."""
    case = drawing.Case(age=Age(5, "Y"), sex="M", findings=())
    png = drawing.encode_png(drawing.render(case, _SEED))
    url = "data:image/png;base64," + base64.b64encode(png).decode()
    body = {
        "model": model,
        "messages": prompts.messages(prompts.card(case.age, case.sex), url),
        "max_tokens": _MAX_TOKENS,
        "temperature": 0,
    }
    return json.dumps(body).encode()


async def healthy(engine: aiohttp.ClientSession) -> bool:
    """Whether the engine's server answers at all; false while it loads."""
    try:
        async with engine.get("/health", timeout=aiohttp.ClientTimeout(total=2)) as answer:
            return answer.status == 200
    except (aiohttp.ClientError, TimeoutError):
        return False


async def names(engine: aiohttp.ClientSession) -> frozenset[str]:
    """Of all models that the engine serves, adapters too.

    Raises:
        EngineNotReady: if it answers anything but 200.
    """
    async with engine.get("/v1/models") as answer:
        body = await answer.json()
    if answer.status != 200:
        raise EngineNotReady(f"the engine answered {answer.status} when it was asked for its models")
    return frozenset(model["id"] for model in body["data"])


async def probe(engine: aiohttp.ClientSession, model: str) -> None:
    """Have the engine write one token: proof that its scheduler and its model still step.

    Raises:
        EngineNotReady: if it answers anything but 200.
    """
    body = {"model": model, "messages": [{"role": "user", "content": "ok"}], "max_tokens": 1, "temperature": 0}
    async with engine.post("/v1/chat/completions", json=body) as answer:
        await answer.read()
    if answer.status != 200:
        raise EngineNotReady(f"the engine answered {answer.status} when it was asked for a token")


async def report(engine: aiohttp.ClientSession, model: str) -> str:
    """Have the engine write of a drawn film; its words.

    Raises:
        EngineNotReady: if it refuses, or writes nothing.
    """
    headers = {"Content-Type": "application/json"}
    async with engine.post("/v1/chat/completions", data=request(model), headers=headers) as answer:
        body = await answer.json()
    if answer.status != 200:
        message = body.get("error", {}).get("message", "no reason given")
        raise EngineNotReady(f"the warm-up report of a drawn film was refused with {answer.status}: {message}")
    text: str = body["choices"][0]["message"]["content"] or ""
    if not text.strip():
        raise EngineNotReady("the warm-up report of a drawn film is empty; check the weights with `pedcxr-serve check`")
    return text
