"""The corrected quick start of the model card, in transformers: the reference for parity and for speed.

The card's code does not pass the image to the chat template, gets text instead of tensors from it, and decodes the
prompt together with the report. This version corrects these errors and decodes greedily, in float32 by default.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

MAX_NEW_TOKENS = 500


@dataclass(frozen=True, slots=True)
class Question:
    """The path of a film (an opaque 8-bit image), and its prompt."""

    film: str
    prompt: str


@dataclass(frozen=True, slots=True)
class Options:
    """How transformers generates.

    Attributes:
        dtype: name of a type of torch.
        device: ``"cpu"`` or ``"cuda"``.
        random_weights: make up the weights, and generate exactly ``max_new_tokens`` tokens.
        margins: also return by how much the logit of each token was above the second best.
    """

    max_new_tokens: int = MAX_NEW_TOKENS
    dtype: str = "float32"
    device: str = "cpu"
    random_weights: bool = False
    margins: bool = False


@dataclass(frozen=True, slots=True)
class Answers:
    """The reports of the model, one film at a time.

    Attributes:
        ids: token ids without the final end-of-turn token.
        texts: the decoded tokens.
        seconds: wall time of all reports including image processing, without loading and one warm-up report.
        prompt_tokens: tokens of each prompt with its image.
        margins: of each token, the end-of-turn token included; empty unless asked for.
    """

    ids: list[list[int]]
    texts: list[str]
    seconds: float
    prompt_tokens: list[int]
    margins: list[list[float]]


def ask(
    folder: Path,
    questions: Sequence[Question],
    *,
    adapter: Path | None = None,
    python: Path = Path(sys.executable),
    options: Options = Options(),
) -> Answers:
    """Run `answer` in a separate process, so that this process need not import torch and transformers.

    Args:
        adapter: of PEFT, for which ``python`` must have PEFT.
    """
    command = [python, "-W", "ignore", "-m", "tests.benchmarks.transformers_baseline", folder]
    command += [] if adapter is None else [adapter]
    text = json.dumps({"options": asdict(options), "questions": [asdict(question) for question in questions]})
    process = subprocess.run(command, input=text, stdout=subprocess.PIPE, text=True, check=True)
    return Answers(**json.loads(process.stdout))


def answer(folder: Path, questions: Sequence[Question], options: Options, *adapters: Path) -> Answers:
    """Load the checkpoint in ``folder``, put the adapters on it, and generate a report of each film."""
    import torch
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(folder)
    model = _load(folder, options)
    for adapter in adapters:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter).eval()
    end = processor.tokenizer.convert_tokens_to_ids("<end_of_turn>")
    least = {"min_new_tokens": options.max_new_tokens} if options.random_weights else {}
    answers = Answers([], [], 0.0, [], [])

    def generate(question: Question) -> None:
        inputs = inputs_of(processor, question).to(device=options.device, dtype=getattr(torch, options.dtype))
        length = inputs["input_ids"].shape[1]
        with torch.inference_mode():
            out = model.generate(
                **inputs,
                **least,
                max_new_tokens=options.max_new_tokens,
                do_sample=False,
                top_k=None,
                top_p=None,
                return_dict_in_generate=True,
                output_scores=options.margins,
            )
        ids: list[int] = out.sequences[0, length:].tolist()
        answers.ids.append(ids[:-1] if ids[-1] == end else ids)
        answers.prompt_tokens.append(length)
        if options.margins:
            best = [torch.topk(scores[0].float(), 2).values.tolist() for scores in out.scores]
            answers.margins.append([first - second for first, second in best])

    generate(questions[0])
    for values in (answers.ids, answers.prompt_tokens, answers.margins):
        values.clear()
    start = time.perf_counter()
    for question in questions:
        generate(question)
    seconds = time.perf_counter() - start
    texts = [processor.decode(ids, skip_special_tokens=True) for ids in answers.ids]
    return replace(answers, texts=texts, seconds=seconds)


def _load(folder: Path, options: Options) -> Any:
    import torch
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    dtype = getattr(torch, options.dtype)
    if not options.random_weights:
        return Gemma3ForConditionalGeneration.from_pretrained(folder, dtype=dtype).to(options.device).eval()
    torch.set_default_dtype(dtype)
    with torch.device(options.device):
        return Gemma3ForConditionalGeneration(Gemma3Config.from_pretrained(folder)).eval()


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
    folder, *adapters = map(Path, sys.argv[1:])
    asked = json.load(sys.stdin)
    questions, options = [Question(**one) for one in asked["questions"]], Options(**asked["options"])
    json.dump(asdict(answer(folder, questions, options, *adapters)), sys.stdout)
