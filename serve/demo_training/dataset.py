"""Training data: drawn films, preprocessed once by the checkpoint's image processor, with prompts and reports."""

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
from pedcxr_serve.demo.findings import FINDINGS, Case, Finding, sample, sample_age

SHIFT = 7
"""Largest shift of a film in training, in pixels of the preprocessed 224 x 224 image."""
_NUMBERS = (1, 2, 3, 10, 11, 12)
SIMILAR_AGES = (*(Age(value, "Y") for value in 2 * _NUMBERS), *(Age(value, "M") for value in _NUMBERS))
"""Ages whose wording differs in a digit or the unit only, although the report of a wide mediastinum differs."""
_SEXES: tuple[Sex | None, ...] = ("M", "F", None)


@dataclass(frozen=True, slots=True)
class Films:
    """Preprocessed films.

    Attributes:
        pixels: uint8, shape (count, height, width).
        targets: float 0 or 1, shape (count, 17), in the order of `pedcxr_serve.demo.findings.FINDINGS`.
        findings: the findings of each film.
    """

    pixels: Tensor
    targets: Tensor
    findings: tuple[tuple[Finding, ...], ...]


def _draw(seed: int) -> NDArray[np.uint8]:
    return drawing.render(sample(seed), seed)


def draw(seeds: Sequence[int], processor: Gemma3Processor) -> Films:
    """Draw the films of these seeds, and resize them with the image processor."""
    findings = tuple(sample(seed).findings for seed in seeds)
    pixels: list[Tensor] = []
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        for film in tqdm(pool.map(_draw, seeds, chunksize=32), "drawing films", len(seeds)):
            encoded = processor.image_processor(
                Image.fromarray(film).convert("RGB"), do_rescale=False, do_normalize=False, return_tensors="pt"
            )
            pixels.append(encoded["pixel_values"][0, 0].round().to(torch.uint8))
    targets = [[float(finding in case) for finding in FINDINGS] for case in findings]
    return Films(torch.stack(pixels), torch.tensor(targets), findings)


def vary(pixels: Tensor, source: torch.Generator) -> Tensor:
    """Augment with shift, exposure and noise: uint8 (batch, height, width) to -1 ... 1, (batch, 3, height, width)."""
    count, height, width = pixels.shape
    padded = torch.nn.functional.pad(pixels[:, None].float() / 255, (SHIFT,) * 4, mode="replicate")[:, 0]
    offsets = torch.randint(0, 2 * SHIFT + 1, (count, 2), generator=source).tolist()
    shifted = torch.stack([film[y : y + height, x : x + width] for film, (y, x) in zip(padded, offsets, strict=True)])
    gain, offset, rough = torch.rand(3, count, 1, 1, generator=source)
    film = shifted * (0.85 + 0.3 * gain) + 0.12 * (offset - 0.5)
    film = film + 0.03 * rough * torch.randn(film.shape, generator=source)
    normalized: Tensor = 2 * film.clamp(0, 1) - 1
    return normalized[:, None].expand(-1, 3, -1, -1)


class ExampleEncoder:
    """Encodes prompts and reports to the tokens used in serving.

    Args:
        similar: share of the ages that are sampled from `SIMILAR_AGES`, 0 to 1.
    """

    def __init__(self, processor: Gemma3Processor, seed: int, *, similar: float = 0.0) -> None:
        self.similar = similar
        self.rng = np.random.default_rng([seed, 3])
        self.tokenizer = processor.tokenizer
        self.fill: Callable[[str], str] = lambda text: text.replace(processor.boi_token, processor.full_image_sequence)
        self.template = processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "PROMPT"}]}],
            add_generation_prompt=True,
            tokenize=False,
        )

    def prompt(self, words: str) -> list[int]:
        """Return the tokens of a prompt with one film, image tokens included."""
        return self._encode(self.fill(self.template.replace("PROMPT", words)))

    def pairs(self, cases: list[tuple[Finding, ...]]) -> dict[str, Tensor]:
        """Return a batch: for each film a random age and sex, the prompt, and the expected report."""
        prompts, reports = [], []
        for findings in cases:
            sex = _SEXES[int(self.rng.integers(3))]
            case = Case(self._age(), sex, findings)
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
        if self.similar and self.rng.random() < self.similar:
            return SIMILAR_AGES[int(self.rng.integers(len(SIMILAR_AGES)))]
        return sample_age(self.rng)

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
