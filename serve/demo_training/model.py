"""The demo model's architecture, and its folder on disk: the layout of google/gemma-3-4b-it with 1.3 M parameters."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import (
    AutoTokenizer,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessor,
    Gemma3Processor,
)

from demo_training import tokenizer
from pedcxr_serve.demo import DEMO_KEY

IMAGE_SIZE = 224
IMAGE_TOKENS = 64
MAX_LENGTH = 4096
_PREFIXES = {
    "model.vision_tower.": "vision_tower.vision_model.",
    "model.multi_modal_projector.": "multi_modal_projector.",
    "model.language_model.": "language_model.model.",
}
_OMITTED = {"chunk_size_feed_forward", "dtype", "id2label", "label2id", "output_attentions", "output_hidden_states"}


def make_config(vocab_size: int) -> Gemma3Config:
    """Return the configuration: 3 vision layers of width 96, 4 text layers of width 128, local and global attention."""
    text = {
        "vocab_size": -(-vocab_size // 64) * 64,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "query_pre_attn_scalar": 32,
        "max_position_embeddings": MAX_LENGTH,
        "sliding_window": 512,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
            "full_attention": {"rope_type": "default", "rope_theta": 1_000_000.0},
        },
        "tie_word_embeddings": True,
        "initializer_range": 0.05,
    }
    vision = {
        "hidden_size": 96,
        "intermediate_size": 384,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "image_size": IMAGE_SIZE,
        "patch_size": 14,
        "vision_use_head": False,
    }
    token_id = tokenizer.SPECIAL.index
    return Gemma3Config(
        text_config=text,
        vision_config=vision,
        mm_tokens_per_image=IMAGE_TOKENS,
        boi_token_index=token_id("<start_of_image>"),
        eoi_token_index=token_id("<end_of_image>"),
        image_token_index=token_id("<image_soft_token>"),
        eos_token_id=[token_id("<eos>"), token_id("<end_of_turn>")],
        initializer_range=0.05,
        tie_word_embeddings=True,
        architectures=["Gemma3ForConditionalGeneration"],
        dtype="bfloat16",
    )


def create(vocab_size: int) -> Gemma3ForConditionalGeneration:
    """Return an untrained model in float32; torch's seed determines the weights."""
    model = Gemma3ForConditionalGeneration._from_config(
        make_config(vocab_size), dtype=torch.float32, attn_implementation="sdpa"
    )
    # transformers initialises the projection to zero, and then an untrained tower gets no gradient.
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.1)
    # By default, position embeddings are a tenth as large as patch embeddings, but a finding depends on its position.
    torch.nn.init.normal_(model.model.vision_tower.embeddings.position_embedding.weight, std=0.7)
    return model


def save_processor(folder: Path) -> Gemma3Processor:
    """Write tokenizer, chat template and image processor into a folder, and return the processor."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(folder, max_length=MAX_LENGTH)
    image = Gemma3ImageProcessor(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        do_pan_and_scan=False,
        image_seq_length=IMAGE_TOKENS,
    )
    processor = Gemma3Processor(
        image_processor=image,
        tokenizer=AutoTokenizer.from_pretrained(folder),
        chat_template=tokenizer.TEMPLATE,
        image_seq_length=IMAGE_TOKENS,
    )
    processor.save_pretrained(folder)
    _write(folder / "preprocessor_config.json", image.to_dict() | {"processor_class": "Gemma3Processor"})
    tokenizer.save(folder, max_length=MAX_LENGTH)  # again, because transformers adds how this tokenizer was loaded
    return processor


def save(model: Gemma3ForConditionalGeneration, folder: Path) -> None:
    """Write config, generation config and bfloat16 weights, named as in the published checkpoints.

    transformers 5.8 and later write ``vision_tower.encoder``; vLLM 0.32 and the published files use
    ``vision_tower.vision_model.encoder``.
    """
    _write(folder / "config.json", _without_defaults(model.config.to_dict()) | {"dtype": "bfloat16", DEMO_KEY: True})
    token_id = tokenizer.SPECIAL.index
    generation = {
        "bos_token_id": token_id("<bos>"),
        "eos_token_id": [token_id("<eos>"), token_id("<end_of_turn>")],
        "pad_token_id": token_id("<pad>"),
        "do_sample": True,
        "top_k": 64,
        "top_p": 0.95,
    }
    _write(folder / "generation_config.json", generation)
    weights = {}
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight":
            continue  # tied to the embedding
        prefix = next(prefix for prefix in _PREFIXES if name.startswith(prefix))
        weights[_PREFIXES[prefix] + name.removeprefix(prefix)] = weight.to(torch.bfloat16).contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # safetensors creates it with mode 0600


def replace(source: Path, target: Path) -> None:
    """Replace a folder with a complete one, so that no reader sees a partial folder."""
    old = target.with_name(target.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    source.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _without_defaults(value: Any) -> Any:
    """Remove private, empty and irrelevant entries of a configuration."""
    if isinstance(value, dict):
        omitted = {key for key in value if str(key).startswith("_") or key in _OMITTED}
        entries = ((key, inner) for key, inner in value.items() if inner is not None and key not in omitted)
        return {key: _without_defaults(inner) for key, inner in entries}
    return value


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
