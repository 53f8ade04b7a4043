"""The tensors of a Gemma 3 vision-language model that its config.json implies, by name and shape.

Source: the modules of transformers 5.19 (models/gemma3/modeling_gemma3.py, models/siglip/modeling_siglip.py), whose
names vLLM 0.32 loads (models/gemma3_mm.py, models/siglip.py).
"""

from __future__ import annotations

import re

from pedcxr_serve.checkpoint.architecture import Shape

_Dimensions = tuple[int, ...]

# Longer prefixes first.
_PREFIXES = (
    ("model.language_model.", "language_model."),
    ("language_model.model.", "language_model."),
    ("language_model.lm_head.", "lm_head."),
    ("model.vision_tower.vision_model.", "vision_tower."),
    ("vision_tower.vision_model.", "vision_tower."),
    ("model.vision_tower.", "vision_tower."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
)
# vLLM skips these: the pooling head, which Gemma 3 does not use, and buffers of old transformers.
_SKIPPED = re.compile(r"vision_tower\.head\..*|.*\.(?:inv_freq|position_ids)")


def canonical(name: str) -> str:
    """Return a tensor's name in one spelling, whichever version of transformers saved it."""
    for prefix, replacement in _PREFIXES:
        if name.startswith(prefix):
            return replacement + name[len(prefix) :]
    return name


def is_skipped(name: str) -> bool:
    """Return whether vLLM ignores a tensor that the model does not have; ``name`` is canonical."""
    return bool(_SKIPPED.fullmatch(name))


def expected(shape: Shape) -> dict[str, _Dimensions]:
    """Return the canonical name and the dimensions of every tensor, ``lm_head.weight`` only if it is not tied."""
    hidden, vision = shape.hidden, shape.vision
    tensors: dict[str, _Dimensions] = {
        "language_model.embed_tokens.weight": (shape.vocab, hidden),
        "language_model.norm.weight": (hidden,),
        "multi_modal_projector.mm_input_projection_weight": (vision.hidden, hidden),
        "multi_modal_projector.mm_soft_emb_norm.weight": (vision.hidden,),
        "vision_tower.embeddings.patch_embedding.weight": (vision.hidden, 3, vision.patch_size, vision.patch_size),
        "vision_tower.embeddings.patch_embedding.bias": (vision.hidden,),
        "vision_tower.embeddings.position_embedding.weight": (vision.patches, vision.hidden),
        "vision_tower.post_layernorm.weight": (vision.hidden,),
        "vision_tower.post_layernorm.bias": (vision.hidden,),
    }
    if not shape.tied:
        tensors["lm_head.weight"] = (shape.vocab, hidden)
    for layer in range(shape.layers):
        tensors |= {f"language_model.layers.{layer}.{name}": size for name, size in _text_layer(shape).items()}
    for layer in range(vision.layers):
        tensors |= {f"vision_tower.encoder.layers.{layer}.{name}": size for name, size in _vision_layer(shape).items()}
    return tensors


def _text_layer(shape: Shape) -> dict[str, _Dimensions]:
    hidden, inner, head = shape.hidden, shape.intermediate, shape.head_dim
    norms = ("input", "post_attention", "pre_feedforward", "post_feedforward")
    return {
        **{f"{norm}_layernorm.weight": (hidden,) for norm in norms},
        "self_attn.q_proj.weight": (shape.heads * head, hidden),
        "self_attn.k_proj.weight": (shape.kv_heads * head, hidden),
        "self_attn.v_proj.weight": (shape.kv_heads * head, hidden),
        "self_attn.o_proj.weight": (hidden, shape.heads * head),
        "self_attn.q_norm.weight": (head,),
        "self_attn.k_norm.weight": (head,),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
    }


def _vision_layer(shape: Shape) -> dict[str, _Dimensions]:
    hidden, inner = shape.vision.hidden, shape.vision.intermediate
    matrices = {f"self_attn.{name}_proj": (hidden, hidden) for name in ("q", "k", "v", "out")}
    matrices |= {"mlp.fc1": (inner, hidden), "mlp.fc2": (hidden, inner)}
    norms = {f"layer_norm{number}.{end}": (hidden,) for number in (1, 2) for end in ("weight", "bias")}
    return {
        **norms,
        **{f"{name}.weight": size for name, size in matrices.items()},
        **{f"{name}.bias": size[:1] for name, size in matrices.items()},
    }
