"""Inspect checkpoint folders that are complete, incomplete or damaged."""

from __future__ import annotations

import json
import re
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pedcxr_serve.checkpoint import inspect
from pedcxr_serve.demo import CHECKPOINT
from pedcxr_serve.errors import CheckpointError, ConfigError
from tests.support import checkpoint_folders as folders


def edit(path: Path, change: Callable[[dict], object]) -> None:
    value = json.loads(path.read_text())
    change(value)
    folders.write_json(path, value)


def blocks(folder: Path) -> list[str]:
    checkpoint = inspect.inspect(folder)
    assert checkpoint.ready is not any(problem.severity == "block" for problem in checkpoint.problems)
    return [f"{p.where}: {p.what}: {p.remedy}" for p in checkpoint.problems if p.severity == "block"]


def warnings(folder: Path) -> list[str]:
    return [f"{p.where}: {p.what}" for p in inspect.inspect(folder).problems if p.severity == "warn"]


def test_published_4b_model_is_ready(tmp_path: Path) -> None:
    checkpoint = inspect.inspect(folders.medgemma_4b(tmp_path))

    assert checkpoint.problems == ()
    assert checkpoint.parameters == 4_300_079_472  # as the hub counts google/gemma-3-4b-it
    assert checkpoint.dtypes == (("BF16", 2 * checkpoint.parameters),)
    assert (checkpoint.key_style, checkpoint.model_prefix) == ("vision_model", False)
    shape = checkpoint.shape
    assert shape is not None
    assert (shape.heads, shape.kv_heads, shape.head_dim, shape.vocab, shape.tied) == (8, 4, 256, 262208, True)
    assert (shape.sliding_window, shape.sliding_layers) == (1024, 29)
    assert (shape.vision.patches, shape.image_tokens) == (4096, 256)
    assert shape.text_parameters == sum(
        tensor for name, tensor in _elements(tmp_path).items() if "vision_tower" not in name and "projector" not in name
    )


def test_packaged_demo_is_ready() -> None:
    from pedcxr_serve.demo import CHECKPOINT

    if not (CHECKPOINT / "config.json").exists():
        pytest.skip("no demo checkpoint here: run `make demo-checkpoint`")
    assert [problem for problem in inspect.inspect(CHECKPOINT).problems if problem.severity == "block"] == []


def _elements(folder: Path) -> dict[str, int]:
    from pedcxr_serve.checkpoint import weights

    shards = [weights.read_header(path) for path in folder.glob("*.safetensors")]
    return {name: tensor.elements for shard in shards for name, tensor in shard.tensors.items()}


def test_inspecting_200_shards_takes_under_a_second(tmp_path: Path) -> None:
    folder = folders.medgemma_4b(tmp_path, shards=200)

    start = time.process_time()  # others may keep this process waiting
    checkpoint = inspect.inspect(folder)

    assert time.process_time() - start < 1
    assert checkpoint.ready
    assert len(checkpoint.shards) == 200


def test_config_of_transformers_5_is_read(tmp_path: Path) -> None:
    checkpoint = inspect.inspect(folders.demo(tmp_path))

    assert checkpoint.problems == ()
    assert checkpoint.shape is not None
    assert (checkpoint.shape.sliding_layers, checkpoint.shape.sliding_window, checkpoint.shape.head_dim) == (3, 512, 32)
    assert checkpoint.dtypes[0][0] == "F32"


@pytest.mark.parametrize(
    ("infix", "prefix", "style", "prefixed"),
    [
        ("vision_model.", "", "vision_model", False),
        ("", "", "flat", False),
        ("vision_model.", "model.", "vision_model", True),
        ("", "model.", "flat", True),
    ],
)
def test_key_styles_are_distinguished(tmp_path: Path, infix: str, prefix: str, style: str, prefixed: bool) -> None:
    checkpoint = inspect.inspect(folders.demo(tmp_path, infix=infix, prefix=prefix))

    assert (checkpoint.key_style, checkpoint.model_prefix) == (style, prefixed)
    assert checkpoint.ready
    assert bool(checkpoint.problems) is (style == "flat")  # the warning that the plugin maps the names


def test_nested_processor_of_transformers_5_is_found(tmp_path: Path) -> None:
    folder = folders.demo(tmp_path)
    (folder / "preprocessor_config.json").unlink()
    processor = {"image_processor": {"size": {"height": 224, "width": 224}}, "image_seq_length": 64}
    folders.write_json(folder / "processor_config.json", processor)

    assert inspect.inspect(folder).files.processor == "processor_config.json"
    assert blocks(folder) == []


@pytest.mark.parametrize("text", ["{% if enable_thinking %}", "{{ '<unused94>thought' }}"])
def test_chat_template_of_a_model_that_thinks_aloud_is_reported(tmp_path: Path, text: str) -> None:
    folder = folders.demo(tmp_path)
    template = folder / "chat_template.jinja"
    before = inspect.inspect(folder).problems
    template.write_text(template.read_text() + text)

    [problem] = [one for one in inspect.inspect(folder).problems if one not in before]
    assert (problem.severity, problem.where) == ("warn", template.name)
    assert "the thoughts as part of the report" in problem.what


@pytest.mark.parametrize("name", ["chat_template.json", "tokenizer_config.json"])
def test_chat_template_of_transformers_4_is_found(tmp_path: Path, name: str) -> None:
    folder = folders.demo(tmp_path)
    (folder / "chat_template.jinja").unlink()
    folders.write_json(folder / name, {"chat_template": "{{ '<start_of_image>' }}"})

    assert inspect.inspect(folder).files.chat_template == name


def test_missing_folder_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        inspect.inspect(tmp_path / "absent")


def test_empty_folder_reports_every_missing_file(tmp_path: Path) -> None:
    where = " ".join(blocks(tmp_path))

    for name in ("config.json", "*.safetensors", "preprocessor_config.json", "chat_template.jinja", "tokenizer.json"):
        assert name in where


@pytest.mark.parametrize(
    ("name", "severity"),
    [
        ("config.json", "block"),
        ("preprocessor_config.json", "block"),
        ("chat_template.jinja", "block"),
        ("tokenizer.json", "block"),
        ("generation_config.json", "warn"),
    ],
)
def test_missing_file_is_reported_with_its_remedy(tmp_path: Path, name: str, severity: str) -> None:
    folder = folders.demo(tmp_path)
    (folder / name).unlink()

    problems = inspect.inspect(folder).problems

    assert [(problem.where, problem.severity) for problem in problems] == [(name, severity)]
    assert "base model" in problems[0].remedy


def test_truncated_shard_is_reported(tmp_path: Path) -> None:
    folder = folders.medgemma_4b(tmp_path)
    shard = folder / "model-00002-of-00002.safetensors"
    size = shard.stat().st_size
    with shard.open("r+b") as file:
        file.truncate(size - 1)

    (block,) = blocks(folder)

    assert "model-00002-of-00002.safetensors: is truncated" in block
    assert f"{size - 1:,} bytes" in block
    assert f"{size:,}" in block


def test_missing_shard_of_the_index_is_reported(tmp_path: Path) -> None:
    folder = folders.medgemma_4b(tmp_path, shards=3)
    (folder / "model-00003-of-00003.safetensors").unlink()

    assert "model-00003-of-00003.safetensors: is missing" in blocks(folder)[0]


def test_missing_weight_of_the_index_is_reported(tmp_path: Path) -> None:
    folder = folders.medgemma_4b(tmp_path)
    first = "model-00001-of-00002.safetensors"
    edit(folder / "model.safetensors.index.json", lambda index: index["weight_map"].update({"lm_head.weight": first}))

    (block,) = blocks(folder)

    assert f"{first}: lacks 1 weights" in block
    assert "lm_head.weight" in block


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "..", 3, ""])
def test_index_with_paths_outside_the_folder_is_rejected(tmp_path: Path, name: object) -> None:
    folder = folders.medgemma_4b(tmp_path)
    edit(folder / "model.safetensors.index.json", lambda index: index["weight_map"].update({"x": name}))

    assert "no valid weight_map" in blocks(folder)[0]


def test_missing_shards_without_an_index_are_reported(tmp_path: Path) -> None:
    folder = folders.medgemma_4b(tmp_path, shards=3)
    (folder / "model.safetensors.index.json").unlink()
    assert blocks(folder) == []
    (folder / "model-00002-of-00003.safetensors").unlink()

    assert "2 of 3 shards exist" in blocks(folder)[0]


def test_adapter_without_a_model_has_a_merge_remedy(tmp_path: Path) -> None:
    folder = folders.demo(tmp_path)
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    folders.write_json(folder / "adapter_config.json", {"modules_to_save": ["lm_head", "embed_tokens"]})

    (block,) = blocks(folder)

    assert "LoRA adapter" in block
    assert "modules_to_save ['lm_head', 'embed_tokens']" in block
    assert "[adapters.NAME]" in block and "pedcxr-serve merge" in block


def test_weights_in_another_format_are_reported(tmp_path: Path) -> None:
    folder = folders.demo(tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")

    assert "safetensors" in blocks(folder)[0]


@pytest.mark.parametrize("names", [["Gemma3ForCausalLM"], [], None, "x"])
def test_other_architecture_is_rejected_with_both_names(tmp_path: Path, names: object) -> None:
    folder = folders.demo(tmp_path)
    edit(folder / "config.json", lambda config: config.update(architectures=names))

    (block,) = blocks(folder)

    assert "Gemma3ForConditionalGeneration" in block
    assert "Gemma3ForCausalLM" in block or names != ["Gemma3ForCausalLM"]


@pytest.mark.parametrize(
    ("table", "key", "value"),
    [
        ("text_config", "hidden_size", "2560"),
        ("text_config", "num_hidden_layers", -1),
        ("text_config", "head_dim", 2.5),
        ("text_config", "vocab_size", True),
        ("text_config", "sliding_window", "all"),
        ("text_config", "layer_types", ["full_attention"]),
        ("text_config", "num_key_value_heads", 3),
        ("vision_config", "patch_size", 0),
        ("vision_config", "image_size", [896, 896]),
    ],
)
def test_invalid_size_in_the_config_is_reported(tmp_path: Path, table: str, key: str, value: object) -> None:
    folder = folders.demo(tmp_path)
    edit(folder / "config.json", lambda config: config[table].update({key: value}))

    assert f"config.json: {table}.{key}" in blocks(folder)[0]


def test_text_config_that_is_not_an_object_is_reported(tmp_path: Path) -> None:
    folder = folders.demo(tmp_path)
    edit(folder / "config.json", lambda config: config.update(text_config=3))

    assert "text_config" in blocks(folder)[0]


@pytest.mark.parametrize("text", ["{", "[1]", "", "\x00", "[" * 100_000])
@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "tokenizer.json"])
def test_invalid_json_is_reported(tmp_path: Path, name: str, text: str) -> None:
    folder = folders.demo(tmp_path)
    (folder / name).write_text(text)

    assert blocks(folder)[0].startswith(name)


HEADERS = {
    "empty": b"",
    "short": b"\1\2",
    "git-lfs pointer": b"version https://git-lfs.github.com/spec/v1\n",
    "truncated in the header": struct.pack("<Q", 1000) + b'{"x":',
    "not json": struct.pack("<Q", 4) + b"\xff\xfe{}",
    "a list": struct.pack("<Q", 2) + b"[]",
    "no shape": struct.pack("<Q", 24) + b'{"x": {"dtype": "BF16" }}'[:24],
    "entry": struct.pack("<Q", 10) + b'{"x": [1]}',
}


@pytest.mark.parametrize("raw", HEADERS.values(), ids=HEADERS)
def test_invalid_shard_is_reported(tmp_path: Path, raw: bytes) -> None:
    folder = folders.demo(tmp_path)
    (folder / "model.safetensors").write_bytes(raw)

    assert blocks(folder)[0].startswith("model.safetensors")


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, 0]},
        {"dtype": "Q4", "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
        {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]},
    ],
)
def test_contradictory_header_is_reported(tmp_path: Path, entry: object) -> None:
    folder = folders.demo(tmp_path)
    raw = json.dumps({"x": entry}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw + b"\0" * 8)

    assert blocks(folder)[0].startswith("model.safetensors")


def test_tokenizer_without_end_of_image_is_rejected(tmp_path: Path) -> None:
    folder = folders.demo(tmp_path)
    edit(folder / "tokenizer.json", lambda value: value["added_tokens"].pop(1))

    (block,) = blocks(folder)

    assert "tokenizer.json: gives <end_of_image> no id, but config.json says 6" in block
    assert "1.0.1" in block


def test_tokenizer_with_another_id_for_end_of_image_is_rejected(tmp_path: Path) -> None:
    folder = folders.demo(tmp_path)
    edit(folder / "tokenizer.json", lambda value: value["added_tokens"][1].update(id=9))

    assert "<end_of_image> id 9, but config.json says 6" in blocks(folder)[0]


def test_tokenizer_without_the_newline_entries_is_rejected(tmp_path: Path) -> None:
    folder = folders.demo(tmp_path)
    edit(folder / "tokenizer.json", lambda value: value["model"]["vocab"].pop("\n\n\n"))

    (block,) = blocks(folder)

    assert r"lacks the entries '\n\n\n'" in block


def test_newlines_with_unicode_escapes_are_found(tmp_path: Path) -> None:
    folder = folders.demo(tmp_path)
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace("\\n", "\\u000a"))

    assert blocks(folder) == []


def test_processor_files_of_another_model_are_rejected(tmp_path: Path) -> None:
    folder = folders.demo(tmp_path)
    edit(folder / "preprocessor_config.json", lambda value: value["size"].update(height=896, width=896))
    edit(folder / "processor_config.json", lambda value: value.update(image_seq_length=256))

    assert [block.split(":")[1] for block in blocks(folder)] == [
        " resizes images to {'height'",
        " uses 256 tokens per image, but config.json says 64",
    ]


def test_weights_that_contradict_the_config_are_rejected(tmp_path: Path) -> None:
    folder = folders.demo(tmp_path)
    edit(folder / "config.json", lambda config: config["text_config"].update(vocab_size=641))

    assert "embed_tokens.weight is (640, 128), but config.json implies (641, 128)" in blocks(folder)[0]


def test_missing_layers_and_missing_vision_tower_are_rejected(tmp_path: Path) -> None:
    folder = folders.demo(tmp_path)
    content = folders.tensors(folders.CONFIG_DEMO, "F32")
    partial = {name: t for name, t in content.items() if "vision_tower" not in name and "layers.2." not in name}
    folders.write_shard(folder / "model.safetensors", partial)

    assert [block.split(":")[1] for block in blocks(folder)] == [
        " contain no vision tower",
        " lack 66 tensors that config.json implies (vision_tower.embeddings.patch_embedding.weight, ...)",
    ]


Header = dict[str, dict]


def rename(change: Callable[[str], str]) -> Callable[[Header], Header]:
    return lambda header: {change(name): entry for name, entry in header.items()}


def without(mark: str) -> Callable[[Header], Header]:
    return lambda header: {name: entry for name, entry in header.items() if mark not in name}


def also(name: str, like: str) -> Callable[[Header], Header]:
    return lambda header: {**header, name: header[next(known for known in header if known.endswith(like))]}


DAMAGED = {
    "no projector": (without("multi_modal_projector"), "lack 2 tensors .*multi_modal_projector"),
    "no q_norm": (without("layers.0.self_attn.q_norm"), "lack 1 tensors .*q_norm"),
    "no final norm": (without("language_model.model.norm"), "lack 1 tensors .*language_model.norm.weight"),
    "no embedding": (without("embed_tokens"), "lack 1 tensors .*embed_tokens"),
    "no vision layer": (without("encoder.layers.0."), "lack 16 tensors .*vision_tower.encoder.layers.0"),
    "adapter left": (also("x.lora_A.default.weight", "q_proj.weight"), "contain 1 tensors .*lora_A.*merge_and_unload"),
    "prefix of PEFT": (rename(lambda name: f"base_model.model.{name}"), "contain .*base_model.*merge_and_unload"),
    "layers of PEFT": (
        rename(lambda name: name.replace("q_proj.weight", "q_proj.base_layer.weight")),
        "contain 7 tensors .*base_layer.*merge_and_unload",
    ),
}


def damaged(folder: Path, change: Callable[[Header], Header], data: Callable[[bytes, Header], bytes]) -> Path:
    """Copy the packaged demo with another safetensors header and other data."""
    shutil.copytree(CHECKPOINT, folder)
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    meta, changed, blob = header.pop("__metadata__", None), {}, b""
    body = data(raw[8 + size :], header)
    for name, entry in change(header).items():
        begin, end = entry["data_offsets"]
        changed[name] = entry | {"data_offsets": [len(blob), len(blob) + end - begin]}
        blob += body[begin:end]
    text = json.dumps({"__metadata__": meta, **changed}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + blob)
    return folder


@pytest.mark.parametrize("name", DAMAGED)
def test_weights_that_vllm_cannot_load_are_rejected(tmp_path: Path, name: str) -> None:
    change, pattern = DAMAGED[name]
    folder = damaged(tmp_path / "model", change, lambda data, _: data)
    assert any(re.search(pattern, block) for block in blocks(folder)), blocks(folder)


@pytest.mark.parametrize("bits", [b"\xff\xff", b"\x80\x7f"], ids=["NaN", "infinite"])
def test_values_that_are_not_finite_are_rejected(tmp_path: Path, bits: bytes) -> None:
    def fill(data: bytes, header: Header) -> bytes:
        begin, end = header["language_model.model.norm.weight"]["data_offsets"]
        return data[:begin] + bits * ((end - begin) // 2) + data[end:]

    [block] = blocks(damaged(tmp_path / "model", dict, fill))
    assert "NaN or infinite values in 1 tensors (language_model.model.norm.weight" in block


@pytest.mark.parametrize("name", ["vision_tower.vision_model.head.probe", "language_model.model.rotary_emb.inv_freq"])
def test_tensors_that_vllm_skips_are_accepted(tmp_path: Path, name: str) -> None:
    assert blocks(damaged(tmp_path / "model", also(name, "norm.weight"), lambda data, _: data)) == []


@pytest.mark.parametrize("eos", [1, [1], None, [1, 7]])
def test_generation_config_without_end_of_turn_is_rejected(tmp_path: Path, eos: object) -> None:
    folder = shutil.copytree(CHECKPOINT, tmp_path / "model")
    edit(folder / "generation_config.json", lambda config: config.update(eos_token_id=eos))
    [block] = blocks(folder)
    assert "without 6, the id of <end_of_turn>" in block and "add 6 to eos_token_id" in block


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "generation_config.json"])
def test_links_of_the_hub_cache_that_lead_nowhere_are_named(tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(CHECKPOINT, tmp_path / "model")
    (folder / name).unlink()
    (folder / name).symlink_to("../../blobs/0123")
    found = [block for block in blocks(folder) if block.startswith(f"{name}:")]
    assert len(found) == 1 and "is a link to ../../blobs/0123, which is missing" in found[0] and "cp -aL" in found[0]


def test_redundant_output_layer_is_a_warning_and_not_counted(tmp_path: Path) -> None:
    folder = folders.demo(tmp_path)
    plain = inspect.inspect(folder).parameters
    content = folders.tensors(folders.CONFIG_DEMO, "F32") | {"lm_head.weight": ("F32", [640, 128])}
    folders.write_shard(folder / "model.safetensors", content)

    assert "lm_head" in warnings(folder)[0]
    assert inspect.inspect(folder).parameters == plain


def test_require_ready_lists_every_blocking_problem(tmp_path: Path) -> None:
    folder = folders.demo(tmp_path)
    inspect.require_ready(inspect.inspect(folder))
    (folder / "tokenizer.json").unlink()
    (folder / "preprocessor_config.json").unlink()

    with pytest.raises(CheckpointError) as raised:
        inspect.require_ready(inspect.inspect(folder))

    assert raised.value.exit_code == 3
    assert str(raised.value).count("google/medgemma-4b-it") == 2


def test_table_ends_with_the_verdict(tmp_path: Path) -> None:
    folder = folders.demo(tmp_path, infix="")
    assert inspect.table(inspect.inspect(folder)).endswith("can be served, 1 warning(s)")
    (folder / "tokenizer.json").unlink()

    text = inspect.table(inspect.inspect(folder))

    assert "BLOCK" in text
    assert "cannot be served: 1 blocking problem(s)" in text.splitlines()[-1]
