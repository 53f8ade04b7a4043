"""Adapters in the configuration and in the plan: inspection, memory, vLLM's arguments."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pedcxr_serve.checkpoint import inspect
from pedcxr_serve.checkpoint.adapter import slot_parameters
from pedcxr_serve.checkpoint.inspect import Checkpoint
from pedcxr_serve.cli import main
from pedcxr_serve.config import load
from pedcxr_serve.config.settings import ServeConfig
from pedcxr_serve.demo import CHECKPOINT
from pedcxr_serve.errors import AdapterError, ConfigError
from pedcxr_serve.planner import adapters, devices, plan
from pedcxr_serve.planner.plan import EnginePlan
from tests.support import lora_adapter

DEMO = inspect.inspect(CHECKPOINT)


def configured(folder: Path, *lines: str) -> tuple[Path, ServeConfig]:
    path = folder / "serve.toml"
    path.write_text("\n".join(lines))
    return path, load.load(path, {})


def planned(
    config: ServeConfig, memory: int | None = None, key: str = "cpu", checkpoint: Checkpoint = DEMO
) -> EnginePlan:
    device = devices.TABLE[key]
    device = device if memory is None else replace(device, memory_bytes=memory)
    served = adapters.inspect(config, checkpoint)
    adapters.require_ready(served)
    return plan.make(checkpoint, device, config, model_dir=CHECKPOINT, socket=Path("/s"), served_adapters=served)


@pytest.mark.parametrize(("key", "slots"), [("cpu", "3"), ("h100", "2")])
def test_the_plan_has_a_slot_for_every_adapter(tmp_path: Path, key: str, slots: str) -> None:
    """On a CPU one more stays empty: vLLM 0.32 applies the last slot to the base in a mixed batch."""
    north, south = (lora_adapter.make(tmp_path / name, rank=rank) for name, rank in (("a", 4), ("b=,c d", 12)))
    _, config = configured(tmp_path, f'[adapters.north]\npath = "{north}"', f'[adapters.south]\npath = "{south}"')
    argv = planned(config, key=key).argv

    at = argv.index("--enable-lora")
    assert argv[at : at + 6] == ("--enable-lora", "--max-loras", slots, "--max-lora-rank", "16", "--lora-modules")
    assert [json.loads(word) for word in argv[at + 6 :]] == [
        {"name": "north", "path": str(north), "base_model_name": "pedcxr-demo"},
        {"name": "south", "path": str(south), "base_model_name": "pedcxr-demo"},
    ]


def test_the_memory_of_the_slots_is_counted(tmp_path: Path) -> None:
    folder = lora_adapter.make(tmp_path / "a")
    _, config = configured(tmp_path, *(f'[adapters.a{n}]\npath = "{folder}"' for n in range(3)))
    engine_plan = planned(config)

    shape = DEMO.shape
    assert shape is not None
    assert engine_plan.adapters_bytes == (3 + 1) * 4 * slot_parameters(shape, 8)
    assert "adapters                0.001 GB" in plan.render(engine_plan)
    enough = engine_plan.weights_bytes + engine_plan.adapters_bytes + 2**30
    planned(config, enough)
    with pytest.raises(ConfigError, match=r"adapters 0\.0 GB"):
        planned(config, enough - 1)


def test_a_plan_without_adapters_has_no_lora(tmp_path: Path) -> None:
    engine_plan = planned(load.load(None, {}))
    assert not [word for word in engine_plan.argv if "lora" in word]
    assert engine_plan.adapters_bytes == 0
    assert ("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "0") in engine_plan.env


def test_files_that_change_after_the_start_are_refused(tmp_path: Path) -> None:
    folder = lora_adapter.make(tmp_path / "a")
    loaded = adapters.inspect(configured(tmp_path, f'[adapters.a]\npath = "{folder}"')[1], DEMO)
    adapters.require_unchanged(loaded)
    lora_adapter.make(folder, seed=1)
    with pytest.raises(AdapterError, match=r"adapters\.a: the files in .* have changed since the server started"):
        adapters.require_unchanged(loaded)


def test_vision_layers_are_served_only_when_merged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = lora_adapter.make(tmp_path / "a", vision=True)
    lines = [f'[adapters.a]\npath = "{folder}"']
    with pytest.raises(AdapterError, match=r"adapts 18 modules of the vision tower"):
        planned(configured(tmp_path, *lines)[1])
    for command in (["check"], ["start", "--dry-run"]):
        assert main([*command, "--config", str(tmp_path / "serve.toml")]) == 3
        printed = "".join(capsys.readouterr())
        assert "adapts 18 modules of the vision tower, which the engine does not serve as an adapter" in printed
        assert "merge it into its base" in printed
    with pytest.raises(ConfigError, match="served only when merged"):
        configured(tmp_path, *lines, "[engine]\nextra_args = ['--enable-tower-connector-lora']")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[adapters.a]", r"adapters.a.path: required; must be a string"),
        ('[adapters.a]\npath = ""', "adapters.a.path = ''"),
        ('[adapters.a]\npath = "x"\nrank = 0', "adapters.a.rank = 0: must be an integer between 1 and 512"),
        ('[adapters.a]\npath = "x"\nranks = 1', r"adapters.a.ranks: unknown name; did you mean adapters.NAME.rank\?"),
        ('[adapters."Jane Doe"]\npath = "x"', "the name must be 1 to 64 characters"),
        ('[adapters."--x"]\npath = "x"', "the name must be 1 to 64 characters"),
        ('[adapters.pedcxr-demo]\npath = "x"', "the model itself has this name"),
        ('[adapters.a]\npath = "x"\ntenants = ["t"]', "requires gateway.tenants"),
        ("adapters = 3", r"adapters = 3: must be tables \[adapters.NAME\]"),
        ("adapters = ['a']", r"must be tables \[adapters.NAME\]"),
        ("[adapters]\na = 3", "adapters.a: must be a table"),
    ],
)
def test_invalid_adapters_are_refused_with_file_and_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        configured(tmp_path, text)
    assert str(tmp_path / "serve.toml") in str(raised.value)


@pytest.mark.parametrize(
    "option",
    ["--enable-lora", "--enable_lora", "--lora-modules", "--max-loras", "--max-lora-rank=8", "--default-mm-loras"],
)
def test_adapters_cannot_bypass_the_checks(option: str) -> None:
    with pytest.raises(ConfigError, match=r"must be checked before it is served; set \[adapters.NAME\]"):
        load.load(None, {"engine.extra_args": [option]})


def test_check_prints_the_adapters_and_fails_with_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = lora_adapter.make(tmp_path / "good"), lora_adapter.make(tmp_path / "bad", use_dora=True)
    path, _ = configured(tmp_path, f'[adapters.good]\npath = "{good}"')
    assert main(["check", "--config", str(path)]) == 0
    out = capsys.readouterr().out
    assert f"adapter            good: {good}" in out and "28 of the text model, 0 of the vision tower" in out
    path, _ = configured(tmp_path, f'[adapters.good]\npath = "{good}"', f'[adapters.bad]\npath = "{bad}"')
    assert main(["check", "--config", str(path)]) == 3
    assert "sets use_dora" in capsys.readouterr().out
    for command in (["plan"], ["start", "--dry-run"]):
        assert main([*command, "--config", str(path)]) == 3
    path, _ = configured(tmp_path, '[adapters.good]\npath = "/absent"')
    assert main(["check", "--config", str(path)]) == 2
