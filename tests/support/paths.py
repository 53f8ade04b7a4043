"""Paths that tests share: the checkout, and the real films beside it."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
REAL_FILMS = ROOT.parent / "shared/data/cxr"
