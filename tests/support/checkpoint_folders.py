"""Create model folders with real names, shapes and headers but without weights (sparse files)."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

Config = dict[str, Any]
Tensors = dict[str, tuple[str, list[int]]]

# As Google publishes Gemma 3 4B and MedGemma: values that equal the class default are omitted.
CONFIG_4B: Config = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "boi_token_index": 255999,
    "eoi_token_index": 256000,
    "eos_token_id": [1, 106],
    "image_token_index": 262144,
    "initializer_range": 0.02,
    "mm_tokens_per_image": 256,
    "model_type": "gemma3",
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "torch_dtype": "bfloat16",
    "transformers_version": "4.50.0.dev0",
    "vision_config": {
        "hidden_size": 1152,
        "image_size": 896,
        "intermediate_size": 4304,
        "model_type": "siglip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "patch_size": 14,
        "vision_use_head": False,
    },
}
# As transformers 5 saves a small model: all values are present, rope parameters per layer type.
CONFIG_DEMO: Config = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "boi_token_index": 5,
    "eoi_token_index": 6,
    "image_token_index": 7,
    "mm_tokens_per_image": 64,
    "model_type": "gemma3",
    "dtype": "float32",
    "tie_word_embeddings": True,
    "text_config": {
        "head_dim": 32,
        "hidden_size": 128,
        "intermediate_size": 384,
        "layer_types": ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"],
        "num_attention_heads": 4,
        "num_hidden_layers": 4,
        "num_key_value_heads": 2,
        "rope_parameters": {"full_attention": {"rope_theta": 1e6, "rope_type": "default"}},
        "sliding_window": 512,
        "vocab_size": 640,
    },
    "vision_config": {
        "hidden_size": 96,
        "image_size": 224,
        "intermediate_size": 384,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "patch_size": 14,
    },
}
BITS = {"BF16": 16, "F32": 32}


def tensors(config: Config, dtype: str, *, infix: str = "vision_model.", prefix: str = "") -> Tensors:
    """Return dtype and shape of every weight of the architecture, by its name in transformers."""
    text = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 262208}
    text |= config["text_config"]
    vision, shapes = config["vision_config"], {}
    hidden, inner = text["hidden_size"], text["intermediate_size"]
    q, kv = (text[key] * text["head_dim"] for key in ("num_attention_heads", "num_key_value_heads"))
    language = f"{prefix}language_model." if prefix else "language_model.model."
    shapes[f"{language}embed_tokens.weight"] = [text["vocab_size"], hidden]
    shapes[f"{language}norm.weight"] = [hidden]
    for n in range(text["num_hidden_layers"]):
        layer = f"{language}layers.{n}."
        for name in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
            shapes[f"{layer}{name}_layernorm.weight"] = [hidden]
        shapes |= {f"{layer}mlp.{name}_proj.weight": [inner, hidden] for name in ("gate", "up")}
        shapes[f"{layer}mlp.down_proj.weight"] = [hidden, inner]
        shapes |= {f"{layer}self_attn.{name}_norm.weight": [text["head_dim"]] for name in ("q", "k")}
        shapes[f"{layer}self_attn.q_proj.weight"] = [q, hidden]
        shapes |= {f"{layer}self_attn.{name}_proj.weight": [kv, hidden] for name in ("k", "v")}
        shapes[f"{layer}self_attn.o_proj.weight"] = [hidden, q]
    tower, width = f"{prefix}vision_tower.{infix}", vision["hidden_size"]
    shapes[f"{tower}embeddings.patch_embedding.weight"] = [width, 3, vision["patch_size"], vision["patch_size"]]
    shapes[f"{tower}embeddings.patch_embedding.bias"] = [width]
    positions = (vision["image_size"] // vision["patch_size"]) ** 2
    shapes[f"{tower}embeddings.position_embedding.weight"] = [positions, width]
    for n in range(vision["num_hidden_layers"]):
        layer = f"{tower}encoder.layers.{n}."
        for end, out in (("weight", [width, width]), ("bias", [width])):
            shapes |= {f"{layer}self_attn.{name}_proj.{end}": out for name in ("q", "k", "v", "out")}
            shapes |= {f"{layer}layer_norm{i}.{end}": [width] for i in (1, 2)}
        shapes[f"{layer}mlp.fc1.weight"] = [vision["intermediate_size"], width]
        shapes[f"{layer}mlp.fc2.weight"] = [width, vision["intermediate_size"]]
        shapes[f"{layer}mlp.fc1.bias"], shapes[f"{layer}mlp.fc2.bias"] = [vision["intermediate_size"]], [width]
    shapes |= {f"{tower}post_layernorm.{end}": [width] for end in ("weight", "bias")}
    shapes[f"{prefix}multi_modal_projector.mm_input_projection_weight"] = [width, hidden]
    shapes[f"{prefix}multi_modal_projector.mm_soft_emb_norm.weight"] = [width]
    return {name: (dtype, shape) for name, shape in shapes.items()}


def write_shard(path: Path, content: Tensors) -> None:
    """Write a safetensors file with a complete header and sparse data."""
    header, end = {}, 0
    for name, (dtype, shape) in content.items():
        begin, end = end, end + math.prod(shape) * BITS[dtype] // 8
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    raw = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + end)


def write_weights(folder: Path, content: Tensors, shards: int) -> None:
    if shards == 1:
        write_shard(folder / "model.safetensors", content)
        return
    weight_map = {}
    for n in range(shards):
        name = f"model-{n + 1:05}-of-{shards:05}.safetensors"
        part = dict(list(content.items())[n::shards])
        write_shard(folder / name, part)
        weight_map |= dict.fromkeys(part, name)
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))


def tokenizer(config: Config) -> dict[str, Any]:
    ids = {key: config[f"{key}_token_index"] for key in ("boi", "eoi", "image")}
    added = {ids["boi"]: "<start_of_image>", ids["eoi"]: "<end_of_image>", ids["image"]: "<image_soft_token>"}
    return {
        "version": "1.0",
        "added_tokens": [{"id": n, "content": text, "special": True} for n, text in added.items()],
        "model": {"type": "BPE", "vocab": {"\n" * n: 100 + n for n in range(1, 6)} | {"é": 200}, "merges": []},
    }


def write_processor_files(folder: Path, config: Config) -> None:
    size = config["vision_config"]["image_size"]
    write_json(folder / "config.json", config)
    write_json(folder / "tokenizer.json", tokenizer(config))
    write_json(folder / "generation_config.json", {"eos_token_id": [1, 106], "top_k": 64})
    write_json(folder / "preprocessor_config.json", {"size": {"height": size, "width": size}, "do_pan_and_scan": None})
    write_json(folder / "processor_config.json", {"image_seq_length": config["mm_tokens_per_image"]})
    (folder / "chat_template.jinja").write_text(
        "{{ bos_token }}{% if item.type == 'image' %}<start_of_image>{% endif %}"
    )


def medgemma_4b(folder: Path, *, shards: int = 2) -> Path:
    """Create the folder of the 4B model: 8.6 GB in length, a few hundred kB on disk."""
    folder.mkdir(parents=True, exist_ok=True)
    write_processor_files(folder, CONFIG_4B)
    write_weights(folder, tensors(CONFIG_4B, "BF16"), shards)
    return folder


def demo(folder: Path, *, infix: str = "vision_model.", prefix: str = "") -> Path:
    """Create a folder like that of the packaged demo."""
    folder.mkdir(parents=True, exist_ok=True)
    write_processor_files(folder, CONFIG_DEMO)
    write_weights(folder, tensors(CONFIG_DEMO, "F32", infix=infix, prefix=prefix), 1)
    return folder
