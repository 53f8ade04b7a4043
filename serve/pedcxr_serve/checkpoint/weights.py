"""The weights of a model folder: shards, index, names; their headers, never their data."""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pedcxr_serve.checkpoint.architecture import Shape
from pedcxr_serve.checkpoint.problems import Problem, read_json

__all__ = ["HeaderError", "KeyStyle", "Shard", "Tensor", "compare", "key_style", "read", "read_header"]

KeyStyle = Literal["vision_model", "flat", "mixed", "none"]
_INDEX = "model.safetensors.index.json"


def read(folder: Path, problems: list[Problem]) -> list[Shard]:
    """The headers of all shards that belong to the model; what is missing or broken is added to `problems`."""
    names = sorted(path.name for path in folder.glob("*.safetensors") if not path.name.startswith("adapter_"))
    weight_map = _weight_map(folder, problems)
    if weight_map is not None:
        names = sorted(set(weight_map.values()))
    elif not names and not _explain_no_weights(folder, problems):
        remedy = "download the folder again; safetensors files are needed"
        problems.append(Problem("block", "*.safetensors", "no weights found", remedy))
    elif len(names) > 1:
        _check_numbering(names, problems)
    shards = [shard for name in names if (shard := _read_shard(folder / name, problems)) is not None]
    if weight_map is not None:
        _check_index(weight_map, shards, problems)
    return shards


def _weight_map(folder: Path, problems: list[Problem]) -> dict[str, str] | None:
    index = read_json(folder / _INDEX, problems)
    if index is None:
        return None
    weight_map = index.get("weight_map")
    if isinstance(weight_map, dict) and weight_map and all(_plain(name) for name in weight_map.values()):
        return weight_map
    problems.append(Problem("block", _INDEX, "has no usable weight_map", "download the file again"))
    return None


def _plain(name: object) -> bool:
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & {"/", "\\", "\0"}


def _explain_no_weights(folder: Path, problems: list[Problem]) -> bool:
    if (folder / "adapter_config.json").exists():
        what = "holds a LoRA adapter, not a model"
        adapter = read_json(folder / "adapter_config.json", problems) or {}
        saved = adapter.get("modules_to_save")
        if saved:
            what += f", with modules_to_save {saved}, which vLLM refuses to load as an adapter"
        remedy = (
            "merge it into its base model first (peft: model.merge_and_unload().save_pretrained(FOLDER)) and copy the "
            "base model's processor and tokenizer files beside it"
        )
        problems.append(Problem("block", "adapter_config.json", what, remedy))
        return True
    if any(folder.glob("*.bin")) or any(folder.glob("*.gguf")):
        remedy = "load it with transformers and save_pretrained(FOLDER), which writes safetensors"
        problems.append(Problem("block", "*.safetensors", "the weights are in another format (.bin, .gguf)", remedy))
        return True
    return False


def _check_numbering(names: list[str], problems: list[Problem]) -> None:
    totals = {int(found[1]) for name in names if (found := re.search(r"-of-(\d+)\.safetensors$", name))}
    if totals and totals != {len(names)}:
        what = f"{len(names)} shards of {max(totals)} are here, and there is no {_INDEX}"
        problems.append(Problem("block", "*.safetensors", what, "download the missing shards and the index"))
    else:
        problems.append(Problem("warn", _INDEX, "is missing", "download it, so that missing weights can be seen"))


def _read_shard(path: Path, problems: list[Problem]) -> Shard | None:
    again = "download the file again"
    try:
        shard = read_header(path)
    except FileNotFoundError:
        problems.append(Problem("block", path.name, f"is missing, and {_INDEX} names it", "download it"))
    except OSError as error:
        problems.append(Problem("block", path.name, f"cannot be read ({error.strerror})", "mend its permissions"))
    except HeaderError as error:
        problems.append(Problem("block", path.name, str(error), again))
    else:
        if shard.nbytes != shard.expected:
            how = "was cut short" if shard.nbytes < shard.expected else "is longer than it should be"
            what = f"{how}: {shard.nbytes:,} bytes where its header says {shard.expected:,}"
            problems.append(Problem("block", path.name, what, again))
        return shard
    return None


def _check_index(weight_map: Mapping[str, str], shards: Iterable[Shard], problems: list[Problem]) -> None:
    for shard in shards:
        absent = [name for name, file in weight_map.items() if file == shard.name and name not in shard.tensors]
        if absent:
            what = f"lacks {len(absent)} weights that {_INDEX} places in it ({absent[0]}, ...)"
            problems.append(Problem("block", shard.name, what, "download shard and index of the same revision"))
        extra = [name for name in shard.tensors if name not in weight_map]
        if extra:
            what = f"holds {len(extra)} weights that {_INDEX} does not name ({extra[0]}, ...)"
            problems.append(Problem("warn", shard.name, what, "download shard and index of the same revision"))


def key_style(tensors: Iterable[str]) -> KeyStyle:
    """How these names spell the vision tower."""
    vision = [name for name in tensors if "vision_tower." in name]
    infix = sum("vision_tower.vision_model." in name for name in vision)
    if not vision:
        return "none"
    return "vision_model" if infix == len(vision) else "mixed" if infix else "flat"


def compare(tensors: Mapping[str, Tensor], sizes: Shape | None, problems: list[Problem]) -> None:
    """Check the weights' names and sizes against the config."""
    again = "save the model again with transformers, whole, from one class"
    style = key_style(tensors)
    if style in ("none", "mixed"):
        what = "hold no vision tower" if style == "none" else "name the vision tower in two ways"
        problems.append(Problem("block", "weights", what, again))
    elif style == "flat":
        what = "name the vision tower without the vision_model infix (transformers 5.8 and later)"
        remedy = "nothing to do: pedcxr's plugin maps the names; bare vLLM would refuse them"
        problems.append(Problem("warn", "weights", what, remedy))
    if sizes is None:
        return
    if sizes.tied and any(name.endswith("lm_head.weight") for name in tensors):
        what = "hold an output layer (lm_head) although config.json ties it to the embedding: it will be ignored"
        remedy = "if it was trained, set tie_word_embeddings to false; else drop it"
        problems.append(Problem("warn", "weights", what, remedy))
    embedding = next((t.shape for name, t in tensors.items() if name.endswith("embed_tokens.weight")), None)
    if embedding is not None and embedding != (sizes.vocab, sizes.hidden):
        what = f"have an embedding of {embedding}, config.json says {(sizes.vocab, sizes.hidden)}"
        problems.append(Problem("block", "weights", what, "use config.json and weights of the same model"))
    layers = {int(found[1]) for name in tensors if (found := re.search(r"language_model.*\.layers\.(\d+)\.", name))}
    if layers != set(range(sizes.layers)):
        what = f"hold {len(layers)} text layers, config.json says {sizes.layers}"
        problems.append(Problem("block", "weights", what, "download the missing shards, or the right config.json"))


HEADER_LIMIT = 100_000_000  # as safetensors itself (MAX_HEADER_SIZE)
# Bits of one element.
DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64, "F4": 4,
}  # fmt: skip


class HeaderError(ValueError):
    """The file is not a safetensors file, or not a whole one."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor: element type as the file names it, shape, bytes."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Shard:
    """One safetensors file.

    Attributes:
        name: File name without folder.
        nbytes: Length of the file.
        expected: Length that the header calls for; equal to `nbytes` in a whole file.
        tensors: By name.
    """

    name: str
    nbytes: int
    expected: int
    tensors: dict[str, Tensor]


def read_header(path: Path) -> Shard:
    """Read one header, without the data.

    Raises:
        HeaderError: In words that fit after the file's name.
        OSError: The file is missing or unreadable.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        if len(head) < 8:
            raise HeaderError(f"is {size} bytes long, so it has no safetensors header")
        (length,) = struct.unpack("<Q", head)
        if length > HEADER_LIMIT:
            raise HeaderError(f"claims a header of {length} bytes: it is not a safetensors file (or a git-lfs pointer)")
        raw = file.read(length)
    if len(raw) < length:
        raise HeaderError(f"was cut short inside its header ({size} of at least {8 + length} bytes)")
    try:
        header = json.loads(raw)
    except ValueError as error:
        raise HeaderError("has a header that is not JSON") from error
    if not isinstance(header, dict):
        raise HeaderError("has a header that is not a JSON object")
    header.pop("__metadata__", None)
    spans: list[tuple[int, int]] = []
    tensors = {str(name): _tensor(name, entry, spans) for name, entry in header.items()}
    end = 0
    for begin, stop in sorted(spans):
        if begin != end:
            raise HeaderError(f"has a header whose tensors overlap or leave holes at byte {end}")
        end = stop
    return Shard(path.name, size, 8 + length + end, tensors)


def _tensor(name: str, entry: object, spans: list[tuple[int, int]]) -> Tensor:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)]}:
            pass
        case _:
            raise HeaderError(f"has a header whose entry {name!r} lacks dtype, shape or data_offsets")
    if dtype not in DTYPE_BITS or not all(type(n) is int and n >= 0 for n in shape) or not 0 <= begin <= end:
        raise HeaderError(f"has a header whose entry {name!r} has an impossible dtype, shape or offset")
    if end - begin != math.prod(shape) * DTYPE_BITS[dtype] // 8:
        raise HeaderError(f"has a header whose entry {name!r} is not as long as its shape says")
    spans.append((begin, end))
    return Tensor(dtype, tuple(shape), end - begin)
