"""Prepare films without the text handling of transformers' processor, which takes CPU time for each film.

Written for vLLM 0.32: ``multimodal/processing/processor.py`` tokenizes the prompt itself. It passes
``Gemma3Processor`` a text with a placeholder for the film and discards the tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import BatchFeature
from transformers.models.gemma3.processing_gemma3 import Gemma3ProcessorKwargs
from vllm.model_executor.models.gemma3_mm import Gemma3MultiModalProcessor


class FilmProcessor(Gemma3MultiModalProcessor):
    """vLLM's processor, which calls transformers' image processor with the options that ``Gemma3Processor`` uses."""

    def _call_hf_processor(self, hf_data: Mapping[str, object], hf_kwargs: Mapping[str, object]) -> BatchFeature:
        processor = self.info.get_hf_processor(**hf_kwargs)

        def process_images(images: object, **kwargs: Any) -> BatchFeature:
            options = processor._merge_kwargs(
                Gemma3ProcessorKwargs, tokenizer_init_kwargs=processor.tokenizer.init_kwargs, **kwargs
            )
            return processor.image_processor(images, **options["images_kwargs"])

        return self.info.ctx.call_hf_processor(process_images, {"images": hf_data["images"]}, hf_kwargs)
