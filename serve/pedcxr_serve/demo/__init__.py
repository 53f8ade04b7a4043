"""The demo model: Gemma 3's architecture with 1.3 M parameters, trained on drawn chest films. No medical use."""

from __future__ import annotations

from pathlib import Path

CHECKPOINT: Path = Path(__file__).parent / "checkpoint"
"""The folder of the packaged checkpoint, with the file layout of the real model."""

DEMO_KEY = "pedcxr_demo"
"""The key in config.json that marks a demo checkpoint, so that reports of a copy are marked as demo reports too."""
