"""Transformers as a child process that keeps a model loaded and generates reports when asked, alone or in a batch."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Model:
    """A child process with a loaded model."""

    process: subprocess.Popen[str]

    def generate(self, films: Sequence[Path]) -> tuple[float, list[int]]:
        """Generate the reports of a batch of films. Return the seconds and the number of tokens of each report."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps([str(film) for film in films]) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("transformers ended; its error is above")
        answer = json.loads(line)
        return answer["seconds"], answer["tokens"]


@contextmanager
def loaded(folder: Path, dtype: str, prompt: str, tokens: int) -> Iterator[Model]:
    """Load a checkpoint in a child process until the end of the block."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.benchmarks.throughput.batched_transformers"]
    command += [str(folder), dtype, prompt, str(tokens)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Model(process)
        finally:
            process.terminate()


def serve(folder: str, dtype: str, prompt: str, tokens: int) -> None:
    """Answer each line of stdin, a JSON list of films, with a line of JSON."""
    import torch
    from PIL import Image
    from transformers import AutoProcessor, Gemma3ForConditionalGeneration

    processor = AutoProcessor.from_pretrained(folder)
    processor.tokenizer.padding_side = "left"
    model = Gemma3ForConditionalGeneration.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()

    def conversation(film: str) -> list[dict[str, Any]]:
        with Image.open(film) as image:
            content = [{"type": "image", "image": image.convert("RGB")}, {"type": "text", "text": prompt}]
        return [{"role": "user", "content": content}]

    for line in sys.stdin:
        films = json.loads(line)
        start = time.perf_counter()
        inputs = processor.apply_chat_template(
            [conversation(film) for film in films],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        ).to(dtype=getattr(torch, dtype))
        with torch.inference_mode():
            out = model.generate(**inputs, max_new_tokens=tokens, do_sample=False, top_k=None, top_p=None)
        rows = out[:, inputs["input_ids"].shape[1] :]
        texts = [processor.decode(row, skip_special_tokens=True) for row in rows]
        seconds = time.perf_counter() - start
        assert all(texts)
        print(json.dumps({"seconds": seconds, "tokens": [len(row) for row in rows]}), flush=True)


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
