"""Gemma 3 whose vision tower may be saved under either of its two sets of names.

Written for vLLM 0.32: ``model_executor/models/gemma3_mm.py`` knows ``vision_tower.vision_model.*`` only. transformers
5.8 and later save a model built from a config with flat ``vision_tower.*`` names, on which vLLM dies after minutes.
"""

from __future__ import annotations

import re

from vllm.model_executor.models import gemma3_mm
from vllm.model_executor.models.utils import WeightsMapper

FLAT_TOWER = re.compile(r"^(?:model\.)?vision_tower\.(?!vision_model\.)")
"""A weight of the vision tower without the ``vision_model`` infix."""


class Gemma3ForConditionalGeneration(gemma3_mm.Gemma3ForConditionalGeneration):
    """vLLM's model; only the names at load differ."""

    hf_to_vllm_mapper = (
        WeightsMapper(orig_to_new_regex={FLAT_TOWER: "vision_tower.vision_model."})
        | gemma3_mm.Gemma3ForConditionalGeneration.hf_to_vllm_mapper
    )
