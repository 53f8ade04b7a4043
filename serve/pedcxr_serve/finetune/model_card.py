"""The model card of a fine-tuned model, in Markdown, from the record of its training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pedcxr_serve.finetune.dataset import Dataset
from pedcxr_serve.finetune.recipes import Recipe

_NOTICE = (
    "**Research use only. Not for diagnosis.** Every report is a draft for a qualified professional to review. A loss "
    "says nothing of the quality of reports: without a study by readers, it is unknown."
)


def summary(data: Dataset) -> str:
    """Return the counts of a data set and its notes, for a person."""
    skipped = "".join(f", {count} left out by {name}" for name, count in data.skipped.items())
    counts = (
        f"{len(data.train)} films for training, {len(data.validation)} for validation, {data.test} for test, "
        f"of {data.patients} patients{skipped}"
    )
    longest = max((len(example.report.split()) for example in data.train), default=0)
    lines = [counts, f"longest report: {longest} words", f"prompt {data.prompt_profile}, films {data.preparation}"]
    return "\n".join([*lines, *(f"note: {note}" for note in data.notes)])


def card(record: dict[str, Any]) -> str:
    """Return the card. It holds no film, no report, no name and no path of the data."""
    base, recipe, data, result = record["base"], record["recipe"], record["data"], record["result"]
    is_adapter = recipe["method"] == "lora"
    front = [
        "---",
        f"base_model: {json.dumps(base['model'])}",
        f"library_name: {'peft' if is_adapter else 'transformers'}",
        "pipeline_tag: image-text-to-text",
        "license: other",
        "license_name: as-the-base-model",
        "---",
    ]
    losses = {name.replace("_", " "): f"{value:.4f}" for name, value in result["losses"].items()}
    skipped = ", ".join(f"{count} by {name}" for name, count in data["skipped"].items()) or "none"
    sections = {
        "Base": {"model": base["model"], "revision": base["revision"]},
        "Data": {
            "sha256 of images, prompts and reports": data["sha256"],
            "films": f"{data['train']} training, {data['validation']} validation, {data['test']} test",
            "patients": data["patients"],
            "films left out by the intended-use checks": skipped,
            "checks that were allowed": ", ".join(data["allowed_checks"]) or "none",
            "prompt": data["prompt_profile"],
            "films prepared as": data["preparation"],
        },
        "Training": {
            name.replace("_", " "): _text(value)
            for name, value in recipe.items()
            if name != ("epochs" if recipe["steps"] else "steps")
        },
        "Result": {
            "updates": result["steps"],
            "trained parameters": f"{result['trained_parameters']:,} of {result['parameters']:,}",
            **losses,
            "seconds": result["seconds"],
            "device": result["device"],
        },
        "Versions": record["versions"],
    }
    lines = [
        *front,
        "",
        "# Draft reports of paediatric chest films",
        "",
        _NOTICE,
        "",
        "The licence and the terms of the base model apply to this model.",
    ]
    for title, rows in sections.items():
        lines += ["", f"## {title}", "", "| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())]
    lines += ["", *(f"Note: {note}.  " for note in data["notes"])] if data["notes"] else []
    return "\n".join([*lines, ""])


def _text(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def next_steps(folder: Path, recipe: Recipe, base: str) -> str:
    """Return what a person does with the result."""
    promote = f"--against {base} --films UNSEEN"
    if recipe.method == "full":
        return f"wrote {folder}\nnext: pedcxr-serve promote {folder} {promote}"
    lines = [f"wrote {folder}: {recipe.serving}", f"next: pedcxr-serve merge {folder} --out MERGED"]
    lines.append(f"then: pedcxr-serve promote MERGED {promote}")
    if recipe.modules == ("text",):
        lines.append(f"or beside the base: pedcxr-serve promote {folder} {promote}, then [adapters.NAME] in serve.toml")
    return "\n".join(lines)
