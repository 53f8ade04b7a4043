"""The corrected quick start of the model card, in transformers: the reference for parity and for speed.

The card's code does not pass the image to the chat template, gets text instead of tensors from it, and decodes the
prompt together with the report. This version corrects these errors and decodes greedily in float32.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MAX_NEW_TOKENS = 500


@dataclass(frozen=True, slots=True)
class Question:
    """The path of a film (an opaque 8-bit image), and its prompt."""

    film: str
    prompt: str


@dataclass(frozen=True, slots=True)
class Answers:
    """The reports of the model, one film at a time.

    Attributes:
        ids: token ids without the final end-of-turn token.
        texts: the decoded tokens.
        seconds: wall time of all reports including image processing, without loading and one warm-up report.
    """

    ids: list[list[int]]
    texts: list[str]
    seconds: float


def ask(
    folder: Path,
    questions: Sequence[Question],
    max_new_tokens: int = MAX_NEW_TOKENS,
    *,
    adapter: Path | None = None,
    python: Path = Path(sys.executable),
) -> Answers:
    """Run `answer` in a separate process, so that this process need not import torch and transformers.

    Args:
        adapter: of PEFT, for which ``python`` must have PEFT.
    """
    command = [python, "-W", "ignore", "-m", "tests.benchmarks.transformers_baseline", folder, str(max_new_tokens)]
    command += [] if adapter is None else [adapter]
    text = json.dumps([asdict(question) for question in questions])
    process = subprocess.run(command, input=text, stdout=subprocess.PIPE, text=True, check=True)
    return Answers(**json.loads(process.stdout))


def answer(folder: Path, questions: Sequence[Question], max_new_tokens: int, *adapters: Path) -> Answers:
    """Load the checkpoint in ``folder``, put the adapters on it, and generate a report of each film."""
    import torch
    from transformers import AutoProcessor, Gemma3ForConditionalGeneration

    processor = AutoProcessor.from_pretrained(folder)
    model = Gemma3ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    for adapter in adapters:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter).eval()
    end = processor.tokenizer.convert_tokens_to_ids("<end_of_turn>")

    def generate(question: Question) -> list[int]:
        inputs = inputs_of(processor, question)
        with torch.inference_mode():
            out = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, top_k=None, top_p=None)
        ids: list[int] = out[0, inputs["input_ids"].shape[1] :].tolist()
        return ids[:-1] if ids[-1] == end else ids

    generate(questions[0])
    start = time.perf_counter()
    ids = [generate(question) for question in questions]
    seconds = time.perf_counter() - start
    return Answers(ids, [processor.decode(one, skip_special_tokens=True) for one in ids], seconds)


def inputs_of(processor: Any, question: Question) -> Any:
    from PIL import Image

    with Image.open(question.film) as film:
        content = [{"type": "image", "image": film.convert("RGB")}, {"type": "text", "text": question.prompt}]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )


if __name__ == "__main__":
    questions = [Question(**one) for one in json.load(sys.stdin)]
    json.dump(asdict(answer(Path(sys.argv[1]), questions, int(sys.argv[2]), *map(Path, sys.argv[3:]))), sys.stdout)
