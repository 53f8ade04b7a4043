"""The files beside the weights: processor, chat template, tokenizer, generation config.

Fine-tuned models often come without some of them, and a wrong one is worse than none: without `<end_of_image>` (the
tokenizers of MedGemma 1.0.0) or with another image size the model still writes fluent reports.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pedcxr_serve.checkpoint.architecture import Shape
from pedcxr_serve.checkpoint.problems import Problem, read_json

__all__ = ["Companions", "inspect"]

_BASE = "copy it from the base model's folder (google/medgemma-4b-it, 1.0.1 or later)"
# vLLM's models/gemma3_mm.py merges newline tokens by these entries and fails at the first request without them.
_NEWLINES = ("\n", "\n\n", "\n\n\n", "\n\n\n\n")


@dataclass(frozen=True, slots=True)
class Companions:
    """The file each companion was found in, or ""."""

    processor: str
    chat_template: str
    tokenizer: str
    generation_config: str


def inspect(folder: Path, sizes: Shape | None, problems: list[Problem]) -> Companions:
    """PixelStats for the companions; what is missing or does not fit the model is added to `problems`."""
    return Companions(
        processor=_processor(folder, sizes, problems),
        chat_template=_chat_template(folder, problems),
        tokenizer=_tokenizer(folder, sizes, problems),
        generation_config=_generation_config(folder, problems),
    )


def _processor(folder: Path, sizes: Shape | None, problems: list[Problem]) -> str:
    # transformers 5 nests the image processor in processor_config.json; 4 wrote it to preprocessor_config.json.
    before = len(problems)
    outer = read_json(folder / "processor_config.json", problems) or {}
    found = next(
        (
            (name, settings)
            for name, settings in (
                ("processor_config.json", outer.get("image_processor")),
                ("preprocessor_config.json", read_json(folder / "preprocessor_config.json", problems)),
            )
            if isinstance(settings, dict)
        ),
        None,
    )
    if found is None:
        if len(problems) == before:
            what = "is missing (nor is there a processor_config.json with an image processor)"
            problems.append(Problem("block", "preprocessor_config.json", what, _BASE))
        return ""
    name, settings = found
    size = settings.get("size")
    if sizes and isinstance(size, dict) and {size.get("height"), size.get("width")} != {sizes.vision.image_size}:
        what = f"resizes images to {size}, the vision tower expects {sizes.vision.image_size} px"
        problems.append(Problem("block", name, what, _BASE))
    if settings.get("do_pan_and_scan"):
        what = "turns pan-and-scan on: a film would take several images' tokens"
        problems.append(Problem("warn", name, what, "set do_pan_and_scan to false"))
    tokens = outer.get("image_seq_length", settings.get("image_seq_length"))
    if sizes and tokens is not None and tokens != sizes.image_tokens:
        what = f"gives an image {tokens} tokens, config.json {sizes.image_tokens}"
        problems.append(Problem("block", name, what, _BASE))
    return name


def _chat_template(folder: Path, problems: list[Problem]) -> str:
    source, text = "", ""
    jinja = folder / "chat_template.jinja"
    if jinja.is_file():
        source, text = jinja.name, jinja.read_text(encoding="utf-8", errors="replace")
    else:
        for name in ("chat_template.json", "tokenizer_config.json"):
            template = (read_json(folder / name, []) or {}).get("chat_template")
            if template:
                source, text = name, template if isinstance(template, str) else json.dumps(template)
                break
    if not text.strip():
        problems.append(Problem("block", "chat_template.jinja", "is missing (nor is a template elsewhere)", _BASE))
        return ""
    if "image" not in text:
        what = "never mentions images: the film might not reach the prompt"
        problems.append(Problem("warn", source, what, _BASE))
    return source


def _generation_config(folder: Path, problems: list[Problem]) -> str:
    name = "generation_config.json"
    before = len(problems)
    if read_json(folder / name, problems) is not None:
        return name
    if len(problems) == before:
        what = "is missing: the model may not know the token that ends its turn, and reports run on to the limit"
        problems.append(Problem("warn", name, what, _BASE))
    return ""


def _tokenizer(folder: Path, sizes: Shape | None, problems: list[Problem]) -> str:
    path = folder / "tokenizer.json"
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        what = "is missing" + (
            " (tokenizer.model alone cannot be checked)" if (folder / "tokenizer.model").exists() else ""
        )
        problems.append(Problem("block", path.name, what, _BASE))
        return ""
    except OSError as error:
        problems.append(Problem("block", path.name, f"cannot be read ({error.strerror})", "mend its permissions"))
        return path.name
    ids = _token_ids(raw)
    if ids is None:
        problems.append(Problem("block", path.name, "is not a valid tokenizer file", "download the file again"))
        return path.name
    if sizes:
        wanted = {
            "<start_of_image>": sizes.boi_token,
            "<end_of_image>": sizes.eoi_token,
            "<image_soft_token>": sizes.image_token,
        }
        for token, expected in wanted.items():
            if ids.get(token) != expected:
                found = "no id" if token not in ids else f"id {ids[token]}"
                problems.append(
                    Problem("block", path.name, f"gives {token} {found}, config.json says {expected}", _BASE)
                )
    absent = [repr(text) for text in _NEWLINES if text not in ids]
    if absent:
        what = f"lacks the entries {', '.join(absent)}, which vLLM needs for Gemma 3"
        problems.append(Problem("block", path.name, what, _BASE))
    return path.name


def _token_ids(raw: bytes) -> Mapping[str, int] | None:
    """Ids of added tokens and newline entries; None for a broken file.

    Gemma's file is 33 MB, 0.5 s to parse whole. The added tokens stand near its start and the newlines can be found as
    text, so the whole is parsed only when that does not answer everything.
    """
    quick = _quick_ids(raw)
    if quick is not None and all(text in quick for text in _NEWLINES):
        return quick
    try:
        parsed: Any = json.loads(raw)
        vocabulary = parsed["model"]["vocab"]
        ids = dict(vocabulary) if isinstance(vocabulary, dict) else {}
        ids |= {entry["content"]: entry["id"] for entry in parsed.get("added_tokens") or []}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return ids


def _quick_ids(raw: bytes) -> dict[str, int] | None:
    start = re.search(rb'"added_tokens"\s*:\s*', raw[:4096])
    if start is None or not raw.rstrip().endswith(b"}"):
        return None
    try:
        # latin-1 keeps byte positions; the tokens that matter are ASCII.
        added, _ = json.JSONDecoder().raw_decode(raw.decode("latin-1"), start.end())
        ids = {entry["content"]: entry["id"] for entry in added}
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    for text in _NEWLINES:
        found = re.search(b'"' + rb"\\n" * len(text) + rb'"\s*:\s*(\d+)', raw)
        if text not in ids and found:
            ids[text] = int(found[1])
    return ids
