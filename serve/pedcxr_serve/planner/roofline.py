"""Upper bounds on throughput (a roofline model), from the model's dimensions and the device's figures.

Assumptions. They reproduce the limits of the 4B model in ``tests/serve/planner/test_plan.py``:

- A report has 44 text tokens besides those of its image (300 together with the published model) and 500 new tokens. It
  reserves KV cache for all of them while it runs.
- The KV cache holds a key and a value per token, layer and KV head. Layers with a sliding window are counted fully,
  like vLLM's worst-case estimate. That is exact up to the window length (1,024 tokens).
- Vision and prefill run at 50 % of peak arithmetic, one report at a time, without overlap.
- A decode step reads all text weights once, and the KV cache of every running report at half its length. It computes
  two operations per weight and report. The slower of the two determines the time.
- Bandwidth counts at 100 %, and at 60 % for a more realistic figure. Attention arithmetic over the KV cache is ignored:
  it is about a thousandth.
- Up to 528 reports decode together. More reports increase throughput little (H200 with 1,060: 42 instead of 41 per
  second) and increase the time between tokens. Any number from 520 to 537 reproduces the table.
- The processes beside the GPU: an API process prepares 16 films of 896 pixels per second
  (`python -m tests.benchmarks.throughput.film_preparation`) and spends 0.2 ms on each event of a stream
  (`python -m tests.benchmarks.throughput.event_cost`). The gateway, one process, spends 0.053 ms on an event and 3.2 ms
  on a request with a film of 0.5 MB (`make bench-gateway`). These are processor times on the machine of
  docs/benchmarks.md, which has the runs.
- vLLM uses the share `gpu_memory_utilization` of a GPU's memory. Activations, CUDA graphs and the CUDA context take
  2.5 GB of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

from pedcxr_serve.checkpoint.architecture import Shape
from pedcxr_serve.planner.devices import Device

TEXT_TOKENS = 44
COMPUTE_EFFICIENCY = 0.5
REAL_BANDWIDTH = 0.6
BEST_IN_FLIGHT = 528
GPU_OVERHEAD_BYTES = 2_500_000_000
FILMS_PER_API_PROCESS = 16
API_EVENT_S, GATEWAY_EVENT_S, GATEWAY_REQUEST_S = 200e-6, 53e-6, 3.2e-3
GPU_STEP_S = 0.0  # of a step besides reading and arithmetic, such as the launch of kernels: no GPU was measured yet


@dataclass(frozen=True, slots=True)
class Throughput:
    """Throughput of a device, as an upper bound.

    Attributes:
        in_flight: Number of reports that decode together.
        reports_per_s: Reports per second at full bandwidth.
        reports_per_s_at_60: Reports per second at 60 % of the bandwidth.
        bound_by: The limiting resource: ``memory bandwidth (decode)``, ``arithmetic (decode)`` or
            ``arithmetic (vision and prefill)``.
    """

    in_flight: int
    reports_per_s: float
    reports_per_s_at_60: float
    bound_by: str


def prompt_tokens(shape: Shape) -> int:
    """Return the tokens of a prompt, image and text."""
    return shape.image_tokens + TEXT_TOKENS


def kv_bytes_per_token(shape: Shape, dtype_bytes: int) -> int:
    """Return the KV cache size of one token in all layers, in bytes."""
    return shape.layers * 2 * shape.kv_heads * shape.head_dim * dtype_bytes


def vision_flop(shape: Shape) -> float:
    """Return the operations of the vision tower and the projector for one image."""
    vision, n = shape.vision, shape.vision.patches
    weights = vision.layers * (4 * vision.hidden**2 + 2 * vision.hidden * vision.intermediate)
    patches = 3 * vision.patch_size**2 * vision.hidden
    attention = 4.0 * vision.layers * n**2 * vision.hidden
    return 2.0 * n * (weights + patches) + attention + 2.0 * shape.image_tokens * vision.hidden * shape.hidden


def prefill_flop(shape: Shape, tokens: int) -> float:
    """Return the operations of the text layers for a prompt of `tokens` tokens, with causal attention."""
    attention = 2.0 * shape.layers * tokens**2 * shape.heads * shape.head_dim
    return 2.0 * tokens * shape.layers * shape.layer_parameters + attention


def prompt_s(shape: Shape, device: Device, prompt: int | None = None) -> float:
    """Return the seconds of vision tower and prefill for one report of `prompt` tokens, or of `prompt_tokens`."""
    flop = vision_flop(shape) + prefill_flop(shape, prompt or prompt_tokens(shape))
    return flop / (COMPUTE_EFFICIENCY * device.peak_flops)


def decode_step_s(
    shape: Shape,
    device: Device,
    in_flight: int,
    *,
    dtype_bytes: int,
    new_tokens: int,
    prompt: int | None = None,
    bandwidth: float = 1.0,
) -> float:
    """Return the seconds of one decode step of `in_flight` reports, at the fraction `bandwidth` of full bandwidth."""
    tokens = (prompt or prompt_tokens(shape)) + new_tokens / 2
    kv = in_flight * tokens * kv_bytes_per_token(shape, dtype_bytes)
    reading = (shape.text_parameters * dtype_bytes + kv) / (device.bandwidth_bytes_s * bandwidth)
    return max(reading, 2.0 * shape.text_parameters * in_flight / device.peak_flops)


def throughput(
    shape: Shape, device: Device, in_flight: int, *, dtype_bytes: int, new_tokens: int, prompt: int | None = None
) -> Throughput:
    """Return the upper bound on throughput with `in_flight` concurrent reports; `prompt` is that of `prompt_s`."""
    prefill_s = prompt_s(shape, device, prompt)
    step_s = partial(
        decode_step_s, shape, device, in_flight, dtype_bytes=dtype_bytes, new_tokens=new_tokens, prompt=prompt
    )
    step, step_at_60 = step_s(), step_s(bandwidth=REAL_BANDWIDTH)
    full, less = (1 / (prefill_s + new_tokens * seconds / in_flight) for seconds in (step, step_at_60))
    arithmetic = 2.0 * shape.text_parameters * in_flight / device.peak_flops
    if prefill_s > new_tokens * step / in_flight:
        bound = "arithmetic (vision and prefill)"
    else:
        bound = "arithmetic (decode)" if step <= arithmetic else "memory bandwidth (decode)"
    return Throughput(in_flight, full, less, bound)


def reports_within(shape: Shape, device: Device, seconds: float, *, dtype_bytes: int, new_tokens: int) -> int:
    """Return how many reports can decode together with steps of at most `seconds`; 0 if one report takes longer."""
    weights = shape.text_parameters * dtype_bytes
    kv = (prompt_tokens(shape) + new_tokens / 2) * kv_bytes_per_token(shape, dtype_bytes)
    by_bandwidth = (seconds * device.bandwidth_bytes_s - weights) / kv
    by_arithmetic = seconds * device.peak_flops / (2.0 * shape.text_parameters)
    return max(0, math.floor(min(by_bandwidth, by_arithmetic)))
