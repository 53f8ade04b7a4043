"""What a model folder holds and whether it can be served: read from JSON files and safetensors headers alone.

No torch, no GPU, no weights read: milliseconds, where vLLM would find the same fault after minutes of loading.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pedcxr_serve.checkpoint import processor_files, weights
from pedcxr_serve.checkpoint.architecture import Shape, parse
from pedcxr_serve.checkpoint.problems import Problem, read_json
from pedcxr_serve.checkpoint.weights import KeyStyle
from pedcxr_serve.demo import DEMO_KEY
from pedcxr_serve.errors import CheckpointError, ConfigError

__all__ = ["ARCHITECTURE", "Checkpoint", "KeyStyle", "Problem", "inspect", "require_ready", "table"]

ARCHITECTURE = "Gemma3ForConditionalGeneration"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model folder as it was found.

    Attributes:
        architecture: First of config.json's `architectures`, or "".
        shape: None when config.json is unusable.
        dtypes: (name as safetensors writes it, bytes), the largest first.
        parameters: Weights in the shards, a redundant output layer of a tied model left out.
        weight_bytes: Bytes of all tensors.
        shards: (file name, bytes).
        key_style: How the vision tower's weights are named: ``vision_model`` (the infix that vLLM knows), ``flat``
            (transformers 5.8 and later; mapped at load by our plugin), ``mixed`` or ``none``.
        model_prefix: Whether names start with ``model.``; vLLM knows both forms.
        processor, chat_template, tokenizer, generation_config: The file it was found in, or "".
        demo: Whether config.json says that this is the demo checkpoint, wherever it was copied to.
        problems: Everything found wrong, blocks first.
    """

    folder: Path
    architecture: str
    shape: Shape | None
    dtypes: tuple[tuple[str, int], ...]
    parameters: int
    weight_bytes: int
    shards: tuple[tuple[str, int], ...]
    key_style: KeyStyle
    model_prefix: bool
    processor: str
    chat_template: str
    tokenizer: str
    generation_config: str
    demo: bool
    problems: tuple[Problem, ...]

    @property
    def ready(self) -> bool:
        """Whether it can be served: nothing blocks."""
        return not any(problem.severity == "block" for problem in self.problems)


def inspect(folder: Path) -> Checkpoint:
    """PixelStats at a model folder. Faults of the checkpoint become `problems`, not exceptions.

    Raises:
        ConfigError: There is no such folder.
    """
    if not folder.is_dir():
        raise ConfigError(
            f"model = '{folder}': no such folder. Give the folder that holds config.json and the weights."
        )
    problems: list[Problem] = []
    config = read_json(folder / "config.json", problems)
    if config is None and not problems:
        problems.append(Problem("block", "config.json", "is missing", "copy it from the base model's folder"))
    architecture, sizes = _read_config(config or {}, problems) if config is not None else ("", None)
    shards = weights.read(folder, problems)
    tensors = {name: tensor for shard in shards for name, tensor in shard.tensors.items()}
    if tensors:
        weights.compare(tensors, sizes, problems)
    redundant = {name for name in tensors if name.endswith("lm_head.weight")} if sizes and sizes.tied else set()
    dtypes: Counter[str] = Counter()
    for tensor in tensors.values():
        dtypes[tensor.dtype] += tensor.nbytes
    companions = processor_files.inspect(folder, sizes, problems)
    return Checkpoint(
        folder=folder,
        architecture=architecture,
        shape=sizes,
        dtypes=tuple(dtypes.most_common()),
        parameters=sum(tensor.elements for name, tensor in tensors.items() if name not in redundant),
        weight_bytes=sum(dtypes.values()),
        shards=tuple((shard.name, shard.nbytes) for shard in shards),
        key_style=weights.key_style(tensors),
        model_prefix=bool(tensors) and all(name.startswith("model.") or name == "lm_head.weight" for name in tensors),
        processor=companions.processor,
        chat_template=companions.chat_template,
        tokenizer=companions.tokenizer,
        generation_config=companions.generation_config,
        demo=(config or {}).get(DEMO_KEY) is True,
        problems=tuple(sorted(problems, key=lambda problem: problem.severity != "block")),
    )


def require_ready(checkpoint: Checkpoint) -> None:
    """Pass a servable checkpoint.

    Raises:
        CheckpointError: Listing everything that blocks, with the remedies.
    """
    blocks = [problem for problem in checkpoint.problems if problem.severity == "block"]
    if blocks:
        lines = [f"  {problem.where} {problem.what}: {problem.remedy}." for problem in blocks]
        raise CheckpointError("\n".join([f"{checkpoint.folder} cannot be served:", *lines]))


def _read_config(config: Mapping[str, object], problems: list[Problem]) -> tuple[str, Shape | None]:
    names = config.get("architectures")
    found = names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""
    if found != ARCHITECTURE:
        what = f"names {found}" if found else "names no architecture"
        remedy = f"pedcxr serves {ARCHITECTURE} only; give a MedGemma 4B (Gemma 3 with vision) folder"
        problems.append(Problem("block", "config.json: architectures", what, remedy))
        return found, None
    if "quantization_config" in config:
        what = "the weights are quantised; figures of `plan` assume bfloat16 and reports were never compared"
        problems.append(Problem("warn", "config.json: quantization_config", what, "compare reports before use"))
    sizes, bad = parse(config)
    for key, what in bad:
        problems.append(Problem("block", f"config.json: {key}", what, "copy config.json from the base model's folder"))
    return found, sizes


def table(checkpoint: Checkpoint) -> str:
    """What `pedcxr-serve check` prints: one line a fact, then the verdict and the remedies."""
    sizes = checkpoint.shape
    rows = [("folder", str(checkpoint.folder)), ("architecture", checkpoint.architecture or "not found")]
    if sizes:
        text = f"{sizes.layers} layers of {sizes.hidden}, {sizes.heads} heads ({sizes.kv_heads} KV) of {sizes.head_dim}"
        vision = sizes.vision
        rows += [
            ("text", f"{text}, vocabulary {sizes.vocab:,}{', tied' if sizes.tied else ''}"),
            ("attention", f"{sizes.sliding_layers} of {sizes.layers} layers slide over {sizes.sliding_window} tokens"),
            (
                "vision",
                f"{vision.layers} layers of {vision.hidden}, {vision.image_size} px in patches of {vision.patch_size}",
            ),
            ("image", f"{sizes.image_tokens} tokens"),
        ]
    dtypes = ", ".join(f"{name} {nbytes / 1e9:.2f} GB" for name, nbytes in checkpoint.dtypes) or "none"
    rows += [
        ("weights", f"{checkpoint.parameters:,} parameters in {len(checkpoint.shards)} file(s): {dtypes}"),
        ("names", checkpoint.key_style + (", with model. prefix" if checkpoint.model_prefix else "")),
        ("processor", checkpoint.processor or "missing"),
        ("chat template", checkpoint.chat_template or "missing"),
        ("tokenizer", checkpoint.tokenizer or "missing"),
        ("generation config", checkpoint.generation_config or "missing"),
    ]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {value}" for name, value in rows]
    for problem in checkpoint.problems:
        lines += [
            f"{problem.severity.upper():<{width}}  {problem.where}: {problem.what}",
            f"{'':<{width}}  -> {problem.remedy}",
        ]
    blocks = sum(problem.severity == "block" for problem in checkpoint.problems)
    warns = len(checkpoint.problems) - blocks
    verdict = "can be served" if not blocks else f"cannot be served: {blocks} problem(s) block"
    return "\n".join([*lines, f"{'verdict':<{width}}  {verdict}" + (f", {warns} warning(s)" if warns else "")])
