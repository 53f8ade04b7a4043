"""Make LoRA adapters as PEFT saves them, with random weights and without PEFT."""

from __future__ import annotations

import functools
import json
import random
import shutil
import struct
from array import array
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pedcxr_serve.checkpoint import revision, tensor_names
from pedcxr_serve.checkpoint.adapter import CONFIG, WEIGHTS
from pedcxr_serve.checkpoint.architecture import Shape
from pedcxr_serve.checkpoint.inspect import inspect
from pedcxr_serve.demo import CHECKPOINT

Weights = Mapping[str, tuple[tuple[int, int], list[float]]]
"""Shape and values of each tensor by its name."""


@functools.cache
def demo_shape() -> Shape:
    shape = inspect(CHECKPOINT).shape
    assert shape is not None
    return shape


def make(
    folder: Path,
    *,
    seed: int = 0,
    rank: int = 8,
    scale: float = 0.3,
    vision: bool = False,
    rename: Callable[[str], str] = lambda name: name,
    **config: Any,
) -> Path:
    """Write an adapter of all text linears of the demo checkpoint, and return its folder.

    Args:
        scale: standard deviation of the values of lora_B; 0 is an adapter without training.
        vision: also adapt the vision tower.
        rename: applied to the name of every tensor.
        config: entries of adapter_config.json; None removes one.
    """
    weights = {rename(name): tensor for name, tensor in _weights(seed, rank, scale, vision).items()}
    values = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "pedcxr-demo",
        "revision": revision.of(CHECKPOINT),
        "r": rank,
        "lora_alpha": 2 * rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        "modules_to_save": None,
        "use_dora": False,
        "init_lora_weights": True,
        **config,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
    write(folder / WEIGHTS, weights)
    return folder


def write(path: Path, weights: Weights) -> None:
    """Write a safetensors file of float32 values."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = bytearray()
    for name, (shape, values) in weights.items():
        begin = len(data)
        data += array("f", values).tobytes()
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, len(data)]}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def without_language_model(name: str) -> str:
    """Return the name as if the text model had been trained alone: vLLM 0.32 ignores such an adapter silently."""
    return name.replace("model.language_model.", "model.")


def _weights(seed: int, rank: int, scale: float, vision: bool) -> Weights:
    numbers = random.Random(seed)
    parts = ("language_model.layers.", "vision_tower.encoder.layers.") if vision else ("language_model.layers.",)
    weights = {}
    for name, size in tensor_names.expected(demo_shape()).items():
        if len(size) == 2 and name.startswith(parts):
            output, width = size
            module = f"base_model.model.model.{name.removesuffix('.weight')}"
            weights[f"{module}.lora_A.weight"] = (rank, width), _uniform(numbers, rank * width, width**-0.5)
            weights[f"{module}.lora_B.weight"] = (output, rank), _uniform(numbers, output * rank, scale * rank**-0.5)
    return weights


def _uniform(numbers: random.Random, count: int, deviation: float) -> list[float]:
    width = deviation * 12**0.5
    return [width * (numbers.random() - 0.5) + 0.0 for _ in range(count)]  # + 0.0: no negative zero


def merged(folder: Path, adapter: Path) -> Path:
    """Write a copy of the demo checkpoint in float32 with an adapter of its text model merged into it."""
    from safetensors.torch import load_file, save_file

    config = json.loads((adapter / CONFIG).read_text())
    delta = load_file(adapter / WEIGHTS)
    shutil.copytree(CHECKPOINT, folder)
    weights = {name: tensor.float() for name, tensor in load_file(CHECKPOINT / "model.safetensors").items()}
    for name in weights:
        module = f"base_model.model.model.{tensor_names.canonical(name).removesuffix('.weight')}"
        if f"{module}.lora_A.weight" in delta:
            change = delta[f"{module}.lora_B.weight"] @ delta[f"{module}.lora_A.weight"]
            weights[name] = weights[name] + config["lora_alpha"] / config["r"] * change
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
