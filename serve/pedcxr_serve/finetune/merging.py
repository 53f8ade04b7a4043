"""Merge a LoRA adapter into its base, and prove that the merged model writes the adapter's report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from PIL import Image
from transformers import AutoProcessor, Gemma3ForConditionalGeneration
from transformers.utils import logging

from pedcxr_client.films.age import Age
from pedcxr_client.request import prompts
from pedcxr_serve.checkpoint import download, revision, weights
from pedcxr_serve.checkpoint.weights import HeaderError
from pedcxr_serve.demo import drawing
from pedcxr_serve.demo.findings import Case
from pedcxr_serve.errors import CheckpointError, ConfigError
from pedcxr_serve.finetune import checkpoint_files

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PROOF_TOKENS = 64


def merge(folder: Path, out: Path, *, base: str | None, revision: str | None, dtype: str | None) -> str:
    """Merge the adapter in ``folder`` and write the checkpoint to ``out``; return a sentence on the proof.

    The merge is computed in float32 (for the 4B model: 18 GB of memory) and rounded to ``dtype`` once.

    Raises:
        ConfigError: The folder holds no adapter, or the base is missing.
        CheckpointError: The adapter does not belong to the base, or the merged model writes another report.
    """
    logging.disable_progress_bar()
    config = _read_config(folder)
    base_folder = _base(folder, config, base, revision)
    model = Gemma3ForConditionalGeneration.from_pretrained(base_folder, dtype=torch.float32).eval()
    stored = json.loads((base_folder / "config.json").read_text(encoding="utf-8"))
    adapted = _load_adapter(model, folder)
    inputs = _question(AutoProcessor.from_pretrained(base_folder))
    before = _tokens(adapted, inputs)
    merged = adapted.merge_and_unload(safe_merge=True, progressbar=False)
    if _tokens(merged, inputs) != before:
        raise CheckpointError(f"{folder}: the merged model writes another report than the adapter; nothing was written")
    merged = merged.to(getattr(torch, dtype or stored.get("dtype") or stored.get("torch_dtype") or "bfloat16"))
    checkpoint_files.save(merged, base_folder, out)
    saved_model = Gemma3ForConditionalGeneration.from_pretrained(out, dtype=torch.float32).eval()
    after = _tokens(saved_model, inputs)
    same = next((n for n, (one, two) in enumerate(zip(before, after, strict=False)) if one != two), len(before))
    if after == before:
        return f"the first {len(before)} tokens of a report are those of the adapter"
    return f"note: rounded to {saved_model.config.dtype}, a report differs from the adapter's after {same} tokens"


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / _CONFIG
    if not path.is_file():
        complete = (folder / "config.json").is_file()
        hint = " It is a complete checkpoint, which needs no merge." if complete else ""
        raise ConfigError(f"{folder}: holds no {_CONFIG}.{hint} Give the folder of an adapter.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: is not valid JSON. Copy the adapter again.") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise CheckpointError(f"{path}: does not describe a LoRA adapter. Only these can be merged.")
    if not (folder / _WEIGHTS).is_file():
        pickled = " adapter_model.bin is a pickled file, which can run code." if any(folder.glob("*.bin")) else ""
        raise CheckpointError(f"{folder}: {_WEIGHTS} is missing.{pickled} Save the adapter as safetensors.")
    try:
        shard = weights.read_header(folder / _WEIGHTS)
    except HeaderError as error:
        raise CheckpointError(f"{folder}: {_WEIGHTS} {error}. Copy the adapter again.") from error
    if shard.nbytes != shard.expected:
        raise CheckpointError(
            f"{folder}: {_WEIGHTS} has {shard.nbytes:,} bytes, but its header says {shard.expected:,}. "
            "Copy the adapter again."
        )
    return config


def _base(folder: Path, config: dict[str, Any], base: str | None, revision_name: str | None) -> Path:
    name = base or config.get("base_model_name_or_path")
    if not name:
        raise ConfigError(f"{folder}: does not name its base model; add --base.")
    base_folder = download.resolve(name, revision_name, setting="--base")
    checkpoint_files.require_base(base_folder)
    recorded, actual = config.get("revision"), revision.of(base_folder)
    if recorded and recorded != actual:
        raise CheckpointError(
            f"{folder}: was trained on revision {recorded} of its base, but {name} is {actual}. Give --base and "
            "--revision of the model that it was trained on."
        )
    return base_folder


def _load_adapter(model: Any, folder: Path) -> Any:
    try:
        adapted = PeftModel.from_pretrained(model, folder, use_safetensors=True)
        names = {name for name, _ in adapted.named_parameters(remove_duplicate=False)}  # tied layers have two names
    except (RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{folder}: does not fit the base ({str(error).splitlines()[0]}). Give the base that it was trained on."
        ) from error
    shard = weights.read_header(folder / _WEIGHTS)
    loaded = {name.replace(".default", "").replace(".modules_to_save", "") for name in names}
    if unknown := sorted(set(shard.tensors) - loaded):
        raise CheckpointError(
            f"{folder}: {len(unknown)} of {len(shard.tensors)} weights belong to no module of the base ({unknown[0]}, "
            "...): they would have no effect. Give the base that it was trained on."
        )
    return adapted.eval()


def _question(processor: Any) -> Any:
    """Return the inputs of a drawn film; the report of any film shows whether two models agree."""
    film = Image.fromarray(drawing.render(Case(Age(5, "Y"), "M", ()), 1)).convert("RGB")
    content = [{"type": "image", "image": film}, {"type": "text", "text": prompts.card(Age(5, "Y"), "M")}]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )


def _tokens(model: Any, inputs: Any) -> list[int]:
    with torch.inference_mode():
        ids = model.generate(**inputs, max_new_tokens=_PROOF_TOKENS, do_sample=False, top_k=None, top_p=None)
    tokens: list[int] = ids[0, inputs["input_ids"].shape[1] :].tolist()
    return tokens
