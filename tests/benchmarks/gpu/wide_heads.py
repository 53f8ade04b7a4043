"""Create the demo checkpoint with heads of 256, as the published model has them: the same model, padded with zeros.

On a Hopper card, vLLM 0.32 takes the attention of the published model for heads of 256 only, so that the demo's heads
of 32 do not test it. Queries and keys keep their scale (`query_pre_attn_scalar`), their rotation (frequency i of 16
becomes frequency 8 i of 128) and their norm (the mean over eight times as many numbers is an eighth).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from pedcxr_serve.demo import CHECKPOINT

if TYPE_CHECKING:
    from torch import Tensor

_WIDE = 256


def create(folder: Path) -> None:
    """Write the checkpoint, in float32, to a folder that does not exist."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(CHECKPOINT, folder)
    config = json.loads((folder / "config.json").read_text())
    narrow = config["text_config"]["head_dim"]
    config["text_config"]["head_dim"], config["dtype"] = _WIDE, "float32"
    (folder / "config.json").write_text(json.dumps(config))
    half, step = narrow // 2, _WIDE // narrow
    place = torch.tensor([at * step for at in range(half)] + [_WIDE // 2 + at * step for at in range(half)])

    def widen(weights: Tensor, dim: int) -> Tensor:
        """Spread the heads along a dimension."""
        heads = weights.movedim(dim, 0).unflatten(0, (-1, narrow))  # type: ignore[no-untyped-call]
        out = torch.zeros(heads.shape[0], _WIDE, *heads.shape[2:], dtype=weights.dtype)
        out[:, place] = heads
        return out.flatten(0, 1).movedim(0, dim).contiguous()

    tensors = {name: weights.float() for name, weights in load_file(folder / "model.safetensors").items()}
    for name, weights in tensors.items():
        if "vision_tower" in name:
            continue
        if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
            tensors[name] = widen(weights, 0)
        elif name.endswith("o_proj.weight"):
            tensors[name] = widen(weights, 1)
        elif name.endswith(("q_norm.weight", "k_norm.weight")):
            tensors[name] = widen((1 + weights) / step**0.5, 0) - 1  # Gemma's norm multiplies by 1 + weight
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
