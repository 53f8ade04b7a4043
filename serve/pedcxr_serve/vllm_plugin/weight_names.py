"""Load Gemma 3 checkpoints with either of the two naming schemes of the vision tower's weights.

Written for vLLM 0.32: ``model_executor/models/gemma3_mm.py`` accepts only ``vision_tower.vision_model.*``. transformers
5.8 and later save a model built from a configuration with flat ``vision_tower.*`` names, and vLLM fails on these after
minutes of loading.
"""

from __future__ import annotations

import re

from vllm.model_executor.models import gemma3_mm
from vllm.model_executor.models.utils import WeightsMapper

FLAT_TOWER = re.compile(r"^(?:model\.)?vision_tower\.(?!vision_model\.)")
"""Matches the name of a vision tower weight without ``vision_model``."""


class Gemma3ForConditionalGeneration(gemma3_mm.Gemma3ForConditionalGeneration):
    """vLLM's model with an additional mapping of weight names."""

    hf_to_vllm_mapper = (
        WeightsMapper(orig_to_new_regex={FLAT_TOWER: "vision_tower.vision_model."})
        | gemma3_mm.Gemma3ForConditionalGeneration.hf_to_vllm_mapper
    )
