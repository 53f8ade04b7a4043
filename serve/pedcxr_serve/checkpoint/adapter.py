"""Inspect a LoRA adapter of PEFT before serving, from its JSON file and the header of its weights.

vLLM 0.32 ignores an adapter whose names match no module of the base (``lora/lora_model.py`` compares the last part of a
name only): it would answer with the base's reports under the adapter's name. So names and shapes are compared here.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pedcxr_serve.checkpoint import tensor_names, weights
from pedcxr_serve.checkpoint.architecture import Shape
from pedcxr_serve.checkpoint.problems import Problem, blocking, by_severity, read_json, refusal, report_dangling
from pedcxr_serve.checkpoint.weights import HeaderError, Shard
from pedcxr_serve.config import paths
from pedcxr_serve.errors import AdapterError, ConfigError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MAX_RANK = 512
"""Largest rank that vLLM 0.32 serves (``config/lora.py``)."""

# PEFT's options that vLLM 0.32 refuses (``lora/peft_helper.py``).
_UNSUPPORTED = (
    "use_dora", "lora_bias", "layer_replication", "alora_invocation_tokens", "use_bdlora", "use_qalora",
)  # fmt: skip
_PLAIN_INITS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")  # do not change the base's weights
_NAME = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])\.weight")
# The spellings of a module that vLLM maps to a module of its own (`hf_to_vllm_mapper` of models/gemma3_mm.py, and
# `vllm_plugin.weight_names`).
_SERVED = re.compile(r"(?:model\.language_model|language_model\.model|(?:model\.)?vision_tower)\.")
_REVISION = re.compile(r"[0-9a-f]{40}|sha256:[0-9a-f]{16}")
_MERGED_ONLY = (".multi_modal_projector.", ".lm_head.", ".embed_tokens.")
_MERGE = "merge it into its base with `pedcxr-serve merge`, and serve the merged checkpoint"
_LISTED = 3


@dataclass(frozen=True, slots=True)
class Adapter:
    """The contents of an adapter folder.

    Attributes:
        rank: The largest rank of a module; 0 if unknown.
        modules: Canonical names of the adapted modules that the base has; see `tensor_names.canonical`.
        parameters: Number of weights.
        revision: See `revision`; "" if a file is missing or invalid.
        base_revision: `revision` in adapter_config.json: that of the base on which the adapter was trained, or None.
        problems: All problems, those with severity ``block`` first.
    """

    folder: Path
    rank: int
    modules: tuple[str, ...]
    parameters: int
    revision: str
    base_revision: str | None
    problems: tuple[Problem, ...]

    @property
    def ready(self) -> bool:
        """Whether the adapter can be served, that is, no problem blocks."""
        return not blocking(self.problems)


def inspect(folder: Path, base: Shape, *, base_revision: str | None = None, rank: int | None = None) -> Adapter:
    """Inspect an adapter folder. Problems of the adapter are returned in `problems`, not raised.

    Args:
        base: Dimensions of the model that it is to be served with.
        base_revision: Of that model (`checkpoint.revision.of`), or None to compare no revisions.
        rank: The rank that the adapter must have, or None.

    Raises:
        ConfigError: The folder does not exist.
    """
    if not paths.is_dir(folder):
        raise ConfigError(f"'{folder}': no such folder. Give the folder of the adapter, which holds {CONFIG}.")
    problems: list[Problem] = []
    config = read_json(folder / CONFIG, problems)
    if config is None and not problems:
        problems.append(_block(CONFIG, "is missing", "give the folder that PEFT saved the adapter to"))
    ranks = _check_config(config, problems) if config is not None else frozenset[int]()
    recorded = (config or {}).get("revision")
    recorded = recorded if isinstance(recorded, str) and _REVISION.fullmatch(recorded) else None
    if config is not None and base_revision is not None:
        _check_base(recorded, base_revision, problems)
    if rank is not None and ranks and max(ranks) != rank:
        remedy = "correct `rank` in serve.toml, or give the adapter that has this rank"
        problems.append(_block(CONFIG, f"has rank {max(ranks)}, not {rank}", remedy))
    shard = _read_weights(folder, problems)
    modules = _check_names(shard, base, ranks, problems) if shard is not None else ()
    if shard is not None and shard.nbytes == shard.expected:
        weights.check_values(folder, [shard], problems)
        _check_effect(folder, shard, problems)
    return Adapter(
        folder=folder,
        rank=max(ranks, default=0),
        modules=modules,
        parameters=sum(tensor.elements for tensor in shard.tensors.values()) if shard is not None else 0,
        revision=revision(folder) if config is not None and shard is not None else "",
        base_revision=recorded,
        problems=by_severity(problems),
    )


def require_ready(adapter: Adapter) -> None:
    """Raise unless the adapter can be served.

    Raises:
        AdapterError: Lists every blocking problem with its remedy.
    """
    if message := refusal(f"{adapter.folder} cannot be served as an adapter:", adapter.problems):
        raise AdapterError(message)


def revision(folder: Path) -> str:
    """Return ``sha256:`` and 16 hex digits of the digest of an adapter's configuration and weights, read completely."""
    digest = hashlib.sha256()
    for name in (CONFIG, WEIGHTS):
        path = folder / name
        if path.is_file():
            digest.update(f"{name}\0{path.stat().st_size}\0".encode())
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
    return f"sha256:{digest.hexdigest()[:16]}"


def slot_parameters(base: Shape, rank: int) -> int:
    """Return the number of weights that vLLM reserves for one adapter: for every module of the text model.

    Source: ``lora/layers`` of vLLM 0.32, which allocate A (rank, input) and B (output, rank) for each module.
    """
    sizes = _modules(base)
    return sum(rank * sum(size) for name, size in sizes.items() if not _is_vision(name))


def table(name: str, adapter: Adapter) -> str:
    """Return the rows of an adapter for `pedcxr-serve check`: properties, problems with remedies, verdict."""
    tower = sum(map(_is_vision, adapter.modules))
    rows = [
        ("adapter", f"{name}: {adapter.folder}"),
        ("modules", f"{len(adapter.modules) - tower} of the text model, {tower} of the vision tower"),
        ("rank", f"{adapter.rank}, {adapter.parameters:,} parameters"),
        ("revision", f"{adapter.revision}, of base {adapter.base_revision or 'not recorded'}"),
    ]
    for problem in adapter.problems:
        rows += [(problem.severity.upper(), f"{problem.where}: {problem.what}"), ("", f"-> {problem.remedy}")]
    rows.append(("verdict", "can be served" if adapter.ready else "cannot be served"))
    return "\n".join(f"{label:<17}  {value}" for label, value in rows)


def _check_config(config: Mapping[str, Any], problems: list[Problem]) -> frozenset[int]:
    """Check the options of PEFT; return the valid ranks."""
    if config.get("peft_type") != "LORA":
        what = f"has peft_type {config.get('peft_type')!r}: only LORA adapters are served"
        problems.append(_block(CONFIG, what, _MERGE))
    if saved := config.get("modules_to_save"):
        what = f"has modules_to_save {saved}: these layers are complete copies, which vLLM cannot serve as an adapter"
        problems.append(_block(CONFIG, what, f"{_MERGE}, or train without modules_to_save"))
    for key in _UNSUPPORTED:
        if config.get(key):
            problems.append(_block(CONFIG, f"sets {key}, which vLLM cannot serve as an adapter", _MERGE))
    if config.get("bias", "none") != "none":
        problems.append(_block(CONFIG, f"has bias {config['bias']!r}, which vLLM cannot serve as an adapter", _MERGE))
    init = config.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower() not in _PLAIN_INITS:
        problems.append(_block(CONFIG, f"has init_lora_weights {init!r}, which changes the base's weights", _MERGE))
    alpha, pattern = config.get("lora_alpha"), config.get("rank_pattern") or {}
    if type(alpha) not in (int, float) or "target_modules" not in config:
        remedy = "give the folder that PEFT saved the adapter to"
        problems.append(_block(CONFIG, "lacks lora_alpha or target_modules", remedy))
    ranks = [config.get("r"), *(pattern.values() if isinstance(pattern, dict) else [None])]
    if any(type(rank) is not int or not 1 <= rank <= MAX_RANK for rank in ranks):
        what = f"has rank {config.get('r')!r} and rank_pattern {pattern!r}; a rank is an integer from 1 to {MAX_RANK}"
        problems.append(_block(CONFIG, what, _MERGE))
        return frozenset()
    return frozenset(rank for rank in ranks if isinstance(rank, int))


def _check_base(recorded: str | None, served: str, problems: list[Problem]) -> None:
    if recorded is None:
        what = "does not record the revision of its base: an adapter of another base of this size is not detected"
        remedy = f'if it was trained on this base, set "revision": "{served}" in the file'
        problems.append(Problem("warn", CONFIG, what, remedy))
    elif recorded != served:
        what = f"belongs to revision {recorded} of its base, but {served} is served"
        remedy = "serve the base on which it was trained, or train it on this one"
        problems.append(_block(CONFIG, what, remedy))


def _read_weights(folder: Path, problems: list[Problem]) -> Shard | None:
    path = folder / WEIGHTS
    remedy = "copy the adapter again"
    try:
        shard = weights.read_header(path)
    except FileNotFoundError:
        if report_dangling(path, problems):
            return None
        pickled = [name for name in ("adapter_model.bin", "adapter_model.pt") if (folder / name).exists()]
        if pickled:
            what = "is a pickled file, which can run code when it is read"
            remedy = "load it with PEFT where you trust it, and save it with save_pretrained(FOLDER)"
            problems.append(_block(pickled[0], what, remedy))
        else:
            problems.append(_block(WEIGHTS, "is missing", remedy))
    except OSError as error:
        problems.append(_block(WEIGHTS, f"cannot be read ({error.strerror})", "fix its permissions"))
    except HeaderError as error:
        problems.append(_block(WEIGHTS, str(error), remedy))
    else:
        if shard.nbytes != shard.expected:
            state = "is truncated" if shard.nbytes < shard.expected else "is too long"
            what = f"{state}: {shard.nbytes:,} bytes, but its header says {shard.expected:,}"
            problems.append(_block(WEIGHTS, what, remedy))
        return shard
    return None


def _check_names(shard: Shard, base: Shape, ranks: frozenset[int], problems: list[Problem]) -> tuple[str, ...]:
    """Compare names and shapes with the modules of the base; return the modules that exist."""
    known = _modules(base)
    pairs: dict[str, dict[str, tuple[int, ...]]] = {}
    unknown: list[str] = []
    merged_only: list[str] = []
    for name, tensor in shard.tensors.items():
        match = _NAME.fullmatch(name)
        module = tensor_names.canonical(match[1] + ".").removesuffix(".") if match and _SERVED.match(match[1]) else ""
        if match is None or module not in known:
            (merged_only if any(part in name for part in _MERGED_ONLY) else unknown).append(name)
        else:
            pairs.setdefault(module, {})[match[2]] = tensor.shape
    if merged_only:
        what = (
            f"adapts the projector, the embedding or the output layer ({_some(merged_only)}), only served when merged"
        )
        problems.append(_block(WEIGHTS, what, _MERGE))
    if unknown:
        what = f"contains {len(unknown)} of {len(shard.tensors)} weights that belong to no module of the base"
        remedy = "train the adapter on this base with the names of transformers; vLLM would ignore these weights"
        problems.append(_block(WEIGHTS, f"{what} ({_some(unknown)})", remedy))
    if not shard.tensors:
        problems.append(_block(WEIGHTS, "contains no weights", "copy the adapter again"))
    wrong = [name for name, pair in pairs.items() if ranks and not _fits(pair, known[name], ranks)]
    if wrong:
        sizes = " and ".join(f"{key} {shape}" for key, shape in sorted(pairs[wrong[0]].items()))
        what = f"has weights that do not fit the base or the rank in {len(wrong)} modules ({wrong[0]}: {sizes})"
        problems.append(_block(WEIGHTS, what, "give an adapter of this base, with its own adapter_config.json"))
    tower = [name for name in pairs if _is_vision(name)]
    if tower:
        what = f"adapts {len(tower)} modules of the vision tower, which the engine does not serve as an adapter"
        problems.append(_block(WEIGHTS, what, _MERGE))
    return tuple(pairs)


def _check_effect(folder: Path, shard: Shard, problems: list[Problem]) -> None:
    """Report an adapter whose lora_B weights are all 0, as PEFT initialises them: it changes no report."""
    outputs = [tensor for name, tensor in shard.tensors.items() if name.endswith(".lora_B.weight")]
    with (folder / WEIGHTS).open("rb") as file:
        for tensor in outputs:
            file.seek(shard.data_start + tensor.begin)
            if file.read(tensor.nbytes).strip(b"\0"):
                return
    if outputs:
        problems.append(_block(WEIGHTS, "has lora_B weights of 0 only: it is untrained", "give the trained adapter"))


def _modules(base: Shape) -> dict[str, tuple[int, ...]]:
    """Return canonical name and (output, input) of every linear module that an adapter can change."""
    return {
        name.removesuffix(".weight"): size
        for name, size in tensor_names.expected(base).items()
        if ".layers." in name and len(size) == 2
    }


def _fits(pair: Mapping[str, tuple[int, ...]], size: tuple[int, ...], ranks: Iterable[int]) -> bool:
    output, width = size
    return any(pair == {"A": (rank, width), "B": (output, rank)} for rank in ranks)


def _is_vision(module: str) -> bool:
    return module.startswith("vision_tower.")


def _some(names: list[str]) -> str:
    return ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")


def _block(where: str, what: str, remedy: str) -> Problem:
    return Problem("block", where, what, remedy)
