"""The checkpoint's model card."""

from __future__ import annotations

from demo_training import evaluate

_CARD = """\
---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
tags: [synthetic, demo, not-for-medical-use]
---

# pedcxr-demo

**Synthetic. No medical use.** This model has never seen a film of a person. It was trained only on drawings of
children's chests that pedcxr's own code makes, and what it says of a real film means nothing.

It exists so that pedcxr can be run, tested and measured on any machine: it has the architecture, the file layout and
the prompt format of MedGemma-4B-IT-Ped (`Gemma3ForConditionalGeneration`, a SigLIP tower, Gemma's turns and special
tokens) at 1.3 million parameters: 224 x 224 pixels, patches of 14, 3 vision layers of 96, 64 image tokens, 4 text
layers of 128 and a vocabulary of 640. No weight, token or text was taken from another model.

One wording follows the age in the prompt: a wide upper mediastinum is a normal thymus under 3 years and abnormal from
3 years, or at an unknown age. The drawings do not betray the age, so a right report proves that both film and prompt
arrived.

## Use

Greedy decoding, one film, the film before the words:

    from transformers import AutoProcessor, Gemma3ForConditionalGeneration

    model = Gemma3ForConditionalGeneration.from_pretrained(folder, dtype="float32")
    processor = AutoProcessor.from_pretrained(folder)
    words = "Generate a radiology report for this chest X-ray of a 5-year-old male."
    content = [{{"type": "image", "image": film}}, {{"type": "text", "text": words}}]
    inputs = processor.apply_chat_template(
        [{{"role": "user", "content": content}}],
        add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
    )
    tokens = model.generate(**inputs, do_sample=False, max_new_tokens=200)
    report = processor.decode(tokens[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True)

## Made by

    python -m demo_training.train --out CHECKPOINT --seed {seed}

{films} drawings, {minutes:.0f} minutes on 2 cores.

## Measured

On {count} drawings that the training did not see (seeds from {first}), greedy, float32, transformers.

{table}

## Licence

Apache-2.0, the pedcxr authors.
"""


def text(result: evaluate.Result, *, seed: int, minutes: float, films: int) -> str:
    """The card, in Markdown, with the figures of a result."""
    return _CARD.format(
        seed=seed,
        films=films,
        minutes=minutes,
        count=result.count,
        first=evaluate.UNSEEN,
        table=evaluate.table(result),
    )
