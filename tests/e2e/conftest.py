"""What the end-to-end tests share: a server on the demo checkpoint, phantoms on disk, reference tokens."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import openai
import pytest

from pedcxr_client import prompt
from pedcxr_client.age import Age
from pedcxr_serve.demo import CHECKPOINT, phantom, quick_start
from pedcxr_serve.local import LocalServer, server

from .support import FILMS

PHANTOMS = 100
UNSEEN = 9_000_000  # training and its own evaluation draw from lower seeds


@dataclass(frozen=True)
class Study:
    """A film on disk and the prompt that goes with it."""

    film: Path
    prompt: str

    def messages(self) -> list:
        url = "data:image/png;base64," + base64.b64encode(self.film.read_bytes()).decode()
        return prompt.messages(self.prompt, url)


@pytest.fixture(scope="session")
def running() -> Iterator[LocalServer]:
    """The one server that most tests share."""
    with server() as ready:
        yield ready


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> list[Study]:
    """Phantoms that training never saw."""
    folder = tmp_path_factory.mktemp("phantoms")
    studies = []
    for seed in range(UNSEEN, UNSEEN + PHANTOMS):
        case = phantom.sample(seed)
        film = folder / f"{seed}.png"
        film.write_bytes(phantom.encode_png(phantom.render(case, seed)))
        studies.append(Study(film, prompt.card(case.age, case.sex)))
    return studies


@pytest.fixture(scope="session")
def children() -> list[Study]:
    """The real films of children, each opaque and 8-bit."""
    if not FILMS.is_dir():
        pytest.skip(f"the real films are not here ({FILMS})")
    # A prompt that is right for none of them in particular: parity, not medicine, is asked for.
    words = prompt.card(Age(9, "Y"), "F")
    return [Study(film, words) for film in sorted(FILMS.glob("*.png"))]


def reference(studies: Sequence[Study]) -> list[list[int]]:
    """Token ids that the model card's own code writes of them."""
    return quick_start.ask(CHECKPOINT, [quick_start.Question(str(study.film), study.prompt) for study in studies]).ids


def served(url: str, studies: Sequence[Study], in_flight: int) -> list[openai.types.chat.ChatCompletion]:
    """What a server writes of them, with at most ``in_flight`` requests at once."""

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
    """The answer's tokens without the one that ends it."""
    ids: list[int] = completion.choices[0].token_ids  # type: ignore[attr-defined]
    return ids[:-1] if completion.choices[0].finish_reason == "stop" else ids
