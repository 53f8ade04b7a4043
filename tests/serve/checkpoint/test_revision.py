"""The revision of a checkpoint: equal for equal weights, different for any other."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pedcxr_serve.checkpoint import revision
from tests.support import checkpoint_folders


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return checkpoint_folders.medgemma_4b(tmp_path / "model")


def test_copy_has_the_same_revision(folder: Path, tmp_path: Path) -> None:
    demo = checkpoint_folders.demo(tmp_path / "a")
    shutil.copytree(demo, tmp_path / "b")
    assert revision.of(demo) == revision.of(tmp_path / "b") != revision.of(folder)
    assert revision.of(demo).startswith("sha256:") and len(revision.of(demo)) == 7 + 16


def test_fine_tune_with_equal_header_has_another_revision(tmp_path: Path) -> None:
    """Names, lengths and header are equal; a tenth of the weights differs."""
    folder = checkpoint_folders.demo(tmp_path / "demo")
    before = revision.of(folder)
    shard = folder / "model.safetensors"
    size = shard.stat().st_size
    assert size > 1 << 20  # a smaller file would be hashed completely
    with shard.open("r+b") as file:
        file.seek(size // 2)
        file.write(b"\1" * (size // 10))
    assert shard.stat().st_size == size
    assert revision.of(folder) != before


@pytest.mark.parametrize("name", ["config.json", "chat_template.jinja", "generation_config.json"])
def test_changed_configuration_changes_the_revision(folder: Path, name: str) -> None:
    before = revision.of(folder)
    text = (folder / name).read_text()
    (folder / name).write_text(text[:-1] + " ")
    assert revision.of(folder) != before


def test_files_that_are_not_served_do_not_change_the_revision(folder: Path) -> None:
    before = revision.of(folder)
    (folder / "optimizer.pt").write_bytes(b"states")
    (folder / "README.md").write_text("edited")
    assert revision.of(folder) == before


def test_hub_snapshot_has_its_commit_as_revision(tmp_path: Path) -> None:
    commit = "0f3a9c1d22b4" + 28 * "0"
    folder = checkpoint_folders.demo(tmp_path / "models--owner--name/snapshots" / commit)
    assert revision.of(folder) == commit
