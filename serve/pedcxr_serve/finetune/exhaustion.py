"""Memory and disk space that run out: which errors mean that, and what to do."""

from __future__ import annotations

import errno
import math
import os
import re

from pedcxr_serve.finetune.recipes import Recipe

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_RUST = re.compile(r"\(os error (\d+)\)")  # in the text of safetensors' error, which is no OSError
_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


def is_memory(error: BaseException) -> bool:
    """Return whether an error of Python or PyTorch means that memory is exhausted."""
    return isinstance(error, MemoryError) or any(text in str(error) for text in _MEMORY)


def disk_reason(error: BaseException) -> str:
    """Return the reason if the error means that a disk, a quota or a limit of a file's size is exhausted, else ""."""
    match = _RUST.search(str(error))
    number = int(match[1]) if match else getattr(error, "errno", None)
    return os.strerror(number) if number in _DISK else ""


def memory_advice(recipe: Recipe) -> list[str]:
    """Return what needs less memory, the settings that change no result first."""
    advice = []
    if recipe.batch > 1:
        half = recipe.batch // 2
        advice.append(f"--batch {half} --accumulate {recipe.accumulate * math.ceil(recipe.batch / half)}")
    if not recipe.gradient_checkpointing:
        advice.append("--gradient-checkpointing")
    if recipe.precision == "float32":
        advice.append("--precision bf16")
    if recipe.method == "full":
        advice.append("--recipe text, which trains an adapter")
    elif recipe.modules != ("text",):
        advice.append("--modules text")
    elif not recipe.quantize:
        advice.append("--quantize (a GPU only)")
    return advice or ["a device with more memory"]
