"""Reports of many films from a server, and from transformers, which they must equal."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import openai

from pedcxr_client.request import prompts
from pedcxr_serve.demo import CHECKPOINT, drawing
from pedcxr_serve.demo.findings import sample
from tests.benchmarks import transformers_baseline

UNSEEN = 9_000_000
"""The first seed of phantoms for tests: training and its own evaluation draw from lower seeds."""


@dataclass(frozen=True)
class Study:
    """A film on disk and its prompt."""

    film: Path
    prompt: str

    @property
    def question(self) -> transformers_baseline.Question:
        """The film and its prompt, for transformers."""
        return transformers_baseline.Question(str(self.film), self.prompt)

    def messages(self) -> list[dict[str, object]]:
        url = "data:image/png;base64," + base64.b64encode(self.film.read_bytes()).decode()
        return prompts.messages(self.prompt, url)


def draw(folder: Path, seeds: Iterable[int]) -> list[Study]:
    """Draw the phantom of each seed into a folder."""
    studies = []
    for seed in seeds:
        case = sample(seed)
        film = folder / f"{seed}.png"
        film.write_bytes(drawing.encode_png(drawing.render(case, seed)))
        studies.append(Study(film, prompts.card(case.age, case.sex)))
    return studies


def reference(studies: Sequence[Study]) -> list[list[int]]:
    """Return the token ids that the model card's own code generates."""
    return transformers_baseline.ask(CHECKPOINT, [study.question for study in studies]).ids


def served(url: str, studies: Sequence[Study], in_flight: int) -> list[openai.types.chat.ChatCompletion]:
    """Return the server's completions, with at most ``in_flight`` concurrent requests."""

    async def all_of_them() -> list[openai.types.chat.ChatCompletion]:
        gate = asyncio.Semaphore(in_flight)
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:

            async def one(study: Study) -> openai.types.chat.ChatCompletion:
                async with gate:
                    return await client.chat.completions.create(
                        model="pedcxr-demo", messages=study.messages(), extra_body={"return_token_ids": True}
                    )

            return await asyncio.gather(*(one(study) for study in studies))

    return asyncio.run(all_of_them())


def token_ids(completion: openai.types.chat.ChatCompletion) -> list[int]:
    """Return the completion's token ids without the end-of-turn token."""
    ids: list[int] = completion.choices[0].token_ids  # type: ignore[attr-defined]
    return ids[:-1] if completion.choices[0].finish_reason == "stop" else ids
