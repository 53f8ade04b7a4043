"""Create a checkpoint with the dimensions of the published model and no weights, to size a GPU without the model.

    python -m tests.benchmarks.weightless_checkpoint FOLDER

The configuration is that of the published model. Tokenizer and chat template are those of the demo; the vocabulary is
padded with placeholder words. The weights file is sparse, so vLLM must generate random weights:

    pedcxr-serve start --model FOLDER -- --load-format dummy

The reports are random text of `max_tokens` tokens, and carry the demo notice.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from pedcxr_serve.demo import CHECKPOINT, DEMO_KEY
from tests.support import checkpoint_folders as folders

VOCABULARY = 262_208
SIDE, IMAGE_TOKENS = folders.CONFIG_4B["vision_config"]["image_size"], folders.CONFIG_4B["mm_tokens_per_image"]
SHALLOW: folders.Config = folders.CONFIG_4B | {
    "text_config": folders.CONFIG_4B["text_config"]
    | {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 1, "head_dim": 64},
    "vision_config": folders.CONFIG_4B["vision_config"]
    | {"hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 1, "num_attention_heads": 3},
}
"""The published model's images and vocabulary, with one narrow layer in each part: an engine that costs little."""


def main(folder: Path, config: folders.Config = folders.CONFIG_4B) -> None:
    """Create the folder, which must not exist."""
    folder.mkdir(parents=True)
    demo = _read("config.json")
    ids = {key: demo[key] for key in ("boi_token_index", "eoi_token_index", "image_token_index", "eos_token_id")}
    folders.write_json(folder / "config.json", config | ids | {DEMO_KEY: True})
    folders.write_weights(folder, folders.tensors(config, "BF16"), 1)
    for name in ("chat_template.jinja", "generation_config.json", "tokenizer_config.json"):
        shutil.copy(CHECKPOINT / name, folder)
    for name in ("processor_config.json", "preprocessor_config.json"):
        folders.write_json(folder / name, _with_image_size(_read(name)))
    words = _read("tokenizer.json")
    vocabulary = words["model"]["vocab"]
    vocabulary |= {f"▁word{number}": number for number in range(len(vocabulary), VOCABULARY)}
    folders.write_json(folder / "tokenizer.json", words)


def _with_image_size(value: Any) -> Any:
    """Return a processor's settings with the image size of the published model."""
    if not isinstance(value, dict):
        return value
    values = {"size": {"height": SIDE, "width": SIDE}, "image_seq_length": IMAGE_TOKENS}
    return {key: values.get(key, _with_image_size(inner)) for key, inner in value.items()}


def _read(name: str) -> Any:
    return json.loads((CHECKPOINT / name).read_text())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
