"""The published model's shape without its weights, to size a GPU before one has them.

    python -m tests.benchmarks.weightless_checkpoint FOLDER

The configuration is the published one; tokenizer and chat template are the demo's, the vocabulary filled up with words
that mean nothing. The file of weights is a hole, so let vLLM make some up:

    pedcxr-serve start --model FOLDER -- --load-format dummy

What it then writes is nonsense, as long as `max_tokens` allows, and marked as the demo's.
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


def main(folder: Path) -> None:
    """Write the folder, which must not be there."""
    folder.mkdir(parents=True)
    demo = _read("config.json")
    ids = {key: demo[key] for key in ("boi_token_index", "eoi_token_index", "image_token_index", "eos_token_id")}
    folders.write_json(folder / "config.json", folders.CONFIG_4B | ids | {DEMO_KEY: True})
    folders.write_weights(folder, folders.tensors(folders.CONFIG_4B, "BF16"), 1)
    for name in ("chat_template.jinja", "generation_config.json", "tokenizer_config.json"):
        shutil.copy(CHECKPOINT / name, folder)
    for name in ("processor_config.json", "preprocessor_config.json"):
        folders.write_json(folder / name, _sized(_read(name)))
    words = _read("tokenizer.json")
    known = words["model"]["vocab"]
    known |= {f"▁word{number}": number for number in range(len(known), VOCABULARY)}
    folders.write_json(folder / "tokenizer.json", words)


def _sized(value: Any) -> Any:
    """A processor's settings, for the larger image."""
    if not isinstance(value, dict):
        return value
    new = {"size": {"height": SIDE, "width": SIDE}, "image_seq_length": IMAGE_TOKENS}
    return {key: new.get(key, _sized(inner)) for key, inner in value.items()}


def _read(name: str) -> Any:
    return json.loads((CHECKPOINT / name).read_text())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
