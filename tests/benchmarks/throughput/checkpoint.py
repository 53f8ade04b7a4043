"""Create a mid-size checkpoint of the demo's architecture with made-up weights, on which batching decides the speed.

    python -m tests.benchmarks.throughput.checkpoint FOLDER

It has 173 million parameters, films of 224 pixels and 64 image tokens. The demo model of 1.3 million parameters shows
the fixed cost of an engine step instead. Special tokens and single bytes have an embedding of zero, so that neither an
end token nor half a character is ever the likeliest: every report has exactly `max_tokens` tokens of random words.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from demo_training import model

TEXT = {
    "hidden_size": 896,
    "intermediate_size": 3456,
    "num_hidden_layers": 14,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "query_pre_attn_scalar": 128,
    "sliding_window": 1024,
    "layer_types": [*["sliding_attention"] * 5, "full_attention", *["sliding_attention"] * 5, "full_attention"]
    + ["sliding_attention"] * 2,
    "initializer_range": 0.02,
}
VISION = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 4}


def main(folder: Path) -> None:
    """Write the checkpoint into a folder."""
    processor = model.save_processor(folder)
    base = model.make_config(len(processor.tokenizer)).to_dict()
    ids = ("boi_token_index", "eoi_token_index", "image_token_index", "eos_token_id")
    config = Gemma3Config(
        text_config=base["text_config"] | TEXT,
        vision_config=base["vision_config"] | VISION,
        mm_tokens_per_image=model.IMAGE_TOKENS,
        tie_word_embeddings=True,
        architectures=["Gemma3ForConditionalGeneration"],
        dtype="bfloat16",
        **{name: base[name] for name in ids},
    )
    torch.manual_seed(0)
    network = Gemma3ForConditionalGeneration._from_config(
        config, dtype=torch.float32, attn_implementation="sdpa"
    )  # fmt: skip
    torch.nn.init.normal_(network.model.multi_modal_projector.mm_input_projection_weight, std=0.02)
    embedding = network.get_input_embeddings().weight
    words = [
        number
        for word, number in processor.tokenizer.get_vocab().items()
        if word.startswith("▁") and len(word) > len("▁ab")
    ]
    is_word = torch.zeros(embedding.shape[0], 1)
    is_word[words] = 1
    with torch.no_grad():
        embedding.mul_(is_word)
    model.save(network, folder)
    parameters = sum(weight.numel() for weight in network.parameters())
    print(f"{folder}: {parameters / 1e6:.0f} million parameters, {len(words)} words")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
