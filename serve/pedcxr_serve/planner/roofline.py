"""What a machine can do at best, from the model's sizes and the device's figures alone.

The assumptions, which reproduce the table "Physical limits" of the project's notes for the 4B model:

- A report is 300 prompt tokens (image and text) and 500 new ones, and owns KV room for 800 while it runs.
- KV holds a key and a value of every KV head in every layer for every token. Layers with a sliding window are counted
  whole, as vLLM's estimate for a request does at worst; below the window (1,024) they are.
- Vision and prefill run at 50 % of the peak arithmetic, one report after the other, and nothing else runs meanwhile.
- A decode step reads all text weights once and the KV of every running report at half its answer, and computes two
  operations a weight and report; the slower of the two counts. Bandwidth is taken at 100 %, or at 60 % for a figure
  nearer to practice. Arithmetic of attention over the KV is left out: a thousandth here.
- 528 reports decode together where they fit. More barely help (H200 with its full 1,060: 42 instead of 41 a second) and
  only lengthen the gap between tokens. Any number from 520 to 537 gives the table.
- Of a GPU's memory, vLLM takes `gpu_memory_utilization`; 2.5 GB of that is activations, graphs and the CUDA context.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pedcxr_serve.checkpoint.architecture import Shape
from pedcxr_serve.planner.devices import Device

__all__ = ["Floor", "decode_step_s", "floor", "kv_bytes_per_token", "prefill_flop", "reports_within", "vision_flop"]

PROMPT_TOKENS = 300
COMPUTE_EFFICIENCY = 0.5
REAL_BANDWIDTH = 0.6
FLOOR_IN_FLIGHT = 528
GPU_OVERHEAD_BYTES = 2_500_000_000


@dataclass(frozen=True, slots=True)
class Floor:
    """An upper bound on throughput.

    Attributes:
        in_flight: Reports that decode together.
        reports_per_s: At full bandwidth.
        reports_per_s_at_60: At 60 % of it.
        bound_by: What takes the larger part of the time: ``memory bandwidth (decode)``, ``arithmetic (decode)`` or
            ``arithmetic (vision and prefill)``.
    """

    in_flight: int
    reports_per_s: float
    reports_per_s_at_60: float
    bound_by: str


def kv_bytes_per_token(shape: Shape, dtype_bytes: int) -> int:
    """Bytes of keys and values for one token, all layers."""
    return shape.layers * 2 * shape.kv_heads * shape.head_dim * dtype_bytes


def vision_flop(shape: Shape) -> float:
    """Operations of the tower and the projector for one image."""
    vision, n = shape.vision, shape.vision.patches
    weights = vision.layers * (4 * vision.hidden**2 + 2 * vision.hidden * vision.intermediate)
    patches = 3 * vision.patch_size**2 * vision.hidden
    attention = 4.0 * vision.layers * n**2 * vision.hidden
    return 2.0 * n * (weights + patches) + attention + 2.0 * shape.image_tokens * vision.hidden * shape.hidden


def prefill_flop(shape: Shape, tokens: int) -> float:
    """Operations of the text layers for a prompt of so many tokens, causal attention included."""
    attention = 2.0 * shape.layers * tokens**2 * shape.heads * shape.head_dim
    return 2.0 * tokens * shape.layers * shape.layer_parameters + attention


def decode_step_s(
    shape: Shape, device: Device, in_flight: int, *, dtype_bytes: int, new_tokens: int, bandwidth: float = 1.0
) -> float:
    """Seconds of one decode step with so many reports, at a share `bandwidth` of the device's."""
    kv = in_flight * (PROMPT_TOKENS + new_tokens / 2) * kv_bytes_per_token(shape, dtype_bytes)
    reading = (shape.text_parameters * dtype_bytes + kv) / (device.bandwidth_bytes_s * bandwidth)
    return max(reading, 2.0 * shape.text_parameters * in_flight / device.peak_flops)


def floor(shape: Shape, device: Device, in_flight: int, *, dtype_bytes: int, new_tokens: int) -> Floor:
    """The best that `in_flight` reports at once can come to."""
    images = (vision_flop(shape) + prefill_flop(shape, PROMPT_TOKENS)) / (COMPUTE_EFFICIENCY * device.peak_flops)
    rates = []
    for share in (1.0, REAL_BANDWIDTH):
        step = decode_step_s(shape, device, in_flight, dtype_bytes=dtype_bytes, new_tokens=new_tokens, bandwidth=share)
        rates.append(1 / (images + new_tokens * step / in_flight))
    arithmetic = 2.0 * shape.text_parameters * in_flight / device.peak_flops
    step = decode_step_s(shape, device, in_flight, dtype_bytes=dtype_bytes, new_tokens=new_tokens)
    if images > new_tokens * step / in_flight:
        bound = "arithmetic (vision and prefill)"
    else:
        bound = "arithmetic (decode)" if step <= arithmetic else "memory bandwidth (decode)"
    return Floor(in_flight, rates[0], rates[1], bound)


def reports_within(shape: Shape, device: Device, seconds: float, *, dtype_bytes: int, new_tokens: int) -> int:
    """How many reports may decode together so that a step at full bandwidth takes no longer; 0 when even one does."""
    weights = shape.text_parameters * dtype_bytes
    kv = (PROMPT_TOKENS + new_tokens / 2) * kv_bytes_per_token(shape, dtype_bytes)
    by_bandwidth = (seconds * device.bandwidth_bytes_s - weights) / kv
    by_arithmetic = seconds * device.peak_flops / (2.0 * shape.text_parameters)
    return max(0, math.floor(min(by_bandwidth, by_arithmetic)))
