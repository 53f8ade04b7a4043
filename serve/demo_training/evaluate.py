"""``python -m demo_training.evaluate``: exact reports and findings on unseen drawn films, greedy, in float32."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm
from transformers import AutoProcessor, Gemma3ForConditionalGeneration

from pedcxr_client.request.prompts import card
from pedcxr_serve.demo import CHECKPOINT, drawing, expected_report
from pedcxr_serve.demo.findings import Case, sample

UNSEEN = 1_000_000
"""The first seed of the films that are not used in training."""


@dataclass(frozen=True, slots=True)
class Result:
    """The result of an evaluation.

    Attributes:
        count: number of reports.
        exact: number of reports that equal the expected report.
        findings: for each label, true positives, false negatives, true negatives and false positives.
        wrong: seed and text of each report that differs.
    """

    count: int
    exact: int
    findings: dict[str, tuple[int, int, int, int]]
    wrong: tuple[tuple[int, str], ...]


def run(folder: Path, count: int, *, first: int = UNSEEN) -> Result:
    """Report ``count`` unseen films with the corrected quick start of the real model's card."""
    model = Gemma3ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder)
    tally = {name: [0, 0, 0, 0] for name in expected_report.FINDINGS}
    wrong = []
    for seed in tqdm(range(first, first + count), "reporting films"):
        case = sample(seed)
        text, expected = read(model, processor, case, seed), expected_report.text(case)
        if text != expected:
            wrong.append((seed, text))
        for name, counts in tally.items():
            present, reported = name in expected_report.labels(expected), name in expected_report.labels(text)
            counts[(0 if reported else 1) if present else (3 if reported else 2)] += 1
    findings = {name: (counts[0], counts[1], counts[2], counts[3]) for name, counts in tally.items()}
    return Result(count, count - len(wrong), findings, tuple(wrong))


def read(model: Gemma3ForConditionalGeneration, processor: AutoProcessor, case: Case, seed: int) -> str:
    """Return the model's report of one drawn film, from its PNG."""
    film = Image.open(BytesIO(drawing.encode_png(drawing.render(case, seed)))).convert("RGB")
    words = card(case.age, case.sex)
    messages = [{"role": "user", "content": [{"type": "image", "image": film}, {"type": "text", "text": words}]}]
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    with torch.inference_mode():
        tokens = model.generate(**inputs, do_sample=False, top_k=None, top_p=None, max_new_tokens=200)
    return str(processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


def table(result: Result) -> str:
    """Return the result in Markdown."""
    lines = [
        f"Exact reports: {result.exact} of {result.count} ({result.exact / result.count:.1%}).",
        "",
        "| finding | films | sensitivity | specificity |",
        "|---|---|---|---|",
    ]
    for name, (hit, miss, clear, false) in result.findings.items():
        films = hit + miss
        lines.append(f"| {name} | {films} | {hit / max(films, 1):.1%} | {clear / max(clear + false, 1):.1%} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table, and each report that is not exact."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=CHECKPOINT)
    parser.add_argument("--count", type=int, default=500)
    args = parser.parse_args()
    torch.set_num_threads(2)
    result = run(args.model, args.count)
    print(table(result))
    for seed, text in result.wrong:
        print(f"\nseed {seed}\n  expected: {expected_report.text(sample(seed))!r}\n  report:   {text!r}")


if __name__ == "__main__":
    main()
