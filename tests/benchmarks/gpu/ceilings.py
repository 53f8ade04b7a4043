"""What the card does at best: a copy of its memory, and a product of matrices of random numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_COPIED_BYTES, _SIDE = 4 << 30, 8192
_WARM_UP, _TIMES = 3, 20


def measure() -> dict[str, Any]:
    """Return the bandwidth of a copy, reads and writes, and the bfloat16 operations per second of a product."""
    import torch

    source = torch.randint(0, 255, (_COPIED_BYTES,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    a, b = (torch.randn(_SIDE, _SIDE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return {
        "copy_tb_s": round(2 * _COPIED_BYTES / _seconds(lambda: target.copy_(source)) / 1e12, 3),
        "product_tflop_s": round(2 * _SIDE**3 / _seconds(lambda: a @ b) / 1e12, 1),
    }


def _seconds(work: Callable[[], object]) -> float:
    import torch

    for _ in range(_WARM_UP):
        work()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    begin.record()
    for _ in range(_TIMES):
        work()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end)) / 1e3 / _TIMES
