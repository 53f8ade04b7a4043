"""A checkpoint with the dimensions of the published model and no weights."""

from __future__ import annotations

from pathlib import Path

from pedcxr_serve.checkpoint import inspect
from pedcxr_serve.planner import roofline
from tests.benchmarks import weightless_checkpoint


def test_weightless_checkpoint_has_the_published_size_and_passes_inspection(tmp_path: Path) -> None:
    folder = tmp_path / "weightless"
    weightless_checkpoint.main(folder)
    checkpoint = inspect.inspect(folder)
    assert checkpoint.ready and checkpoint.demo and not checkpoint.problems
    assert checkpoint.parameters == 4_300_079_472
    assert checkpoint.shape is not None and checkpoint.shape.image_tokens == 256
    assert roofline.kv_bytes_per_token(checkpoint.shape, 2) == 139_264
    assert sum(512 * file.stat().st_blocks for file in folder.iterdir()) < 20e6
