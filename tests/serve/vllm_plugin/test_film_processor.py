"""Films are prepared as vLLM's own processor prepares them: the same tokens, placeholders, hashes and pixels."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

COMPARE = """
import torch
from PIL import Image
from transformers import Gemma3Processor
from vllm.config import ModelConfig
from vllm.model_executor.models import gemma3_mm
from vllm.multimodal.processing.context import InputProcessingContext, TimingContext
from vllm.multimodal.processing.inputs import ProcessorInputs
from vllm.tokenizers import cached_tokenizer_from_config

from pedcxr_serve.demo import CHECKPOINT
from pedcxr_serve.vllm_plugin.film_processor import FilmProcessor

config = ModelConfig(str(CHECKPOINT), dtype="bfloat16")
info = gemma3_mm.Gemma3ProcessingInfo(InputProcessingContext(config, cached_tokenizer_from_config(config)))


def prepare(kind, film):
    processor = kind(info, gemma3_mm.Gemma3DummyInputsBuilder(info))
    prompt = info.get_tokenizer().encode("<bos><start_of_turn>user\\n<start_of_image>Age: 6y<end_of_turn>")
    items = info.parse_mm_data({"image": [film]})
    inputs = processor.apply(ProcessorInputs(prompt, items), TimingContext())
    [item] = inputs.pop("mm_kwargs")["image"]
    return inputs, item.get_data()


films = [Image.effect_noise(size, 100) for size in ((224, 224), (900, 300))]
films.append(Image.effect_noise((250, 333), 100).convert("RGB"))
stock = [prepare(gemma3_mm.Gemma3MultiModalProcessor, film) for film in films]
Gemma3Processor.__call__ = None  # must not be used
for film, (inputs, data) in zip(films, stock):
    own_inputs, own_data = prepare(FilmProcessor, film)
    assert len(inputs["prompt_token_ids"]) > 64
    assert own_inputs == inputs, (own_inputs, inputs)
    assert own_data.keys() == data.keys() == {"pixel_values", "num_patches"}
    assert all(torch.equal(own_data[key], value) and own_data[key].dtype == value.dtype for key, value in data.items())
print("equal")
"""


@pytest.mark.slow
def test_tokens_and_pixels_are_those_of_vllm() -> None:
    if find_spec("vllm") is None:  # find_spec does not import vLLM, which would take half a minute
        pytest.skip("needs pedcxr[cpu] or pedcxr[gpu]")
    completed = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", COMPARE],
        env=os.environ | {"HF_HUB_OFFLINE": "1"}, timeout=240, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert completed.stdout.endswith("equal\n"), completed.stderr[-3000:]
