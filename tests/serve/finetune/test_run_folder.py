"""The output folder of a training: one training at a time, and only complete states."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pedcxr_serve.errors import ConfigError
from pedcxr_serve.finetune import run_folder


def test_two_trainings_cannot_use_one_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with run_folder.opened(out), pytest.raises(ConfigError, match="another training is using this folder"):
        run_folder.opened(out).__enter__()
    with run_folder.opened(out):
        pass


def test_a_finished_training_and_other_files_are_kept(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds other files"):
        run_folder.opened(tmp_path).__enter__()
    (tmp_path / run_folder.RECORD).write_text("{}")
    with pytest.raises(ConfigError, match="holds a finished training"):
        run_folder.opened(tmp_path).__enter__()


def test_a_training_continues_only_with_the_same_values(tmp_path: Path) -> None:
    run = {"recipe": {"seed": 0, "modules": ("text",)}, "data": {"sha256": "a"}}
    run_folder.begin(tmp_path, run)
    run_folder.begin(tmp_path, run)
    with pytest.raises(ConfigError, match=r"data\.sha256, recipe\.seed"):
        run_folder.begin(tmp_path, {"recipe": {"seed": 1, "modules": ("text",)}, "data": {"sha256": "b"}})


def test_the_newest_complete_state_is_used(tmp_path: Path) -> None:
    assert run_folder.last_state(tmp_path) is None
    for step in (9, 10, 100):
        state = tmp_path / f"states/checkpoint-{step}"
        state.mkdir(parents=True)
        if step != 100:
            (state / run_folder.COMPLETE).touch()
    assert run_folder.last_state(tmp_path) == tmp_path / "states/checkpoint-10"
    assert not (tmp_path / "states/checkpoint-100").exists()


def test_metrics_after_the_state_are_removed(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in (1, 2, 3)) + '{"step": 4')
    run_folder.keep_metrics_until(path, 2)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]


def test_publish_moves_the_files_and_removes_states(tmp_path: Path) -> None:
    for name in ("films", "states", "new"):
        (tmp_path / name).mkdir()
    (tmp_path / "new/adapter_config.json").write_text("{}")
    run_folder.publish(tmp_path, tmp_path / "new", {"steps": 3})
    assert {path.name for path in tmp_path.iterdir()} == {"adapter_config.json", run_folder.RECORD}
