"""The weights of a model folder: safetensors headers, index, tensor names, and a sample of the values.

Format of a safetensors file (huggingface/safetensors, README): 8 bytes little-endian length N, N bytes of JSON
``{name: {dtype, shape, data_offsets: [begin, end]}}``, then the data without gaps.

`safetensors.safe_open` is no replacement. It rejects an incomplete file without its tensors or the expected length,
needs numpy, and takes ten times as long for the names and shapes of a 4B model.
"""

from __future__ import annotations

import json
import math
import re
import struct
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pedcxr_serve.checkpoint import tensor_names
from pedcxr_serve.checkpoint.architecture import Shape
from pedcxr_serve.checkpoint.problems import Problem, read_json, report_dangling

KeyStyle = Literal["vision_model", "flat", "mixed", "none"]
_INDEX = "model.safetensors.index.json"
MAX_HEADER_BYTES = 100_000_000  # MAX_HEADER_SIZE of safetensors 0.8
_DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64, "F4": 4,
}  # fmt: skip

_EXPONENTS = {"BF16": ("H", 0x7F80), "F16": ("H", 0x7C00), "F32": ("I", 0x7F80_0000)}
"""dtype -> array code and exponent bits; a value whose exponent bits are all set is infinite or NaN (IEEE 754)."""
_SAMPLE_BYTES = 256


class HeaderError(ValueError):
    """The file is not a complete safetensors file."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor: safetensors dtype, shape, size in bytes, and offset in the data of its file."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    begin: int

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Shard:
    """One safetensors file. Its header says that it has ``expected`` bytes; a complete file has as many.

    ``data_start`` is the offset of the data in the file.
    """

    name: str
    nbytes: int
    expected: int
    data_start: int
    tensors: dict[str, Tensor]


def read(folder: Path, problems: list[Problem]) -> list[Shard]:
    """Read the headers of all shards of the model; add missing and invalid files to `problems`."""
    names = sorted(path.name for path in folder.glob("*.safetensors") if not path.name.startswith("adapter_"))
    weight_map = _weight_map(folder, problems)
    if weight_map is not None:
        names = sorted(set(weight_map.values()))
    elif not names and not _explain_no_weights(folder, problems):
        remedy = "download the folder again, with its safetensors files"
        problems.append(Problem("block", "*.safetensors", "is missing: the folder contains no weights", remedy))
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
    if isinstance(weight_map, dict) and weight_map and all(_is_file_name(name) for name in weight_map.values()):
        return weight_map
    problems.append(Problem("block", _INDEX, "has no valid weight_map", "download the file again"))
    return None


def _is_file_name(name: object) -> bool:
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & {"/", "\\", "\0"}


def _explain_no_weights(folder: Path, problems: list[Problem]) -> bool:
    if (folder / "adapter_config.json").exists():
        what = "belongs to a LoRA adapter, not to a model"
        adapter = read_json(folder / "adapter_config.json", problems) or {}
        modules = adapter.get("modules_to_save")
        if modules:
            what += f", with modules_to_save {modules}, which vLLM cannot load as an adapter"
        remedy = (
            "give the folder of its base as the model, and serve the adapter beside it ([adapters.NAME]), "
            "or merge it into its base (`pedcxr-serve merge`)"
        )
        problems.append(Problem("block", "adapter_config.json", what, remedy))
        return True
    if any(folder.glob("*.bin")) or any(folder.glob("*.gguf")):
        remedy = "load it with transformers and call save_pretrained(FOLDER), which writes safetensors"
        what = "is missing: the weights are in another format (.bin, .gguf)"
        problems.append(Problem("block", "*.safetensors", what, remedy))
        return True
    return False


def _check_numbering(names: list[str], problems: list[Problem]) -> None:
    totals = {int(number[1]) for name in names if (number := re.search(r"-of-(\d+)\.safetensors$", name))}
    if totals and totals != {len(names)}:
        what = f"is incomplete: {len(names)} of {max(totals)} shards exist, and there is no {_INDEX}"
        problems.append(Problem("block", "*.safetensors", what, "download the missing shards and the index"))
    else:
        problems.append(Problem("warn", _INDEX, "is missing", "download it, so that missing weights are detected"))


def _read_shard(path: Path, problems: list[Problem]) -> Shard | None:
    remedy = "download the file again"
    try:
        shard = read_header(path)
    except FileNotFoundError:
        if not report_dangling(path, problems):
            problems.append(Problem("block", path.name, f"is missing, but {_INDEX} lists it", "download it"))
    except OSError as error:
        problems.append(Problem("block", path.name, f"cannot be read ({error.strerror})", "fix its permissions"))
    except HeaderError as error:
        problems.append(Problem("block", path.name, str(error), remedy))
    else:
        if shard.nbytes != shard.expected:
            state = "is truncated" if shard.nbytes < shard.expected else "is too long"
            what = f"{state}: {shard.nbytes:,} bytes, but its header says {shard.expected:,}"
            problems.append(Problem("block", path.name, what, remedy))
        return shard
    return None


def read_header(path: Path) -> Shard:
    """Read the header of one file, without the data.

    Raises:
        HeaderError: The header is invalid. The message continues a sentence that starts with the file name.
        OSError: The file is missing or unreadable.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        if len(prefix) < 8:
            raise HeaderError(f"has {size} bytes and no safetensors header")
        (length,) = struct.unpack("<Q", prefix)
        if length > MAX_HEADER_BYTES:
            raise HeaderError(
                f"has a header length of {length} bytes: it is not a safetensors file (a git-lfs pointer?)"
            )
        raw = file.read(length)
    if len(raw) < length:
        raise HeaderError(f"is truncated inside its header ({size} of at least {8 + length} bytes)")
    try:
        header = json.loads(raw)
    except ValueError as error:
        raise HeaderError("has a header that is not valid JSON") from error
    if not isinstance(header, dict):
        raise HeaderError("has a header that is not a JSON object")
    header.pop("__metadata__", None)
    spans: list[tuple[int, int]] = []
    tensors = {str(name): _tensor(name, entry, spans) for name, entry in header.items()}
    end = 0
    for begin, stop in sorted(spans):
        if begin != end:
            raise HeaderError(f"has a header with overlapping tensors or a gap at byte {end}")
        end = stop
    return Shard(path.name, size, 8 + length + end, 8 + length, tensors)


def _tensor(name: str, entry: object, spans: list[tuple[int, int]]) -> Tensor:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)]}:
            pass
        case _:
            raise HeaderError(f"has a header whose entry {name!r} lacks dtype, shape or data_offsets")
    if dtype not in _DTYPE_BITS or not all(type(n) is int and n >= 0 for n in shape) or not 0 <= begin <= end:
        raise HeaderError(f"has a header whose entry {name!r} has an invalid dtype, shape or offset")
    if end - begin != math.prod(shape) * _DTYPE_BITS[dtype] // 8:
        raise HeaderError(f"has a header whose entry {name!r} has offsets that contradict its shape")
    spans.append((begin, end))
    return Tensor(dtype, tuple(shape), end - begin, begin)


def _check_index(weight_map: Mapping[str, str], shards: Iterable[Shard], problems: list[Problem]) -> None:
    remedy = "download the shard and the index from the same revision"
    for shard in shards:
        absent = [name for name, file in weight_map.items() if file == shard.name and name not in shard.tensors]
        if absent:
            what = f"lacks {len(absent)} weights that {_INDEX} lists for it ({absent[0]}, ...)"
            problems.append(Problem("block", shard.name, what, remedy))
        extra = [name for name in shard.tensors if name not in weight_map]
        if extra:
            what = f"contains {len(extra)} weights that {_INDEX} does not list ({extra[0]}, ...)"
            problems.append(Problem("warn", shard.name, what, remedy))


def key_style(tensors: Iterable[str]) -> KeyStyle:
    """Return how tensor names spell the vision tower; see `inspect.Checkpoint.key_style`."""
    vision = [name for name in tensors if "vision_tower." in name]
    infix = sum("vision_tower.vision_model." in name for name in vision)
    if not vision:
        return "none"
    return "vision_model" if infix == len(vision) else "mixed" if infix else "flat"


def compare(
    tensors: Mapping[str, Tensor], shape: Shape | None, problems: list[Problem], *, quantised: bool = False
) -> None:
    """Check the names and shapes of the weights against the configuration; add contradictions to `problems`.

    Quantised weights have names and shapes of their own, which are not checked.
    """
    style = key_style(tensors)
    if style in ("none", "mixed"):
        what = "contain no vision tower" if style == "none" else "use two naming schemes for the vision tower"
        problems.append(Problem("block", "weights", what, "save the whole model again with transformers"))
    elif style == "flat":
        what = "name the vision tower without the vision_model infix (transformers 5.8 and later)"
        remedy = "no action needed: the plugin of pedcxr maps the names; vLLM alone would reject them"
        problems.append(Problem("warn", "weights", what, remedy))
    if shape is None:
        return
    if shape.tied and any(name.endswith("lm_head.weight") for name in tensors):
        what = "contain an output layer (lm_head), but config.json ties it to the embedding: it will be ignored"
        remedy = "if it was trained, set tie_word_embeddings to false; otherwise remove it"
        problems.append(Problem("warn", "weights", what, remedy))
    if not quantised:
        _compare_names(
            {tensor_names.canonical(name): tensor.shape for name, tensor in tensors.items()}, shape, problems
        )


def _compare_names(found: Mapping[str, tuple[int, ...]], shape: Shape, problems: list[Problem]) -> None:
    expected = tensor_names.expected(shape)
    if missing := [name for name in expected if name not in found]:
        what = f"lack {len(missing)} tensors that config.json implies ({missing[0]}, ...)"
        problems.append(Problem("block", "weights", what, "save or download the whole model again"))
    known = {*expected, "lm_head.weight"}
    if unknown := [name for name in found if name not in known and not tensor_names.is_skipped(name)]:
        what = f"contain {len(unknown)} tensors that the model does not have ({unknown[0]}, ...)"
        remedy = "use config.json and weights of the same model"
        if any(mark in name for name in unknown for mark in ("lora_", "base_layer", "base_model")):
            remedy = "merge the LoRA adapter (peft: model.merge_and_unload()) before the model is saved"
        problems.append(Problem("block", "weights", what, remedy))
    if wrong := [name for name, size in expected.items() if found.get(name, size) != size]:
        name = wrong[0]
        what = f"have {len(wrong)} wrong shapes: {name} is {found[name]}, but config.json implies {expected[name]}"
        problems.append(Problem("block", "weights", what, "use config.json and weights of the same model"))


def check_values(folder: Path, shards: Iterable[Shard], problems: list[Problem]) -> None:
    """Read the first values of every tensor, and report those that are not finite, as after a failed fine-tuning."""
    broken = [name for shard in shards if shard.nbytes == shard.expected for name in _not_finite(folder, shard)]
    if broken:
        what = f"contain NaN or infinite values in {len(broken)} tensors ({broken[0]}, ...)"
        problems.append(Problem("block", "weights", what, "train or convert the model again"))


def _not_finite(folder: Path, shard: Shard) -> Iterator[str]:
    with (folder / shard.name).open("rb") as file:
        for name, tensor in shard.tensors.items():
            if tensor.dtype not in _EXPONENTS:
                continue
            code, mask = _EXPONENTS[tensor.dtype]
            file.seek(shard.data_start + tensor.begin)
            values = array(code, file.read(min(tensor.nbytes, _SAMPLE_BYTES)))
            if any(value & mask == mask for value in values):
                yield name
