"""A small tokenizer in Gemma 3's format: byte-fallback BPE, single digits, Gemma's special tokens and turns."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from pedcxr_client.films.age import Age
from pedcxr_client.request.prompts import card
from pedcxr_client.types import Sex
from pedcxr_serve.demo import expected_report
from pedcxr_serve.demo.findings import SIDES, Case, Finding, Kind, sample, sample_age

SPECIAL = (
    *("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>"),
    *("<start_of_image>", "<end_of_image>", "<image_soft_token>"),
)
"""The special tokens; the id of each is its index."""

NEWLINES = ("\n", "\n\n", "\n\n\n", "\n\n\n\n")
"""Entries that vLLM 0.32 looks up when it inserts the image tokens into a prompt."""

TEMPLATE = """\
{{- bos_token -}}
{%- set ns = namespace(prefix='') -%}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set ns.prefix = messages[0]['content'] + '\\n\\n' -%}
    {%- else -%}
        {%- set ns.prefix = messages[0]['content'][0]['text'] + '\\n\\n' -%}
    {%- endif -%}
    {%- set turns = messages[1:] -%}
{%- else -%}
    {%- set turns = messages -%}
{%- endif -%}
{%- for message in turns -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{- raise_exception('Turns must alternate: user, assistant, user, assistant, ...') -}}
    {%- endif -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {{- '<start_of_turn>' + role + '\\n' + (ns.prefix if loop.first else '') -}}
    {%- if message['content'] is string -%}
        {{- message['content'] | trim -}}
    {%- else -%}
        {%- for part in message['content'] -%}
            {%- if part['type'] in ('image', 'image_url') -%}
                {{- '<start_of_image>' -}}
            {%- elif part['type'] == 'text' -%}
                {{- part['text'] | trim -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{- '<end_of_turn>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<start_of_turn>model\\n' -}}
{%- endif -%}
"""
"""The chat template. Its output is Gemma 3's, for plain strings and lists of parts."""


def _corpus() -> list[str]:
    """Return training texts that cover every wording of prompts and reports."""
    rng = np.random.default_rng(0)
    sexes: tuple[Sex | None, ...] = ("M", "F", None)
    prompts = [card(sample_age(rng), sex) for _ in range(200) for sex in sexes]
    cases = [sample(seed) for seed in range(400)]
    wide_mediastinum = [Case(age, None, (Finding(Kind.WIDE_MEDIASTINUM),)) for age in (None, Age(1, "Y"))] * 20
    lines = [Case(None, None, (Finding(Kind.LINE, side),)) for side in SIDES] * 20
    turns = ["user\nmodel\nsystem\n"] * 20
    return [*prompts, *(expected_report.text(case) for case in (*cases, *wide_mediastinum, *lines)), *turns]


def build(size: int = 640) -> Tokenizer:
    """Train the tokenizer with at most ``size`` entries; the result is deterministic."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Split(Regex("▁?[A-Za-z]+|[^A-Za-z]"), "isolated")
    letters = [chr(code) for code in range(33, 127)] + ["▁"]
    fixed = [*SPECIAL, *NEWLINES, *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(fixed) + len(letters), initial_alphabet=letters, show_progress=False
    )
    trained.train_from_iterator(_corpus(), trainer)
    merges = [tuple(pair) for pair in json.loads(trained.to_str())["model"]["merges"]]
    entries = dict.fromkeys([*fixed, *(first + second for first, second in merges)])
    newlines = [("\n", "\n"), ("\n\n", "\n\n"), ("\n\n", "\n")]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={entry: index for index, entry in enumerate(entries)},
            merges=[*newlines, *merges],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", SPECIAL.index("<bos>"))]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return tokenizer


def save(folder: Path, *, max_length: int) -> None:
    """Write ``tokenizer.json``, ``tokenizer_config.json`` and ``chat_template.jinja`` into a folder."""
    build().save(str(folder / "tokenizer.json"))
    multimodal = {
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "image_token": "<image_soft_token>",
    }
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        "backend": "tokenizers",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
        **multimodal,
        "model_specific_special_tokens": multimodal,
        "clean_up_tokenization_spaces": False,
        "spaces_between_special_tokens": False,
        "model_max_length": max_length,
        "padding_side": "left",
        "processor_class": "Gemma3Processor",
        "tokenizer_class": "GemmaTokenizer",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
