"""Inspect adapter folders that fit the demo checkpoint, or do not, or are damaged."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from pedcxr_serve.checkpoint import adapter, revision
from pedcxr_serve.checkpoint.adapter import CONFIG, WEIGHTS, Adapter
from pedcxr_serve.checkpoint.inspect import inspect
from pedcxr_serve.demo import CHECKPOINT
from pedcxr_serve.errors import AdapterError, ConfigError
from tests.support import checkpoint_folders, lora_adapter

BASE = lora_adapter.demo_shape()
REVISION = revision.of(CHECKPOINT)
TEXT_MODULES = 4 * 7  # layers, linears per layer


def look(folder: Path, **options: Any) -> Adapter:
    return adapter.inspect(folder, BASE, **{"base_revision": REVISION, **options})


def problems(folder: Path, severity: str = "block", **options: Any) -> list[str]:
    result = look(folder, **options)
    assert result.ready is not any(problem.severity == "block" for problem in result.problems)
    return [f"{p.where} {p.what}: {p.remedy}" for p in result.problems if p.severity == severity]


def test_an_adapter_of_the_demo_is_ready(tmp_path: Path) -> None:
    folder = lora_adapter.make(tmp_path / "team", rank=4)
    result = look(folder)

    adapter.require_ready(result)
    assert (result.problems, result.rank, len(result.modules)) == ((), 4, TEXT_MODULES)
    assert result.base_revision == REVISION
    assert result.parameters == adapter.slot_parameters(BASE, 4) == 4 * result.parameters // result.rank
    assert adapter.table("team", result).endswith("verdict            can be served")


def test_the_revision_is_that_of_weights_and_configuration_not_of_the_path(tmp_path: Path) -> None:
    one, same, other = (
        look(lora_adapter.make(tmp_path / name, seed=seed)).revision for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    scaled = look(lora_adapter.make(tmp_path / "d", lora_alpha=1)).revision

    assert one == same
    assert len({one, other, scaled}) == 3
    assert one.startswith("sha256:") and len(one) == 23


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name.replace("model.model.language_model.", "model.language_model.model."),
        lambda name: name.removeprefix("base_model.model."),
    ],
    ids=["transformers before 4.52", "no prefix of PEFT"],
)
def test_other_spellings_that_vllm_maps_are_accepted(tmp_path: Path, rename: Any) -> None:
    assert problems(lora_adapter.make(tmp_path, rename=rename)) == []


def test_other_spellings_of_the_vision_tower_are_recognised(tmp_path: Path) -> None:
    renamed = lora_adapter.make(
        tmp_path, vision=True, rename=lambda name: name.replace("vision_tower.", "vision_tower.vision_model.")
    )
    [problem] = problems(renamed)
    assert "adapts 18 modules of the vision tower" in problem


@pytest.mark.parametrize(
    "rename",
    [
        lora_adapter.without_language_model,
        lambda name: name.replace("model.model.language_model.", "model.language_model."),
        lambda name: name.replace("layers.", "layers.1"),
        lambda name: name.replace("q_proj", "qkv_proj"),
    ],
    ids=["of the text model alone", "half of a prefix", "layers of a deeper model", "unknown module"],
)
def test_an_adapter_with_other_names_is_refused_with_the_names(tmp_path: Path, rename: Any) -> None:
    """vLLM would serve the base's reports under the adapter's name."""
    folder = lora_adapter.make(tmp_path, rename=rename)
    names = [
        name for name in lora_adapter._weights(0, 8, 0.3, False) if rename(name) != name
    ]  # those that the base does not have
    [problem] = [text for text in problems(folder) if "belong to no module" in text]

    assert f"contains {len(names)} of {2 * TEXT_MODULES} weights that belong to no module of the base" in problem
    assert rename(names[0]) in problem


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "modules_to_save": ({"modules_to_save": ["lm_head"]}, r"modules_to_save \['lm_head'\].*pedcxr-serve merge"),
    "DoRA": ({"use_dora": True}, "sets use_dora.*pedcxr-serve merge"),
    "bias": ({"bias": "all"}, "has bias 'all'.*merge"),
    "PiSSA": ({"init_lora_weights": "pissa"}, "changes the base's weights.*merge"),
    "another method": ({"peft_type": "IA3"}, "has peft_type 'IA3': only LORA"),
    "another base": ({"revision": "sha256:" + "0" * 16}, f"0000 of its base, but {REVISION} is served: serve the base"),
    "another rank in the file": ({"r": 16}, r"do not fit the base or the rank in 28 modules .*\(8, 128\)"),
    "no rank": ({"r": 0}, "has rank 0 .*a rank is an integer from 1 to 512"),
    "rank of text": ({"r": "8"}, "has rank '8'"),
    "a huge rank": ({"r": 1024}, "has rank 1024"),
    "no alpha": ({"lora_alpha": None}, "lacks lora_alpha or target_modules"),
}


@pytest.mark.parametrize(("config", "expected"), CONFIGS.values(), ids=CONFIGS)
def test_options_that_cannot_be_served_are_refused_with_a_remedy(
    tmp_path: Path, config: dict[str, Any], expected: str
) -> None:
    folder = lora_adapter.make(tmp_path, **config)

    with pytest.raises(AdapterError, match=expected) as raised:
        adapter.require_ready(look(folder))
    assert raised.value.exit_code == 3


def test_the_rank_of_the_configuration_must_be_that_of_the_adapter(tmp_path: Path) -> None:
    folder = lora_adapter.make(tmp_path, rank=8)
    assert problems(folder, rank=8) == []
    assert problems(folder, rank=16) == [
        f"{CONFIG} has rank 8, not 16: correct `rank` in serve.toml, or give the adapter that has this rank"
    ]


def test_a_base_of_another_size_is_refused(tmp_path: Path) -> None:
    larger = inspect(checkpoint_folders.medgemma_4b(tmp_path / "4b")).shape
    assert larger is not None
    result = adapter.inspect(lora_adapter.make(tmp_path / "a"), larger)
    assert ["do not fit the base or the rank in 28 modules" in problem.what for problem in result.problems] == [True]


def test_an_unknown_base_is_a_warning(tmp_path: Path) -> None:
    folder = lora_adapter.make(tmp_path, revision="main")
    assert problems(folder) == []
    [warning] = problems(folder, "warn")
    assert f'set "revision": "{REVISION}"' in warning
    assert problems(folder, "warn", base_revision=None) == []


def test_vision_layers_are_refused(tmp_path: Path) -> None:
    folder = lora_adapter.make(tmp_path, vision=True)
    [problem] = problems(folder)
    assert "adapts 18 modules of the vision tower" in problem
    assert "pedcxr-serve merge" in problem
    assert len(look(folder).modules) == TEXT_MODULES + 18


@pytest.mark.parametrize("module", ["model.multi_modal_projector", "lm_head", "model.language_model.embed_tokens"])
def test_other_modules_than_layers_must_be_merged(tmp_path: Path, module: str) -> None:
    last = "layers.3.mlp.down_proj"
    folder = lora_adapter.make(tmp_path, rename=lambda name: name.replace(f"model.language_model.{last}", module))
    [problem] = problems(folder)
    assert f"output layer (base_model.model.{module}.lora_A.weight, " in problem
    assert "only served when merged: merge it into its base with `pedcxr-serve merge`" in problem


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.pt"])
def test_pickled_weights_are_refused(tmp_path: Path, name: str) -> None:
    folder = lora_adapter.make(tmp_path)
    (folder / WEIGHTS).rename(folder / name)
    [problem] = problems(folder)
    assert problem.startswith(f"{name} is a pickled file, which can run code")


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_a_file_cut_short_is_refused(tmp_path: Path, keep: int) -> None:
    path = lora_adapter.make(tmp_path) / WEIGHTS
    path.write_bytes(path.read_bytes()[:keep])
    assert any("safetensors header" in text or "truncated" in text for text in problems(tmp_path))


def test_an_untrained_adapter_is_refused(tmp_path: Path) -> None:
    [problem] = problems(lora_adapter.make(tmp_path, scale=0))
    assert "lora_B weights of 0 only: it is untrained" in problem


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    folder = lora_adapter.make(tmp_path)
    weights = dict(lora_adapter._weights(0, 8, 0.3, False))
    name = next(iter(weights))
    weights[name] = (weights[name][0], [math.nan, *weights[name][1][1:]])
    lora_adapter.write(folder / WEIGHTS, weights)
    [problem] = problems(folder)
    assert "NaN or infinite values in 1 tensors" in problem


def test_files_that_are_missing_or_unusable_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        look(tmp_path / "absent")
    assert problems(tmp_path) == [
        f"{CONFIG} is missing: give the folder that PEFT saved the adapter to",
        f"{WEIGHTS} is missing: copy the adapter again",
    ]
    (tmp_path / CONFIG).write_text("{")
    lora_adapter.write(tmp_path / WEIGHTS, {})
    assert [problem.split(":")[0] for problem in problems(tmp_path)][1:] == [f"{WEIGHTS} contains no weights"]
    assert look(tmp_path).revision == ""


def test_the_reserved_memory_of_the_4b_model(tmp_path: Path) -> None:
    shape = inspect(checkpoint_folders.medgemma_4b(tmp_path)).shape
    assert shape is not None
    attention, mlp = 2 * (2560 + 2048) + 2 * (2560 + 1024), 3 * (2560 + 10240)
    assert adapter.slot_parameters(shape, 16) == 16 * 34 * (attention + mlp) == 29_802_496
