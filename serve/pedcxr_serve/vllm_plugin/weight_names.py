"""Load Gemma 3 checkpoints with either of the two naming schemes of the vision tower's weights.

Written for vLLM 0.32: ``model_executor/models/gemma3_mm.py`` accepts only ``vision_tower.vision_model.*``. transformers
5.8 and later save a model built from a configuration with flat ``vision_tower.*`` names, and vLLM fails on these after
minutes of loading.
"""

from __future__ import annotations

import re

from vllm.model_executor.models import gemma3_mm
from vllm.model_executor.models.utils import WeightsMapper
from vllm.multimodal import MULTIMODAL_REGISTRY

from pedcxr_serve.vllm_plugin.film_processor import FilmProcessor

FLAT_TOWER = re.compile(r"^(?:model\.)?vision_tower\.(?!vision_model\.)")
"""Matches the name of a vision tower weight without ``vision_model``."""


@MULTIMODAL_REGISTRY.register_processor(
    FilmProcessor, info=gemma3_mm.Gemma3ProcessingInfo, dummy_inputs=gemma3_mm.Gemma3DummyInputsBuilder
)
class Gemma3ForConditionalGeneration(gemma3_mm.Gemma3ForConditionalGeneration):
    """vLLM's model with an additional mapping of weight names, and with the processor of this package."""

    hf_to_vllm_mapper = (
        WeightsMapper(orig_to_new_regex={FLAT_TOWER: "vision_tower.vision_model."})
        | gemma3_mm.Gemma3ForConditionalGeneration.hf_to_vllm_mapper
    )
