"""The dimensions of a Gemma 3 vision-language model, read from its config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# Google's config.json omits values that equal the class default. Source: transformers 5.19, Gemma3TextConfig and
# Gemma3Config in models/gemma3/configuration_gemma3.py, SiglipVisionConfig in models/siglip/configuration_siglip.py.
TEXT_DEFAULTS = {
    "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 262_208,
}  # fmt: skip
SLIDING_WINDOW_DEFAULT, SLIDING_PATTERN_DEFAULT = 4096, 6
VISION_DEFAULTS = {  # in the order of the fields of `VisionShape`
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "image_size": 224, "patch_size": 16,
}  # fmt: skip
MODEL_DEFAULTS = {
    "mm_tokens_per_image": 256, "boi_token_index": 255_999, "eoi_token_index": 256_000, "image_token_index": 262_144,
}  # fmt: skip
_MAX_SIZE = 1 << 24  # larger than any dimension of a real model


@dataclass(frozen=True, slots=True)
class VisionShape:
    """The SigLIP vision tower: widths, layers, heads; `image_size` and `patch_size` are side lengths in pixels."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    image_size: int
    patch_size: int

    @property
    def patches(self) -> int:
        """Number of patches per image."""
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True, slots=True)
class Shape:
    """The dimensions of a model that determine its memory and compute.

    Attributes:
        sliding_window: Window of the sliding-window layers in tokens, or None.
        sliding_layers: Number of sliding-window layers among `layers`.
        tied: Whether the output layer shares the weights of the embedding.
        image_tokens: Prompt tokens per image.
        boi_token, eoi_token, image_token: Ids of the begin-of-image, end-of-image and soft image token.
    """

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    sliding_window: int | None
    sliding_layers: int
    tied: bool
    vision: VisionShape
    image_tokens: int
    boi_token: int
    eoi_token: int
    image_token: int

    @property
    def layer_parameters(self) -> int:
        """Parameters of one text layer: attention, MLP and norms."""
        attention = self.hidden * self.head_dim * 2 * (self.heads + self.kv_heads)
        return attention + 3 * self.hidden * self.intermediate + 4 * self.hidden + 2 * self.head_dim

    @property
    def text_parameters(self) -> int:
        """Parameters that a decode step reads: text layers, final norm, output layer, and an untied embedding."""
        return self.layers * self.layer_parameters + self.hidden + self.hidden * self.vocab * (1 if self.tied else 2)


def parse(config: Mapping[str, object]) -> tuple[Shape | None, tuple[tuple[str, str], ...]]:
    """Read the dimensions from a config.json of transformers 4 or 5.

    Returns:
        The shape, or None if a value is invalid, and the invalid values as (key, problem).
    """
    errors: list[tuple[str, str]] = []

    def table(key: str) -> Mapping[str, object]:
        value = config.get(key) or {}
        if isinstance(value, dict):
            return value
        errors.append((key, f"must be an object, not {value!r}"))
        return {}

    def size(source: Mapping[str, object], prefix: str, key: str, defaults: Mapping[str, int], low: int = 1) -> int:
        value = source.get(key)
        value = defaults[key] if value is None else value
        if type(value) is int and low <= value <= _MAX_SIZE:
            return value
        errors.append((prefix + key, f"must be an integer between {low} and {_MAX_SIZE:,}, not {value!r}"))
        return 1

    text, vision = table("text_config"), table("vision_config")
    t = {key: size(text, "text_config.", key, TEXT_DEFAULTS) for key in TEXT_DEFAULTS}
    v = {key: size(vision, "vision_config.", key, VISION_DEFAULTS) for key in VISION_DEFAULTS}
    m = {key: size(config, "", key, MODEL_DEFAULTS, 0) for key in MODEL_DEFAULTS}
    window = text.get("sliding_window", SLIDING_WINDOW_DEFAULT)
    if window is not None and (type(window) is not int or window < 1):
        errors.append(("text_config.sliding_window", f"must be a positive integer or null, not {window!r}"))
        window = None
    if t["num_attention_heads"] % t["num_key_value_heads"]:
        what = f"{t['num_key_value_heads']} must divide the number of attention heads, {t['num_attention_heads']}"
        errors.append(("text_config.num_key_value_heads", what))
    if v["image_size"] < v["patch_size"]:
        errors.append(("vision_config.patch_size", f"{v['patch_size']} must not exceed image_size, {v['image_size']}"))
    sliding = _sliding_layers(text, t["num_hidden_layers"], errors)
    if errors:
        return None, tuple(errors)
    tied = config.get("tie_word_embeddings", text.get("tie_word_embeddings", True))
    return Shape(
        hidden=t["hidden_size"],
        intermediate=t["intermediate_size"],
        layers=t["num_hidden_layers"],
        heads=t["num_attention_heads"],
        kv_heads=t["num_key_value_heads"],
        head_dim=t["head_dim"],
        vocab=t["vocab_size"],
        sliding_window=window if isinstance(window, int) else None,
        sliding_layers=sliding,
        tied=tied is not False,
        vision=VisionShape(*v.values()),
        image_tokens=m["mm_tokens_per_image"],
        boi_token=m["boi_token_index"],
        eoi_token=m["eoi_token_index"],
        image_token=m["image_token_index"],
    ), ()


def _sliding_layers(text: Mapping[str, object], layers: int, errors: list[tuple[str, str]]) -> int:
    types = text.get("layer_types")
    if types is not None:
        if not isinstance(types, list) or len(types) != layers:
            errors.append(("text_config.layer_types", f"must be a list of {layers} layer types"))
            return 0
        return types.count("sliding_attention")
    pattern = text.get("sliding_window_pattern", text.get("_sliding_window_pattern", SLIDING_PATTERN_DEFAULT))
    if type(pattern) is not int or pattern < 1:
        errors.append(("text_config.sliding_window_pattern", f"must be a positive integer, not {pattern!r}"))
        return 0
    return layers - layers // pattern
