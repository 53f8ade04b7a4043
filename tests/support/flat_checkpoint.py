"""The demo checkpoint with the vision tower's weights named as transformers 5.8 and later name them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from pedcxr_serve.demo import CHECKPOINT


def save_flat(folder: Path) -> Path:
    """Copy the checkpoint to ``folder`` with ``vision_tower.*`` in place of ``vision_tower.vision_model.*``."""
    shutil.copytree(CHECKPOINT, folder)
    weights = folder / "model.safetensors"
    raw = weights.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    flat = {name.replace("vision_tower.vision_model.", "vision_tower."): value for name, value in header.items()}
    assert flat.keys() != header.keys()
    text = json.dumps(flat).encode()
    weights.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + size :])
    return folder
