"""Write the checkpoint's model card."""

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

**Synthetic. No medical use.** This model was trained only on drawings of children's chests that pedcxr's own code
generates. It was never trained on a film of a person, and its report of a real film is meaningless.

With this model, pedcxr can be run, tested and measured on any machine. It has the architecture, the file layout and the
prompt format of MedGemma-4B-IT-Ped: `Gemma3ForConditionalGeneration`, a SigLIP vision tower, Gemma's turns and special
tokens. It has 1.3 million parameters: images of 224 x 224 pixels, patches of 14 pixels, 3 vision layers of width 96,
64 image tokens, 4 text layers of width 128 and a vocabulary of 640. No weight, token or text comes from another model.

One sentence depends on the age in the prompt: a wide upper mediastinum is a normal thymus under 3 years, and abnormal
from 3 years or at an unknown age. The drawings do not show the age, so a correct report proves that the model received
both the film and the prompt.

## Use

Use greedy decoding and one film, which comes before the text:

    from transformers import AutoProcessor, Gemma3ForConditionalGeneration

    model = Gemma3ForConditionalGeneration.from_pretrained(folder, dtype="float32")
    processor = AutoProcessor.from_pretrained(folder)
    prompt = "Generate a radiology report for this chest X-ray of a 5-year-old male."
    content = [{{"type": "image", "image": film}}, {{"type": "text", "text": prompt}}]
    inputs = processor.apply_chat_template(
        [{{"role": "user", "content": content}}],
        add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
    )
    tokens = model.generate(**inputs, do_sample=False, max_new_tokens=200)
    report = processor.decode(tokens[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True)

## Training

    python -m demo_training.train --out CHECKPOINT --seed {seed}

{films} drawings, {minutes:.0f} minutes on 2 cores.

## Evaluation

On {count} drawings that were not used in training (seeds from {first}), with greedy decoding in transformers, float32.

{table}

## Licence

Apache-2.0, the pedcxr authors.
"""


def text(result: evaluate.Result, *, seed: int, minutes: float, films: int) -> str:
    """Return the model card in Markdown, with the figures of an evaluation."""
    return _CARD.format(
        seed=seed,
        films=films,
        minutes=minutes,
        count=result.count,
        first=evaluate.UNSEEN,
        table=evaluate.table(result),
    )
