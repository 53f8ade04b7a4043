"""The settings of a training: three named recipes, and the modules that each trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pedcxr_serve.errors import ConfigError

Module = Literal["text", "vision", "projector", "head"]
MODULES: tuple[Module, ...] = ("text", "vision", "projector", "head")

_LINEARS: dict[str, str] = {
    "text": r"language_model\..*\.(?:q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)",
    "vision": r"vision_tower\..*\.(?:q_proj|k_proj|v_proj|out_proj|fc1|fc2)",
}
_WHOLE: dict[str, tuple[str, ...]] = {"projector": ("multi_modal_projector",), "head": ("lm_head", "embed_tokens")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """The settings of a training that decide its result; equal recipes on equal data and machines give equal weights.

    Attributes:
        method: ``lora`` trains an adapter, ``full`` the weights of the model.
        modules: What is trained. LoRA adapts the linear layers of ``text`` and ``vision``, and trains ``projector`` and
            ``head`` (the output layer and the embedding, which stay tied) as a whole.
        rank, alpha, dropout: Of LoRA; unused by ``full``.
        batch, accumulate: Films per step on the device, and steps per update of the weights.
        precision: Of the computation. ``auto`` is bf16 on a GPU, and float32 on a CPU, where autocast is slower: 4.3
            instead of 0.65 s of CPU time for 16 films of the demo checkpoint on a CPU with AVX2.
        quantize: Load the frozen weights in 4 bits (QLoRA; GPU and bitsandbytes only).
        deterministic: On a GPU, use only kernels that give the same digits in each run. Those of a CPU do.
        steps: Number of updates; 0 follows from ``epochs``.
        warmup: Share of the updates during which the learning rate rises.
        validation: Share of the patients that is set aside if the data state no split.
    """

    name: str
    method: Literal["lora", "full"] = "lora"
    modules: tuple[Module, ...] = ("text",)
    rank: int = 16
    alpha: int = 32
    dropout: float = 0.05
    learning_rate: float = 2e-4
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup: float = 0.03
    epochs: float = 3.0
    steps: int = 0
    batch: int = 1
    accumulate: int = 16
    precision: Literal["auto", "bf16", "float32"] = "auto"
    gradient_checkpointing: bool = False
    quantize: bool = False
    deterministic: bool = False
    validation: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.quantize and self.method == "full":
            raise ConfigError("--quantize: weights in 4 bits cannot be trained; use --recipe text or card.")
        if self.method == "lora" and not {"text", "vision"} & set(self.modules):
            raise ConfigError("--modules: LoRA needs text or vision; add one, or use --recipe full.")

    @property
    def target_modules(self) -> str:
        """The expression that the full names of LoRA's linear layers match (PEFT ``target_modules``)."""
        return rf".*(?:{'|'.join(_LINEARS[name] for name in self.modules if name in _LINEARS)})"

    @property
    def modules_to_save(self) -> list[str]:
        """The modules that LoRA copies and trains as a whole (PEFT ``modules_to_save``)."""
        return [name for module in self.modules for name in _WHOLE.get(module, ())]

    @property
    def serving(self) -> str:
        """How the result is served, for a message before the training starts."""
        if self.method == "full":
            return "the result is a complete checkpoint: `pedcxr-serve start --model DIR`"
        if self.modules_to_save:
            return f"vLLM cannot serve it beside its base ({', '.join(self.modules_to_save)} are trained): merge it"
        if "vision" in self.modules:
            return "vLLM does not serve adapters of the vision tower beside their base: merge it"
        return "vLLM can serve it beside its base, or merged"


RECIPES: dict[str, Recipe] = {
    "text": Recipe(name="text"),
    # The settings on the card of MedGemma-4B-IT-Ped; Google's notebook for MedGemma has the same modules.
    "card": Recipe(name="card", modules=("text", "vision", "head")),
    "full": Recipe(name="full", method="full", modules=("text", "projector", "head"), learning_rate=1e-5),
}
