"""The published model's shape without its weights, to size a GPU before one has them: hollow.py FOLDER

Text model, vision tower and image size are those of google/medgemma-4b-it; tokenizer and chat template are the demo's,
the vocabulary filled up with words that mean nothing. The file of weights is a hole, so let vLLM make some up:

    pedcxr-serve start --model FOLDER -- --load-format dummy

What it then writes is nonsense, as long as `max_tokens` allows, and marked as the demo's.
"""

from __future__ import annotations

import json
import shutil
import struct
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from pedcxr_serve.demo import CHECKPOINT
from pedcxr_serve.demo.model import name_of

SIDE, IMAGE_TOKENS, VOCABULARY, LAYERS = 896, 256, 262_208, 34
TEXT = {
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 1024,
    "vocab_size": VOCABULARY,
    "layer_types": ["full_attention" if layer % 6 == 5 else "sliding_attention" for layer in range(LAYERS)],
}
VISION = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": SIDE,
    "patch_size": 14,
}


def main(folder: Path) -> None:
    """Write the folder, which must not be there."""
    folder.mkdir(parents=True)
    config = _read("config.json")
    config["text_config"] |= TEXT
    config["vision_config"] |= VISION
    config["mm_tokens_per_image"] = IMAGE_TOKENS
    _write(folder / "config.json", config)
    for name in ("chat_template.jinja", "generation_config.json", "tokenizer_config.json"):
        shutil.copy(CHECKPOINT / name, folder)
    for name in ("processor_config.json", "preprocessor_config.json"):
        _write(folder / name, _sized(_read(name)))
    words = _read("tokenizer.json")
    known = words["model"]["vocab"]
    known |= {f"▁word{number}": number for number in range(len(known), VOCABULARY)}
    _write(folder / "tokenizer.json", words)
    print(
        f"{folder}: {_weights(folder / 'model.safetensors', Gemma3Config(**config)):,} parameters, none of them there"
    )


def _weights(path: Path, config: Gemma3Config) -> int:
    """A safetensors file whose data is a hole of the right size."""
    with torch.device("meta"):
        model = Gemma3ForConditionalGeneration._from_config(config, dtype=torch.bfloat16)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, weight in model.state_dict().items():
        if name != "lm_head.weight":  # tied to the embedding
            begin, end = end, end + 2 * weight.numel()
            header[name_of(name)] = {"dtype": "BF16", "shape": list(weight.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return end // 2


def _sized(value: Any) -> Any:
    """A processor's settings, for the larger image."""
    if not isinstance(value, dict):
        return value
    new = {"size": {"height": SIDE, "width": SIDE}, "image_seq_length": IMAGE_TOKENS}
    return {key: new.get(key, _sized(inner)) for key, inner in value.items()}


def _read(name: str) -> Any:
    return json.loads((CHECKPOINT / name).read_text())


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
