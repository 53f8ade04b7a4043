"""The files next to the weights: processor, chat template, tokenizer, generation config.

Fine-tuned models often lack some of these files. A wrong file is worse than a missing one: without `<end_of_image>` (as
in the tokenizer of MedGemma 1.0.0) or with a wrong image size, the model still writes fluent reports.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pedcxr_serve.checkpoint.architecture import Shape
from pedcxr_serve.checkpoint.problems import Problem, read_json, report_dangling

_REMEDY = "copy it from the base model's folder (google/medgemma-4b-it, 1.0.1 or later)"
_END_OF_TURN = "<end_of_turn>"
# The marks of MedGemma 1.5, and the variables by which templates switch such a mode on.
_THOUGHTS = re.compile(r"<unused9[45]>|thinking", re.IGNORECASE)
# vLLM 0.32 (models/gemma3_mm.py) merges newline tokens through these entries; without them every request fails.
_NEWLINES = ("\n", "\n\n", "\n\n\n", "\n\n\n\n")


@dataclass(frozen=True, slots=True)
class ProcessorFiles:
    """The name of the file that provides each item, or "" if there is none."""

    processor: str
    chat_template: str
    tokenizer: str
    generation_config: str


def inspect(folder: Path, shape: Shape | None, problems: list[Problem]) -> ProcessorFiles:
    """Find the files next to the weights; add missing and incompatible ones to `problems`."""
    tokenizer, ids = _tokenizer(folder, shape, problems)
    return ProcessorFiles(
        processor=_processor(folder, shape, problems),
        chat_template=_chat_template(folder, problems),
        tokenizer=tokenizer,
        generation_config=_generation_config(folder, ids.get(_END_OF_TURN), problems),
    )


def _processor(folder: Path, shape: Shape | None, problems: list[Problem]) -> str:
    # transformers 5 saves the image processor inside processor_config.json, transformers 4 in preprocessor_config.json.
    before = len(problems)
    outer = read_json(folder / "processor_config.json", problems) or {}
    separate = read_json(folder / "preprocessor_config.json", problems)
    name, settings = "processor_config.json", outer.get("image_processor")
    if not isinstance(settings, dict):
        name, settings = "preprocessor_config.json", separate
    if settings is None:
        if len(problems) == before:
            what = "is missing, and processor_config.json contains no image processor"
            problems.append(Problem("block", "preprocessor_config.json", what, _REMEDY))
        return ""
    size = settings.get("size")
    if shape and isinstance(size, dict) and {size.get("height"), size.get("width")} != {shape.vision.image_size}:
        what = f"resizes images to {size}, but the vision tower expects {shape.vision.image_size} px"
        problems.append(Problem("block", name, what, _REMEDY))
    if settings.get("do_pan_and_scan"):
        what = "enables pan-and-scan: a film would use the tokens of several images"
        problems.append(Problem("warn", name, what, "set do_pan_and_scan to false"))
    tokens = outer.get("image_seq_length", settings.get("image_seq_length"))
    if shape and tokens is not None and tokens != shape.image_tokens:
        what = f"uses {tokens} tokens per image, but config.json says {shape.image_tokens}"
        problems.append(Problem("block", name, what, _REMEDY))
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
        problems.append(
            Problem("block", "chat_template.jinja", "is missing, and no other file contains a template", _REMEDY)
        )
        return ""
    if "image" not in text:
        what = "does not mention images: the prompt may not contain the film"
        problems.append(Problem("warn", source, what, _REMEDY))
    if _THOUGHTS.search(text):
        what = "has a mode in which the model thinks aloud: every client would get the thoughts as part of the report"
        problems.append(Problem("warn", source, what, "use the template of a base without it, such as MedGemma 1"))
    return source


def _generation_config(folder: Path, end_of_turn: int | None, problems: list[Problem]) -> str:
    name = "generation_config.json"
    before = len(problems)
    if (config := read_json(folder / name, problems)) is not None:
        eos = config.get("eos_token_id")
        if end_of_turn is not None and end_of_turn not in (eos if isinstance(eos, list) else [eos]):
            what = f"has eos_token_id {eos} without {end_of_turn}, the id of {_END_OF_TURN}: reports would never end"
            problems.append(Problem("block", name, what, f"add {end_of_turn} to eos_token_id"))
        return name
    if len(problems) == before:
        what = "is missing: without the end-of-turn token, reports may run to the token limit"
        problems.append(Problem("warn", name, what, _REMEDY))
    return ""


def _tokenizer(folder: Path, shape: Shape | None, problems: list[Problem]) -> tuple[str, Mapping[str, int]]:
    path = folder / "tokenizer.json"
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        what = "is missing" + (" (tokenizer.model cannot be checked)" if (folder / "tokenizer.model").exists() else "")
        if not report_dangling(path, problems):
            problems.append(Problem("block", path.name, what, _REMEDY))
        return "", {}
    except OSError as error:
        problems.append(Problem("block", path.name, f"cannot be read ({error.strerror})", "fix its permissions"))
        return path.name, {}
    ids = _token_ids(raw)
    if ids is None:
        problems.append(Problem("block", path.name, "is not a valid tokenizer file", "download the file again"))
        return path.name, {}
    if shape:
        required_ids = {
            "<start_of_image>": shape.boi_token,
            "<end_of_image>": shape.eoi_token,
            "<image_soft_token>": shape.image_token,
        }
        for token, expected in required_ids.items():
            if ids.get(token) != expected:
                actual = "no id" if token not in ids else f"id {ids[token]}"
                problems.append(
                    Problem("block", path.name, f"gives {token} {actual}, but config.json says {expected}", _REMEDY)
                )
    absent = [repr(text) for text in _NEWLINES if text not in ids]
    if absent:
        what = f"lacks the entries {', '.join(absent)}, which vLLM requires for Gemma 3"
        problems.append(Problem("block", path.name, what, _REMEDY))
    return path.name, ids


def _token_ids(raw: bytes) -> Mapping[str, int] | None:
    """Return the ids of added tokens and newline entries, or None if the file is invalid.

    Gemma's file has 33 MB and takes 0.5 s to parse. The added tokens are near its start, and a text search finds the
    newlines. The file is parsed completely only if these two steps do not find all ids.
    """
    ids_near_start = _ids_without_parsing(raw)
    if ids_near_start is not None and all(text in ids_near_start for text in _NEWLINES):
        return ids_near_start
    try:
        parsed: Any = json.loads(raw)
        vocabulary = parsed["model"]["vocab"]
        ids = dict(vocabulary) if isinstance(vocabulary, dict) else {}
        ids |= {token["content"]: token["id"] for token in parsed.get("added_tokens") or []}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return ids


def _ids_without_parsing(raw: bytes) -> dict[str, int] | None:
    start = re.search(rb'"added_tokens"\s*:\s*', raw[:4096])
    if start is None or not raw.rstrip().endswith(b"}"):
        return None
    try:
        # latin-1 preserves byte positions; the required tokens are ASCII.
        added, _ = json.JSONDecoder().raw_decode(raw.decode("latin-1"), start.end())
        ids = {token["content"]: token["id"] for token in added}
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    for text in _NEWLINES:
        entry = re.search(b'"' + rb"\\n" * len(text) + rb'"\s*:\s*(\d+)', raw)
        if text not in ids and entry:
            ids[text] = int(entry[1])
    return ids
