"""The commands ``finetune`` and ``merge`` up to the point where torch would load."""

from __future__ import annotations

import errno
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pedcxr_serve.cli import main
from pedcxr_serve.demo import CHECKPOINT, drawing
from pedcxr_serve.demo.findings import sample
from pedcxr_serve.errors import ConfigError
from pedcxr_serve.finetune import command, exhaustion
from pedcxr_serve.finetune.recipes import RECIPES, Recipe


@pytest.fixture
def data(tmp_path: Path) -> Path:
    lines = ["path,age,sex,report"]
    for seed in range(4):
        (tmp_path / f"{seed}.png").write_bytes(drawing.encode_png(drawing.render(sample(seed), seed)))
        lines.append(f"{seed}.png,5y,F,Lungs clear.")
    path = tmp_path / "data.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_dry_run_prints_the_counts_and_writes_nothing(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["finetune", str(data), "--base", "demo", "--out", str(out), "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "3 films for training, 1 for validation, 0 for test, of 4 patients" in text
    assert "serving: vLLM can serve it beside its base, or merged" in text
    assert not out.exists()


def test_a_base_that_is_an_adapter_is_refused(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = tmp_path / "base"
    shutil.copytree(CHECKPOINT, base)
    (base / "adapter_config.json").write_text("{}")
    assert main(["finetune", str(data), "--base", str(base), "--out", str(tmp_path / "out")]) == 2
    assert "is a LoRA adapter, not a model. Merge it first" in capsys.readouterr().err


def test_an_unknown_base_is_named_with_its_option(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["finetune", str(data), "--base", "absent", "--out", str(tmp_path / "out")]) == 2
    assert "--base 'absent': no such folder" in capsys.readouterr().err


def test_a_base_that_cannot_be_served_is_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "base"
    shutil.copytree(CHECKPOINT, base)
    (base / "chat_template.jinja").unlink()
    assert main(["finetune", str(data), "--base", str(base), "--out", str(tmp_path / "out")]) == 3
    assert "chat_template.jinja is missing" in capsys.readouterr().err


def test_missing_packages_are_named_before_anything_is_written(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    assert main(["finetune", str(data), "--base", "demo", "--out", str(tmp_path / "out")]) == 2
    assert "Install the extra: pip install 'pedcxr[train]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_disk_that_is_full_of_prepared_films(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit on the size of files stops a write as a full disk does."""
    monkeypatch.setattr(command, "_require_packages", lambda: None)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        code = main(["finetune", str(data), "--base", "demo", "--out", str(tmp_path / "out")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 4
    message = capsys.readouterr().err
    assert f"--out {tmp_path}/out: cannot be written (File too large). Free some disk space" in message


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "x"), "No space left on device"),
        (OSError(errno.EACCES, "x"), ""),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), "No space left"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), ""),
    ],
)
def test_errors_that_mean_a_full_disk(error: Exception, reason: str) -> None:
    assert exhaustion.disk_reason(error).startswith(reason)
    assert bool(exhaustion.disk_reason(error)) is bool(reason)
    assert exhaustion.is_memory(error) is ("memory" in str(error))


def test_memory_advice_ends_with_another_device() -> None:
    recipe = Recipe(name="x", gradient_checkpointing=True, quantize=True)
    assert exhaustion.memory_advice(recipe) == ["a device with more memory"]
    assert exhaustion.memory_advice(RECIPES["full"])[-1] == "--recipe text, which trains an adapter"


def test_a_wrong_option_of_the_client_is_an_error_of_usage(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("finetune", str(data), "--base", "demo", "--out", str(tmp_path / "out"), "--dry-run")
    assert main([*words, "--allow", "nothing"]) == 2
    assert main([*words, "--prompt-profile", "training"]) == 2
    assert "add --system-file" in capsys.readouterr().err


def test_merge_does_not_overwrite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["merge", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert "exists. Give a new folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "full", "quantize": True}, "weights in 4 bits cannot be trained"),
        ({"modules": ("head",)}, "LoRA needs text or vision"),
    ],
)
def test_settings_that_exclude_each_other(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Recipe(name="x", **settings)


def test_a_recipe_says_how_its_result_is_served() -> None:
    assert RECIPES["text"].serving == "vLLM can serve it beside its base, or merged"
    assert "lm_head, embed_tokens are trained): merge it" in RECIPES["card"].serving
    assert "vision tower beside their base: merge it" in Recipe(name="x", modules=("text", "vision")).serving
    assert "complete checkpoint" in RECIPES["full"].serving


def test_other_commands_import_nothing_of_the_training() -> None:
    script = (
        "import sys; from pedcxr_serve.cli import main; main(['config']); "
        "assert not [name for name in sys.modules if 'finetune' in name], 'finetune was imported'"
    )
    subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.DEVNULL)
