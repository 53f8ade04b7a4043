"""The demo model: Gemma 3's architecture at 1.3 M parameters, trained on drawn chests. No medical use."""

from __future__ import annotations

from pathlib import Path

__all__ = ["CHECKPOINT", "DEMO_KEY", "MODEL_NAME"]

CHECKPOINT: Path = Path(__file__).parent / "checkpoint"
"""The folder of the packaged checkpoint, laid out as the real model's."""

MODEL_NAME = "pedcxr-demo"

DEMO_KEY = "pedcxr_demo"
"""In config.json of the demo checkpoint, true: what it writes is marked as a demo, wherever it was copied to."""
