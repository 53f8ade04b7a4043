"""Cases that need trl and peft; `test_finetune.py` runs this file with the Python of .venv/train.

Every training has the demo checkpoint as its base and a few steps on phantoms.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, Gemma3ForConditionalGeneration

from demo_training import wording
from pedcxr_serve.checkpoint import inspect
from pedcxr_serve.cli import main
from pedcxr_serve.demo import CHECKPOINT
from pedcxr_serve.errors import TrainingError
from pedcxr_serve.finetune import result, trainer
from pedcxr_serve.finetune.command import INTERRUPTED
from tests.benchmarks.transformers_baseline import Question, inputs_of

FILMS = 24
STEPS = 6
ADAPTER = "adapter_model.safetensors"


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wording.write_films(tmp_path_factory.mktemp("data"), range(FILMS))


def finetune(data: Path, out: Path, *options: str) -> int:
    few = ("--steps", str(STEPS), "--batch", "4", "--accumulate", "1", "--learning-rate", "3e-3", "--save-every", "2")
    return main(["finetune", str(data), "--base", "demo", "--out", str(out), *few, *options])


@contextmanager
def small_files() -> Iterator[None]:
    """Let writes fail beyond 100 kB, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture(scope="session")
def adapter(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the result of an uninterrupted training."""
    out = tmp_path_factory.mktemp("training") / "adapter"
    assert finetune(data, out) == 0
    return out


def steps_in(out: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_the_result_is_an_adapter_with_record_and_card(adapter: Path) -> None:
    assert {path.name for path in adapter.iterdir()} == {
        "README.md", "adapter_config.json", ADAPTER, "metrics.jsonl", "training.json",
    }  # fmt: skip
    record = json.loads((adapter / "training.json").read_text())
    assert record["base"] == {
        "model": "demo",
        "revision": json.loads((adapter / "adapter_config.json").read_text())["revision"],
    }
    assert (record["data"]["train"], record["data"]["validation"], record["result"]["steps"]) == (22, 2, STEPS)
    assert set(record["result"]["losses"]) == {"loss", "validation_loss"}
    card = (adapter / "README.md").read_text()
    for text in (record["base"]["revision"], record["data"]["sha256"], "Not for diagnosis", "| trl |", "| seed | 0 |"):
        assert text in card
    assert "| steps |" in card
    assert "| epochs |" not in card
    losses = [json.loads(line).get("loss") for line in (adapter / "metrics.jsonl").read_text().splitlines()]
    assert losses[0] > losses[STEPS - 1]


def test_an_interrupted_training_continues_to_the_same_weights(
    data: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C arrives in step 3, between two states."""
    on_log = trainer._Progress.on_log

    def press(self: Any, args: Any, state: Any, control: Any, logs: Any = None, **more: Any) -> None:
        on_log(self, args, state, control, logs, **more)
        if state.global_step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(trainer._Progress, "on_log", press)
    out = tmp_path / "out"
    assert finetune(data, out) == INTERRUPTED
    assert not (out / ADAPTER).exists()
    assert max(steps_in(out)) < STEPS
    monkeypatch.setattr(trainer._Progress, "on_log", on_log)
    assert finetune(data, out, "--seed", "1") == 2  # another training
    assert finetune(data, out) == 0
    assert (out / ADAPTER).read_bytes() == (adapter / ADAPTER).read_bytes()
    assert steps_in(out) == steps_in(adapter)


def test_the_same_seed_gives_the_same_weights(data: Path, adapter: Path, tmp_path: Path) -> None:
    """On a CPU also without the option; with it, PyTorch refuses a kernel that is not deterministic."""
    try:
        assert finetune(data, tmp_path / "out", "--deterministic") == 0
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert (tmp_path / "out" / ADAPTER).read_bytes() == (adapter / ADAPTER).read_bytes()


@pytest.mark.parametrize("option", [("--gradient-checkpointing",), ("--precision", "bf16")])
def test_settings_that_need_less_memory_give_the_same_losses(
    data: Path, adapter: Path, tmp_path: Path, option: tuple[str, ...]
) -> None:
    assert finetune(data, tmp_path / "out", *option) == 0
    losses, plain = (json.loads((out / "training.json").read_text()) for out in (tmp_path / "out", adapter))
    assert losses["result"]["losses"] == pytest.approx(plain["result"]["losses"], rel=0.01)


def test_another_seed_gives_other_weights(data: Path, adapter: Path, tmp_path: Path) -> None:
    assert finetune(data, tmp_path / "out", "--seed", "1") == 0
    assert (tmp_path / "out" / ADAPTER).read_bytes() != (adapter / ADAPTER).read_bytes()


def test_a_full_disk_leaves_the_last_state(
    data: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A limit on the size of files stops the second state as a full disk does: in the middle of a write."""
    save = trainer._Trainer._save_checkpoint

    def limited(self: Any, model: Any, trial: Any) -> None:
        with small_files() if self.state.global_step == 4 else nullcontext():
            save(self, model, trial)

    monkeypatch.setattr(trainer._Trainer, "_save_checkpoint", limited)
    out = tmp_path / "out"
    assert finetune(data, out) == 4
    message = capsys.readouterr().err
    assert "saving failed" in message
    assert "the state after step 2 is kept. Free some disk space and start the same command again." in message
    assert [path.name for path in (out / "states").glob("checkpoint-*")] == ["checkpoint-2"]
    monkeypatch.setattr(trainer._Trainer, "_save_checkpoint", save)
    assert finetune(data, out) == 0
    assert (out / ADAPTER).read_bytes() == (adapter / ADAPTER).read_bytes()


def test_out_of_memory_names_the_settings(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trainer._Trainer, "training_step", lambda *_, **__: torch.empty(1 << 50))
    assert finetune(data, tmp_path / "out") == 4
    message = capsys.readouterr().err
    assert "out of memory. Use --batch 2 --accumulate 2, or --gradient-checkpointing" in message


def test_a_loss_that_is_not_finite_stops_the_training(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step = trainer._Trainer.training_step
    monkeypatch.setattr(trainer._Trainer, "training_step", lambda *args, **more: step(*args, **more) * float("nan"))
    assert finetune(data, tmp_path / "out") == 4
    assert "loss is not finite at step 1" in capsys.readouterr().err


@pytest.mark.parametrize("part", ["token_type_ids", "labels", "pixel_values"])
def test_a_batch_that_differs_from_serving_stops_the_training(
    data: Path, tmp_path: Path, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a version of trl that forgets the image mask, the loss mask, or prepares films in another way."""
    check = trainer._check_first_batch

    def altered(sft: Any, example: Any, films: Path) -> None:
        collate = sft.data_collator

        def wrong(rows: Any) -> Any:
            batch = collate(rows)
            batch[part] = torch.zeros_like(batch[part])
            return batch

        sft.data_collator = wrong
        with pytest.raises(TrainingError, match="other input than a server"):
            check(sft, example, films)
        raise TrainingError("checked")

    monkeypatch.setattr(trainer, "_check_first_batch", altered)
    assert finetune(data, tmp_path / "out") == 4


def tokens_of(model: Any, processor: Any, studies: list[Question]) -> list[list[int]]:
    """Return the greedy tokens of each film."""
    found = []
    for study in studies:
        inputs = inputs_of(processor, study)
        with torch.inference_mode():
            out = model.generate(**inputs, max_new_tokens=60, do_sample=False, top_k=None, top_p=None)
        found.append(out[0, inputs["input_ids"].shape[1] :].tolist())
    return found


def compare_merged(adapter: Path, merged: Path, studies: list[Question]) -> None:
    """Compare the merged model with the adapter on its base, both in float32, token for token."""
    processor = AutoProcessor.from_pretrained(merged)
    base = Gemma3ForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32)
    reference = tokens_of(PeftModel.from_pretrained(base, adapter).eval(), processor, studies)
    model = Gemma3ForConditionalGeneration.from_pretrained(merged, dtype=torch.float32).eval()
    assert tokens_of(model, processor, studies) == reference
    base = Gemma3ForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32)
    assert reference != tokens_of(base, processor, studies)


@pytest.fixture(scope="session")
def studies(tmp_path_factory: pytest.TempPathFactory) -> list[Question]:
    folder = tmp_path_factory.mktemp("unseen")
    wording.write_films(folder, range(wording.UNSEEN, wording.UNSEEN + 4))
    return [
        Question(str(folder / f"{seed}.png"), wording.prompt(seed))
        for seed in range(wording.UNSEEN, wording.UNSEEN + 4)
    ]


@pytest.mark.parametrize("recipe", ["text", "card"])
def test_a_merged_adapter_is_served_and_writes_the_same_reports(
    data: Path, tmp_path: Path, studies: list[Question], recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter, merged = tmp_path / "adapter", tmp_path / "merged"
    assert finetune(data, adapter, "--recipe", recipe, "--learning-rate", "1e-2", "--schedule", "constant") == 0
    assert main(["merge", str(adapter), "--out", str(merged), "--dtype", "float32"]) == 0
    assert "can be served" in capsys.readouterr().out
    checkpoint = inspect.inspect(merged)
    assert checkpoint.ready
    assert not [problem for problem in checkpoint.problems if "lm_head" in problem.what]
    assert checkpoint.shape is not None
    assert checkpoint.shape.tied
    compare_merged(adapter, merged, studies)


def test_merging_keeps_names_types_and_files_of_the_base(adapter: Path, tmp_path: Path) -> None:
    merged = tmp_path / "merged"
    assert main(["merge", str(adapter), "--out", str(merged)]) == 0
    base, result = load_file(CHECKPOINT / "model.safetensors"), load_file(merged / "model.safetensors")
    assert {name: (w.dtype, w.shape) for name, w in result.items()} == {n: (w.dtype, w.shape) for n, w in base.items()}
    assert all(torch.equal(result[name], base[name]) for name in base if "vision" in name or "embed" in name)
    for path in CHECKPOINT.iterdir():
        if path.suffix != ".safetensors" and path.name != "README.md":
            read = json.loads if path.suffix == ".json" else str
            assert read((merged / path.name).read_text()) == read(path.read_text())


def test_full_training_writes_a_checkpoint(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert finetune(data, out, "--recipe", "full", "--learning-rate", "1e-4") == 0
    assert inspect.inspect(out).ready
    base, result = load_file(CHECKPOINT / "model.safetensors"), load_file(out / "model.safetensors")
    changed = {name for name in base if not torch.allclose(base[name].float(), result[name].float(), atol=0)}
    assert any("language_model" in name for name in changed)
    assert not any("vision_tower" in name for name in changed)


def _cut(folder: Path) -> None:
    path = folder / ADAPTER
    path.write_bytes(path.read_bytes()[:-100])


def _pickle(folder: Path) -> None:
    (folder / ADAPTER).rename(folder / "adapter_model.bin")


def _rename(folder: Path) -> None:
    """As if trained on the text model alone."""
    weights = load_file(folder / ADAPTER)
    renamed = {name.replace(".model.language_model.", ".model."): weight for name, weight in weights.items()}
    save_file(renamed, folder / ADAPTER, metadata={"format": "pt"})


def _other_base(folder: Path) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"revision": "sha256:0123456789abcdef"}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_cut, "but its header says"),
        (_pickle, "is a pickled file, which can run code"),
        (_rename, "belong to no module of the base"),
        (_other_base, "was trained on revision sha256:0123456789abcdef"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(
    adapter: Path, tmp_path: Path, damage: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(adapter, broken)
    damage(broken)
    assert main(["merge", str(broken), "--out", str(tmp_path / "merged")]) == 3
    assert message in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"broken"}


def test_a_full_disk_at_the_end_leaves_the_last_state(
    data: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    publish = result.publish

    def limited(*args: Any) -> None:
        with small_files():
            publish(*args)

    monkeypatch.setattr(result, "publish", limited)
    out = tmp_path / "out"
    assert finetune(data, out) == 4
    assert f"the state after step {STEPS} is kept. Free some disk space" in capsys.readouterr().err
    assert not (out / ADAPTER).exists()
    monkeypatch.setattr(result, "publish", publish)
    assert finetune(data, out) == 0
    assert (out / ADAPTER).read_bytes() == (adapter / ADAPTER).read_bytes()


def test_a_merge_on_a_full_disk_leaves_nothing(
    adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with small_files():
        assert main(["merge", str(adapter), "--out", str(tmp_path / "merged")]) == 4
    assert "merged: cannot be written (File too large); nothing is left of it" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
