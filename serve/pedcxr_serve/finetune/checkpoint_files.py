"""The folder of a base checkpoint, and of a model that is written with every other file as in its base."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from pedcxr_serve.checkpoint import inspect
from pedcxr_serve.checkpoint.download import FILES
from pedcxr_serve.errors import ConfigError

_SHARD = "5GB"
_OF_WEIGHTS = ("adapter_config.json", "*.safetensors", "*.safetensors.index.json")


def require_base(folder: Path) -> None:
    """Raise unless the folder is a complete, unquantised checkpoint that vLLM serves.

    Raises:
        ConfigError: It is an adapter, or quantised.
        CheckpointError: It cannot be served.
    """
    if (folder / "adapter_config.json").exists():
        raise ConfigError(
            f"--base {folder}: is a LoRA adapter, not a model. Merge it first (`pedcxr-serve merge`), and give the "
            "merged folder."
        )
    checkpoint = inspect.inspect(folder)
    inspect.require_ready(checkpoint)
    if any(problem.where.endswith("quantization_config") for problem in checkpoint.problems):
        raise ConfigError(f"--base {folder}: has quantised weights, which cannot be trained. Give the original model.")


def save(model: Any, base: Path, folder: Path) -> None:
    """Write the weights of ``model`` in its dtype, and the base's configuration, tokenizer, processor and template.

    ``save_pretrained`` writes neither processor nor chat template, and adds keys to config.json that other versions of
    transformers do not know. The architecture is the base's, so its config.json fits; only the dtype is set.

    Raises:
        CheckpointError: The result cannot be served.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder, max_shard_size=_SHARD)
    for pattern in FILES:
        if pattern not in _OF_WEIGHTS:
            for path in base.glob(pattern):
                shutil.copyfile(path, folder / path.name)
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    name = "torch_dtype" if "torch_dtype" in config and "dtype" not in config else "dtype"
    config[name] = str(model.dtype).removeprefix("torch.")
    tied = model.get_input_embeddings().weight.data_ptr() == model.get_output_embeddings().weight.data_ptr()
    if not tied:
        for part in (config, config.get("text_config", {})):
            part["tie_word_embeddings"] = False
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    inspect.require_ready(inspect.inspect(folder))
