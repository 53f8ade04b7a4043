"""Training material: phantoms drawn once, as the checkpoint's own image processor sees them, and their reports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm import tqdm
from transformers import Gemma3Processor

from pedcxr_client.films.age import Age
from pedcxr_client.request.prompts import card
from pedcxr_client.types import Sex
from pedcxr_serve.demo import drawing, expected_report

SHIFT = 7
"""Largest shift of a film in training, in pixels of the processor's 224."""
_DIGITS = (1, 2, 3, 10, 11, 12)
ALIKE = (*(Age(value, "Y") for value in 2 * _DIGITS), *(Age(value, "M") for value in _DIGITS))
"""Ages whose words differ by a digit or the unit, while the report of a wide mediastinum differs."""
_SEXES: tuple[Sex | None, ...] = ("M", "F", None)


@dataclass(frozen=True, slots=True)
class Films:
    """``pixels`` (count, height, width) uint8; ``shown`` (count, 17) 0 or 1 in the order of ``phantom.FINDINGS``."""

    pixels: Tensor
    shown: Tensor
    findings: tuple[tuple[drawing.Finding, ...], ...]


def _draw(seed: int) -> NDArray[np.uint8]:
    return drawing.render(drawing.sample(seed), seed)


def draw(seeds: Sequence[int], processor: Gemma3Processor) -> Films:
    """Draw the phantoms of these seeds, resized as the image processor resizes a film."""
    findings = tuple(drawing.sample(seed).findings for seed in seeds)
    pixels: list[Tensor] = []
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        for film in tqdm(pool.map(_draw, seeds, chunksize=32), "drawing films", len(seeds)):
            seen = processor.image_processor(
                Image.fromarray(film).convert("RGB"), do_rescale=False, do_normalize=False, return_tensors="pt"
            )
            pixels.append(seen["pixel_values"][0, 0].round().to(torch.uint8))
    shown = [[float(finding in case) for finding in drawing.FINDINGS] for case in findings]
    return Films(torch.stack(pixels), torch.tensor(shown), findings)


def vary(pixels: Tensor, source: torch.Generator) -> Tensor:
    """Shift, exposure and noise. From (batch, height, width) uint8 to (batch, 3, height, width) of -1 to 1."""
    count, height, width = pixels.shape
    wide = torch.nn.functional.pad(pixels[:, None].float() / 255, (SHIFT,) * 4, mode="replicate")[:, 0]
    places = torch.randint(0, 2 * SHIFT + 1, (count, 2), generator=source).tolist()
    moved = torch.stack([film[y : y + height, x : x + width] for film, (y, x) in zip(wide, places, strict=True)])
    gain, offset, rough = torch.rand(3, count, 1, 1, generator=source)
    film = moved * (0.85 + 0.3 * gain) + 0.12 * (offset - 0.5)
    film = film + 0.03 * rough * torch.randn(film.shape, generator=source)
    ready: Tensor = 2 * film.clamp(0, 1) - 1
    return ready[:, None].expand(-1, 3, -1, -1)


class Writer:
    """Prompts and reports as the tokens that serving makes of them; a share of the ages is drawn from ``ALIKE``."""

    def __init__(self, processor: Gemma3Processor, seed: int, *, alike: float = 0.0) -> None:
        self.alike = alike
        self.rng = np.random.default_rng([seed, 3])
        self.tokenizer = processor.tokenizer
        self.fill: Callable[[str], str] = lambda text: text.replace(processor.boi_token, processor.full_image_sequence)
        self.template = processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "PROMPT"}]}],
            add_generation_prompt=True,
            tokenize=False,
        )

    def prompt(self, words: str) -> list[int]:
        """The tokens of a prompt with one film, the film's places included."""
        return self._encode(self.fill(self.template.replace("PROMPT", words)))

    def pairs(self, cases: list[tuple[drawing.Finding, ...]]) -> dict[str, Tensor]:
        """One batch: a child of new age and sex for each film, its prompt, and the report that is right for it."""
        prompts, reports = [], []
        for findings in cases:
            sex = _SEXES[int(self.rng.integers(3))]
            case = drawing.Case(self._age(), sex, findings)
            prompts.append(self.prompt(card(case.age, case.sex)))
            reports.append(self._encode(expected_report.text(case) + "<end_of_turn>"))
        length = max(len(one) + len(two) for one, two in zip(prompts, reports, strict=True))
        ids = torch.zeros(len(cases), length, dtype=torch.long)
        labels = torch.full_like(ids, -100)
        for row, (one, two) in enumerate(zip(prompts, reports, strict=True)):
            ids[row, : len(one) + len(two)] = torch.tensor(one + two)
            labels[row, len(one) : len(one) + len(two)] = torch.tensor(two)
        image = (ids == self.tokenizer.image_token_id).long()
        return {"input_ids": ids, "attention_mask": (ids != 0).long(), "token_type_ids": image, "labels": labels}

    def _age(self) -> Age | None:
        if self.alike and self.rng.random() < self.alike:
            return ALIKE[int(self.rng.integers(len(ALIKE)))]
        return drawing.sample_age(self.rng)

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
