"""The packaged checkpoint has the files and the layout of the real model. Only the slow tests use torch."""

from __future__ import annotations

import json
import re
import struct
from typing import Any

import jinja2
import pytest
from tokenizers import Tokenizer

from demo_training.tokenizer import NEWLINES, SPECIAL, TEMPLATE, build
from pedcxr_client.films.age import Age
from pedcxr_client.request.prompts import card
from pedcxr_serve.config.settings import DEMO_NAME
from pedcxr_serve.demo import CHECKPOINT, expected_report
from pedcxr_serve.demo.findings import Case, Finding, Kind, sample

FILES = {
    "README.md",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
}
PROMPT = "Generate a radiology report for this chest X-ray of a 5-year-old male."


def read(name: str) -> Any:
    return json.loads((CHECKPOINT / name).read_text())


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))


def fill(messages: list[dict[str, Any]], **options: object) -> str:
    def raise_error(message: str) -> None:
        raise ValueError(message)

    template = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(
        (CHECKPOINT / "chat_template.jinja").read_text()
    )
    return template.render(messages=messages, bos_token="<bos>", raise_exception=raise_error, **options)


def weights() -> dict[str, Any]:
    with (CHECKPOINT / "model.safetensors").open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header: dict[str, Any] = json.loads(file.read(length))
    return {name: entry for name, entry in header.items() if name != "__metadata__"}


def test_folder_is_complete_and_small() -> None:
    assert DEMO_NAME == "pedcxr-demo"
    assert {path.name for path in CHECKPOINT.iterdir()} == FILES
    assert sum(path.stat().st_size for path in CHECKPOINT.iterdir()) <= 4_000_000


def test_no_file_contains_a_path_of_the_training_machine() -> None:
    for path in CHECKPOINT.iterdir():
        assert not re.search(rb"/(work|root|home|tmp|Users)/", path.read_bytes()), path.name


def test_weights_are_named_as_in_the_published_checkpoints() -> None:
    names = weights()
    assert all(entry["dtype"] == "BF16" for entry in names.values())
    assert {name.split(".")[0] for name in names} == {"vision_tower", "multi_modal_projector", "language_model"}
    assert all(name.startswith("vision_tower.vision_model.") for name in names if name.startswith("vision_tower"))
    assert all(name.startswith("language_model.model.") for name in names if name.startswith("language_model"))
    assert "lm_head.weight" not in names, "the output is tied to the embedding"
    for name in (
        "vision_tower.vision_model.embeddings.patch_embedding.weight",
        "vision_tower.vision_model.encoder.layers.2.self_attn.q_proj.weight",
        "vision_tower.vision_model.post_layernorm.weight",
        "multi_modal_projector.mm_input_projection_weight",
        "multi_modal_projector.mm_soft_emb_norm.weight",
        "language_model.model.embed_tokens.weight",
        "language_model.model.layers.3.self_attn.q_norm.weight",
        "language_model.model.layers.3.pre_feedforward_layernorm.weight",
        "language_model.model.norm.weight",
    ):
        assert name in names


def test_config_is_that_of_gemma_3(tokenizer: Tokenizer) -> None:
    config, text, vision = read("config.json"), read("config.json")["text_config"], read("config.json")["vision_config"]
    assert config["architectures"] == ["Gemma3ForConditionalGeneration"] and config["model_type"] == "gemma3"
    assert (text["model_type"], vision["model_type"]) == ("gemma3_text", "siglip_vision_model")
    assert config["tie_word_embeddings"] and text["tie_word_embeddings"]
    assert vision["image_size"] // vision["patch_size"] == 16 and config["mm_tokens_per_image"] == 64
    assert text["head_dim"] == text["query_pre_attn_scalar"] == 32, "head size that vLLM's CPU attention supports"
    assert text["num_key_value_heads"] < text["num_attention_heads"]
    assert set(text["layer_types"]) == {"sliding_attention", "full_attention"}
    assert text["max_position_embeddings"] >= 2048 and text["sliding_window"] >= config["mm_tokens_per_image"]
    assert text["vocab_size"] % 64 == 0 and text["vocab_size"] >= tokenizer.get_vocab_size()
    shape = weights()["language_model.model.embed_tokens.weight"]["shape"]
    assert shape == [text["vocab_size"], text["hidden_size"]]


def test_special_ids_agree_everywhere(tokenizer: Tokenizer) -> None:
    config, generation, settings = read("config.json"), read("generation_config.json"), read("tokenizer_config.json")
    token_id = tokenizer.token_to_id
    assert [token_id(token) for token in SPECIAL] == list(range(len(SPECIAL)))
    assert config["image_token_index"] == token_id(settings["image_token"]) == token_id("<image_soft_token>")
    assert config["boi_token_index"] == token_id(settings["boi_token"]) == token_id("<start_of_image>")
    assert config["eoi_token_index"] == token_id(settings["eoi_token"]) == token_id("<end_of_image>")
    assert generation["eos_token_id"] == config["eos_token_id"] == [token_id("<eos>"), token_id("<end_of_turn>")]
    assert (generation["pad_token_id"], generation["bos_token_id"]) == (token_id("<pad>"), token_id("<bos>"))


def test_processor_prepares_224_pixels_and_64_tokens_without_crops() -> None:
    processor, image = read("processor_config.json"), read("preprocessor_config.json")
    assert processor["processor_class"] == image["processor_class"] == "Gemma3Processor"
    assert processor["image_seq_length"] == image["image_seq_length"] == 64
    assert processor["image_processor"] | {"processor_class": "Gemma3Processor"} == image
    assert image["size"] == {"height": 224, "width": 224} and not image["do_pan_and_scan"]
    assert image["image_mean"] == image["image_std"] == [0.5, 0.5, 0.5] and image["resample"] == 2


def test_tokenizer_equals_a_new_build(tokenizer: Tokenizer) -> None:
    assert json.loads(build().to_str()) == json.loads(tokenizer.to_str())


@pytest.mark.parametrize(
    "text",
    [
        PROMPT,
        "Ăâ șț 你好 🩻 naïve",
        "tabs\t, CR\r\n and\n\n\n\n\n\n newlines",
        "  two  spaces  ",
        "<0x0A> ▲ \x00 \u200b",
        "",
        *(expected_report.text(sample(seed)) for seed in range(20)),
    ],
)
def test_tokenizer_round_trips_any_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_to_id("<unk>") not in ids


def test_tokenizer_has_the_entries_vllm_looks_up_and_splits_digits(tokenizer: Tokenizer) -> None:
    for entry in NEWLINES:
        assert tokenizer.encode(entry, add_special_tokens=False).tokens == [entry]
    assert tokenizer.encode("a 117-month", add_special_tokens=False).tokens == ["a", "▁", "1", "1", "7", "-", "month"]
    assert tokenizer.encode("a").tokens == ["<bos>", "a"]


def test_every_report_is_short(tokenizer: Tokenizer) -> None:
    lengths = [len(tokenizer.encode(expected_report.text(sample(seed))).ids) for seed in range(300)]
    assert max(lengths) < 120 and 30 < sum(lengths) / len(lengths) < 60


def test_template_renders_the_turns_of_gemma() -> None:
    parts = [{"type": "image"}, {"type": "text", "text": f" {PROMPT}\n"}]
    expected = f"<bos><start_of_turn>user\n<start_of_image>{PROMPT}<end_of_turn>\n<start_of_turn>model\n"
    assert fill([{"role": "user", "content": parts}], add_generation_prompt=True) == expected
    openai = [{"type": "image_url", "image_url": {"url": "data:,"}}, {"type": "text", "text": PROMPT}]
    assert fill([{"role": "user", "content": openai}], add_generation_prompt=True) == expected
    assert (CHECKPOINT / "chat_template.jinja").read_text() == TEMPLATE


def test_template_accepts_strings_system_messages_and_several_turns() -> None:
    for system in ("Be brief.", [{"type": "text", "text": "Be brief."}]):
        turns: list[dict[str, Any]] = [
            {"role": "system", "content": system},
            {"role": "user", "content": "One"},
            {"role": "assistant", "content": "Two"},
            {"role": "user", "content": "Three"},
        ]
        assert fill(turns) == (
            "<bos><start_of_turn>user\nBe brief.\n\nOne<end_of_turn>\n<start_of_turn>model\nTwo<end_of_turn>\n"
            "<start_of_turn>user\nThree<end_of_turn>\n"
        )


def test_template_refuses_turns_that_do_not_alternate() -> None:
    with pytest.raises(ValueError, match="alternate"):
        fill([{"role": "user", "content": "One"}, {"role": "user", "content": "Two"}])


def test_model_card_has_its_warnings_and_results() -> None:
    text = (CHECKPOINT / "README.md").read_text()
    for words in ("Synthetic", "No medical use", "apache-2.0", "demo_training.train", "Exact reports:"):
        assert words in text


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_unseen_films_are_reported_in_transformers() -> None:
    from demo_training import evaluate

    result = evaluate.run(CHECKPOINT, 20, first=evaluate.UNSEEN + 5_000)
    assert result.exact >= 19


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_wording_follows_the_age_in_the_prompt() -> None:
    import torch
    from transformers import AutoProcessor, Gemma3ForConditionalGeneration

    from demo_training import evaluate

    model = Gemma3ForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(CHECKPOINT)
    wide_mediastinum = (Finding(Kind.WIDE_MEDIASTINUM),)
    ages = [Age(3, "D"), Age(5, "W"), Age(11, "M"), Age(2, "Y"), Age(3, "Y"), Age(10, "Y"), Age(12, "Y"), None]
    for age in ages:
        case = Case(age, "M", wide_mediastinum)
        assert evaluate.read(model, processor, case, evaluate.UNSEEN) == expected_report.text(case), card(age)
