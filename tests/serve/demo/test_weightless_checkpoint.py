"""The folder that stands in for weights one does not have: of the published shape, and next to nothing on disk."""

from __future__ import annotations

from pathlib import Path

from pedcxr_serve.checkpoint import inspect
from pedcxr_serve.planner import roofline
from tests.benchmarks import weightless_checkpoint


def test_it_is_as_large_as_the_published_model_and_can_be_served(tmp_path: Path) -> None:
    folder = tmp_path / "hollow"
    weightless_checkpoint.main(folder)
    found = inspect.inspect(folder)
    assert found.ready and found.demo and not found.problems
    assert found.parameters == 4_300_079_472
    assert found.shape is not None and found.shape.image_tokens == 256
    assert roofline.kv_bytes_per_token(found.shape, 2) == 139_264
    assert sum(512 * file.stat().st_blocks for file in folder.iterdir()) < 20e6
