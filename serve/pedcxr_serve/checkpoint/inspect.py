"""Inspect a model folder before serving, from JSON files and safetensors headers only.

This takes milliseconds and needs neither torch nor a GPU. vLLM would report the same problem after minutes of loading.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pedcxr_serve.checkpoint import processor_files, weights
from pedcxr_serve.checkpoint.architecture import Shape, parse
from pedcxr_serve.checkpoint.problems import Problem, blocking, by_severity, read_json, refusal
from pedcxr_serve.checkpoint.processor_files import ProcessorFiles
from pedcxr_serve.checkpoint.weights import KeyStyle
from pedcxr_serve.demo import DEMO_KEY
from pedcxr_serve.errors import CheckpointError, ConfigError

ARCHITECTURE = "Gemma3ForConditionalGeneration"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The contents of a model folder.

    Attributes:
        architecture: The first of `architectures` in config.json, or "".
        shape: The dimensions, or None if config.json is invalid.
        dtypes: (safetensors name, bytes) by descending size.
        parameters: Number of parameters in the shards, without a redundant output layer of a tied model.
        shards: (file name, bytes).
        key_style: How the weights of the vision tower are named: ``vision_model`` (the infix that vLLM supports),
            ``flat`` (transformers 5.8 and later; the vLLM plugin maps these names), ``mixed`` or ``none``.
        model_prefix: Whether names start with ``model.``; vLLM supports both forms.
        demo: Whether config.json marks the demo checkpoint, also in a copy of it.
        problems: All problems, those with severity ``block`` first.
    """

    folder: Path
    architecture: str
    shape: Shape | None
    dtypes: tuple[tuple[str, int], ...]
    parameters: int
    shards: tuple[tuple[str, int], ...]
    key_style: KeyStyle
    model_prefix: bool
    files: ProcessorFiles
    demo: bool
    problems: tuple[Problem, ...]

    @property
    def ready(self) -> bool:
        """Whether the checkpoint can be served, that is, no problem blocks."""
        return not blocking(self.problems)


def inspect(folder: Path) -> Checkpoint:
    """Inspect a model folder. Problems of the checkpoint are returned in `problems`, not raised.

    Raises:
        ConfigError: The folder does not exist.
    """
    if not folder.is_dir():
        raise ConfigError(
            f"model = '{folder}': no such folder. Give the folder that contains config.json and the weights."
        )
    problems: list[Problem] = []
    config = read_json(folder / "config.json", problems)
    if config is None and not problems:
        problems.append(Problem("block", "config.json", "is missing", "copy it from the base model's folder"))
    architecture, shape = _read_config(config or {}, problems) if config is not None else ("", None)
    shards = weights.read(folder, problems)
    tensors = {name: tensor for shard in shards for name, tensor in shard.tensors.items()}
    if tensors:
        weights.compare(tensors, shape, problems, quantised="quantization_config" in (config or {}))
        weights.check_values(folder, shards, problems)
    redundant = {name for name in tensors if name.endswith("lm_head.weight")} if shape and shape.tied else set()
    dtypes: Counter[str] = Counter()
    for tensor in tensors.values():
        dtypes[tensor.dtype] += tensor.nbytes
    files = processor_files.inspect(folder, shape, problems)
    if config is None:  # nothing else of an adapter is to be mended
        problems = [problem for problem in problems if problem.where == "adapter_config.json"] or problems
    return Checkpoint(
        folder=folder,
        architecture=architecture,
        shape=shape,
        dtypes=tuple(dtypes.most_common()),
        parameters=sum(tensor.elements for name, tensor in tensors.items() if name not in redundant),
        shards=tuple((shard.name, shard.nbytes) for shard in shards),
        key_style=weights.key_style(tensors),
        model_prefix=bool(tensors) and all(name.startswith("model.") or name == "lm_head.weight" for name in tensors),
        files=files,
        demo=(config or {}).get(DEMO_KEY) is True,
        problems=by_severity(problems),
    )


def require_ready(checkpoint: Checkpoint) -> None:
    """Raise unless the checkpoint can be served.

    Raises:
        CheckpointError: Lists every blocking problem with its remedy.
    """
    if message := refusal(f"{checkpoint.folder} cannot be served:", checkpoint.problems):
        raise CheckpointError(message)


def _read_config(config: Mapping[str, object], problems: list[Problem]) -> tuple[str, Shape | None]:
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""
    if name != ARCHITECTURE:
        what = f"contains {name}" if name else "contains no architecture"
        remedy = f"pedcxr serves only {ARCHITECTURE}; give the folder of a MedGemma 4B model (Gemma 3 with vision)"
        problems.append(Problem("block", "config.json: architectures", what, remedy))
        return name, None
    if "quantization_config" in config:
        what = "marks quantised weights: the figures of `plan` assume bfloat16, and reports were not evaluated"
        remedy = "compare the reports with those of bfloat16 before use"
        problems.append(Problem("warn", "config.json: quantization_config", what, remedy))
    shape, errors = parse(config)
    for key, what in errors:
        problems.append(Problem("block", f"config.json: {key}", what, "copy config.json from the base model's folder"))
    return name, shape


def table(checkpoint: Checkpoint) -> str:
    """Return the output of `pedcxr-serve check`: properties, problems with remedies, verdict."""
    shape, files = checkpoint.shape, checkpoint.files
    rows = [("folder", str(checkpoint.folder)), ("architecture", checkpoint.architecture or "not found")]
    if shape:
        text = f"{shape.layers} layers of {shape.hidden}, {shape.heads} heads ({shape.kv_heads} KV) of {shape.head_dim}"
        windows, vision = f"{shape.sliding_layers} of {shape.layers} layers", shape.vision
        tower = f"{vision.layers} layers of {vision.hidden}"
        rows += [
            ("text", f"{text}, vocabulary {shape.vocab:,}{', tied' if shape.tied else ''}"),
            ("attention", f"{windows} with a {shape.sliding_window}-token window"),
            ("vision", f"{tower}, {vision.image_size} px, patches of {vision.patch_size} px"),
            ("image", f"{shape.image_tokens} tokens"),
        ]
    dtypes = ", ".join(f"{name} {nbytes / 1e9:.2f} GB" for name, nbytes in checkpoint.dtypes) or "none"
    rows += [
        ("weights", f"{checkpoint.parameters:,} parameters in {len(checkpoint.shards)} file(s): {dtypes}"),
        ("names", checkpoint.key_style + (", with model. prefix" if checkpoint.model_prefix else "")),
        ("processor", files.processor or "missing"),
        ("chat template", files.chat_template or "missing"),
        ("tokenizer", files.tokenizer or "missing"),
        ("generation config", files.generation_config or "missing"),
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
    verdict = "can be served" if not blocks else f"cannot be served: {blocks} blocking problem(s)"
    return "\n".join([*lines, f"{'verdict':<{width}}  {verdict}" + (f", {warns} warning(s)" if warns else "")])
