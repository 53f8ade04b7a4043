"""Plan the engine: from checkpoint, device and configuration to the vLLM command and its capacity. No I/O."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from pedcxr_serve.checkpoint.adapter import Adapter
from pedcxr_serve.checkpoint.architecture import Shape
from pedcxr_serve.checkpoint.inspect import Checkpoint
from pedcxr_serve.config.settings import ServeConfig
from pedcxr_serve.engine.address import EngineAddress
from pedcxr_serve.errors import CheckpointError, ConfigError
from pedcxr_serve.planner import adapters, roofline, vllm_args
from pedcxr_serve.planner.devices import Device
from pedcxr_serve.planner.roofline import Throughput

DTYPE_BYTES = {"bfloat16": 2, "float32": 4}
# vLLM 0.32 decodes more than 512 sequences without CUDA graphs (config/vllm.py, default_max_graph_size).
MAX_GRAPH_SEQS = 512
CPU_MAX_NUM_SEQS = 64
# On 2 cores, 64 sequences give more reports per second than 32. But while another tenant floods the server, a light
# tenant then waits 3.3 times as long as alone for its first token, instead of twice (`tests.benchmarks.fairness`).
CPU_SEQS_PER_CORE = 16
# Of a machine's memory, for weights and KV cache together; the engine's processes and the request bodies need the rest.
CPU_MEMORY_SHARE = 0.75
MAX_SOCKET_PATH_BYTES = 107  # of a Unix socket (sockaddr_un.sun_path without the final NUL)


@dataclass(frozen=True, slots=True)
class EnginePlan:
    """The command of the engine and its capacity.

    Attributes:
        model: As in the settings: ``demo``, a folder, or a hub id.
        parameters: Of the model.
        argv: Arguments after the program name, starting with ``serve``.
        env: Environment variables to set for the engine, (name, value).
        dtype: ``bfloat16`` or ``float32``.
        adapters_bytes: Memory that vLLM reserves for adapters.
        kv_bytes_per_token: See `roofline.kv_bytes_per_token`.
        kv_capacity_bytes: Size of the KV cache.
        prompt_tokens: Length of a prompt in tokens, see `roofline.prompt_tokens`.
        new_tokens: Length of the longest report in tokens.
        tokens_per_report: Prompt and report tokens assumed per report.
        reports_at_once: Number of such reports that fit into the KV cache.
        limited_by: What limits `max_num_seqs`.
        stream_interval: Tokens per event of a stream.
        max_preparing: Multi-tenant only: maximum number of requests in image preprocessing. Large enough to keep the
            engine busy, small enough to keep the wait of the next request short.
        max_starting: Multi-tenant only: maximum number of requests without a first token, `max_preparing` included.
        upper_bound: Throughput with the best number of concurrent reports.
        expected: Throughput with `max_num_seqs` concurrent reports.
    """

    model: str
    parameters: int
    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    device: Device
    dtype: str
    weights_bytes: int
    adapters_bytes: int
    kv_bytes_per_token: int
    kv_capacity_bytes: int
    prompt_tokens: int
    new_tokens: int
    tokens_per_report: int
    reports_at_once: int
    max_num_seqs: int
    limited_by: str
    max_num_batched_tokens: int
    api_server_count: int
    stream_interval: int
    max_preparing: int
    max_starting: int
    upper_bound: Throughput
    expected: Throughput


def make(
    checkpoint: Checkpoint,
    device: Device,
    config: ServeConfig,
    *,
    model_dir: Path,
    socket: EngineAddress,
    served_adapters: Mapping[str, Adapter] = MappingProxyType({}),
) -> EnginePlan:
    """Plan the engine.

    Args:
        served_adapters: The adapters to serve, by name, each inspected and ready.
        model_dir: The folder that vLLM loads.
        socket: Path of the Unix socket that vLLM listens on, or its TCP address. The folder of a socket must be
            private (mode 0700), because vLLM does not restrict access to the socket.

    Raises:
        CheckpointError: The checkpoint has no valid config.json.
        ConfigError: The model does not fit the device, or a setting contradicts the model.
    """
    shape = checkpoint.shape
    if shape is None:
        raise CheckpointError(f"{checkpoint.folder}: no valid config.json. Run `pedcxr-serve check` for details.")
    if isinstance(socket, Path) and len(os.fsencode(socket)) > MAX_SOCKET_PATH_BYTES:
        raise ConfigError(
            f"engine.socket_dir: {socket} is too long for a socket path; must be at most {MAX_SOCKET_PATH_BYTES} bytes."
        )
    engine = config.engine
    new_tokens = engine.max_new_tokens
    dtype = _dtype(device, engine.dtype)
    size = DTYPE_BYTES[dtype]
    weights = checkpoint.parameters * size
    per_token = roofline.kv_bytes_per_token(shape, size)
    block = engine.block_size or (128 if device.kind == "cpu" else 16)
    tokens = min(engine.max_model_len, roofline.prompt_tokens(shape) + new_tokens)
    per_report = _blocks(tokens, block) * per_token
    lora = adapters.reserved_bytes(shape, device, config, served_adapters, size)
    capacity = _kv_capacity(device, config, weights + lora, per_report)
    if capacity < _blocks(engine.max_model_len, block) * per_token:
        raise ConfigError(_does_not_fit(device, config, (weights, lora), capacity, engine.max_model_len * per_token))
    at_once = capacity // per_report
    seqs, limit = _max_num_seqs(shape, device, config, at_once, size)
    batched = _max_num_batched_tokens(shape, device, config, seqs)
    best = min(at_once, seqs if engine.max_num_seqs else roofline.BEST_IN_FLIGHT)
    upper_bound = roofline.throughput(shape, device, best, dtype_bytes=size, new_tokens=new_tokens)
    servers = engine.api_server_count or _api_servers(device, upper_bound)
    preparing, starting = _max_preparing_and_starting(device, config, servers)
    argv = vllm_args.argv(
        device, config, model_dir, socket,
        dtype=dtype, seqs=seqs, batched=batched, servers=servers, served_adapters=served_adapters,
    )  # fmt: skip
    return EnginePlan(
        model=config.model,
        parameters=checkpoint.parameters,
        argv=argv,
        env=vllm_args.env(shape, device, config, dtype=dtype, kv_bytes=capacity),
        device=device,
        dtype=dtype,
        weights_bytes=weights,
        adapters_bytes=lora,
        kv_bytes_per_token=per_token,
        kv_capacity_bytes=capacity,
        prompt_tokens=roofline.prompt_tokens(shape),
        new_tokens=new_tokens,
        tokens_per_report=tokens,
        reports_at_once=at_once,
        max_num_seqs=seqs,
        limited_by=limit,
        max_num_batched_tokens=batched,
        api_server_count=servers,
        stream_interval=vllm_args.stream_interval(device, config),
        max_preparing=preparing,
        max_starting=starting,
        upper_bound=upper_bound,
        expected=roofline.throughput(shape, device, min(seqs, at_once), dtype_bytes=size, new_tokens=new_tokens),
    )


def render(plan: EnginePlan, *more: tuple[str, str]) -> str:
    """Return the plan and ``more`` rows as a text table, followed by the shell command."""
    device, upper_bound, expected = plan.device, plan.upper_bound, plan.expected
    gb, tera = 1e9, 1e12
    figures = f"{device.memory_bytes / gb:.0f} GB, {device.bandwidth_bytes_s / gb:,.0f} GB/s"
    figures += f", {device.peak_flops / tera:.3g} TFLOP/s"
    rough = " (a rule of thumb: right to the order of magnitude)" if device.kind == "cpu" else ""
    rows = [
        ("model", f"{plan.model}, {plan.parameters:,} parameters"),
        ("device", f"{device.name}, {figures}{rough}"),
        ("weights", f"{plan.weights_bytes / gb:.3f} GB in {plan.dtype}"),
        ("KV cache", f"{plan.kv_capacity_bytes / gb:.1f} GB at {plan.kv_bytes_per_token:,} B a token"),
        ("fits at once", f"{plan.reports_at_once:,} reports of {plan.tokens_per_report} tokens"),
        ("max-num-seqs", f"{plan.max_num_seqs} (limited by {plan.limited_by})"),
        ("max-num-batched-tokens", str(plan.max_num_batched_tokens)),
        ("api-server-count", str(plan.api_server_count)),
        ("starting at once", f"{plan.max_starting}, {plan.max_preparing} with films to prepare; with several tenants"),
        ("at best", f"{_rate(upper_bound)}; bound by {upper_bound.bound_by}"),
        ("as planned", _rate(expected)),
        ("counted with", f"{plan.prompt_tokens} prompt and {plan.new_tokens} new tokens a report, the longest"),
        *more,
    ]
    if plan.adapters_bytes:
        rows.insert(3, ("adapters", f"{plan.adapters_bytes / gb:.3f} GB"))
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {value}" for name, value in rows]
    return "\n".join([*lines, "", vllm_args.shell(plan.argv, plan.env)])


def _rate(throughput: Throughput) -> str:
    full, less = throughput.reports_per_s, throughput.reports_per_s_at_60
    return f"{full:.3g} reports/s with {throughput.in_flight} at once, {less:.3g} at 60 % of bandwidth"


def _dtype(device: Device, setting: str) -> str:
    if setting == "auto":
        # On a CPU, float32 gives the same tokens as transformers. GPUs before Ampere do not support bfloat16.
        old = device.compute_capability is not None and device.compute_capability < (8, 0)
        return "float32" if device.kind == "cpu" or old else "bfloat16"
    return setting


def _kv_capacity(device: Device, config: ServeConfig, weights: int, per_report: int) -> int:
    if device.kind == "cpu":
        kv = (config.engine.cpu_kv_cache_gib or _cpu_kv_gib(device, config, weights, per_report)) * 2**30
        return kv if weights + kv <= device.memory_bytes else 0
    return int(device.memory_bytes * config.engine.gpu_memory_utilization) - weights - roofline.GPU_OVERHEAD_BYTES


def _cpu_kv_gib(device: Device, config: ServeConfig, weights: int, per_report: int) -> int:
    """Return the GiB that hold `max_num_seqs` reports, less on a small machine, and at least 1."""
    seqs = config.engine.max_num_seqs or _cpu_seqs(device)
    room = int(CPU_MEMORY_SHARE * device.memory_bytes) - weights
    return max(1, min(math.ceil(seqs * per_report / 2**30), room // 2**30))


def _cpu_seqs(device: Device) -> int:
    return min(CPU_MAX_NUM_SEQS, CPU_SEQS_PER_CORE * max(1, device.cores))


def _does_not_fit(device: Device, config: ServeConfig, loaded: tuple[int, int], capacity: int, needed: int) -> str:
    weights, lora = (size / 1e9 for size in loaded)
    setting = "cpu_kv_cache_gib" if device.kind == "cpu" else "gpu_memory_utilization"
    return (
        f"engine.{setting} = {getattr(config.engine, setting) or 'default'}: the model does not fit {device.name} "
        f"({device.memory_bytes / 1e9:.0f} GB): weights take {weights:.1f} GB, "
        f"{f'adapters {lora:.1f} GB, ' if lora else ''}keys and values get "
        f"{max(0, capacity) / 1e9:.2f} GB, and one request of engine.max_model_len = {config.engine.max_model_len} "
        f"tokens needs {needed / 1e9:.2f} GB. Use a larger device, another engine.{setting}, or a smaller "
        "engine.max_model_len."
    )


def _blocks(tokens: int, block: int) -> int:
    return math.ceil(tokens / block) * block


def _max_num_seqs(shape: Shape, device: Device, config: ServeConfig, at_once: int, size: int) -> tuple[int, str]:
    engine = config.engine
    if engine.max_num_seqs:
        return engine.max_num_seqs, "engine.max_num_seqs"
    if device.kind == "cpu":
        cores = CPU_SEQS_PER_CORE * max(1, device.cores)
        limits = [
            (at_once, "KV cache"),
            (CPU_MAX_NUM_SEQS, "default for a CPU"),
            (cores, f"{CPU_SEQS_PER_CORE} for each CPU core"),
        ]
    else:
        by_itl = roofline.reports_within(
            shape, device, engine.target_itl_ms / 1e3, dtype_bytes=size, new_tokens=engine.max_new_tokens
        )
        # vLLM 0.32 chooses its default by memory size and name (engine/arg_utils.py, get_batch_defaults).
        large = device.memory_bytes >= 70 * 2**30 and "A100" not in device.name
        limits = [
            (at_once, "KV cache"),
            (max(1, by_itl), f"engine.target_itl_ms = {engine.target_itl_ms:g}"),
            (1024 if large else 256, "vLLM's default for this device"),
            (MAX_GRAPH_SEQS, "CUDA graphs, which end at 512"),
        ]
    seqs, why = min(limits)
    return (seqs - seqs % 8 if seqs > 16 else max(1, seqs)), why


def _max_num_batched_tokens(shape: Shape, device: Device, config: ServeConfig, seqs: int) -> int:
    # Also limits the vision tower to value / image_tokens films per step, 11 ms each on an H100 and 90 ms on an L4.
    low = max(seqs, shape.image_tokens)
    value = config.engine.max_num_batched_tokens
    if value is None:
        return max(low, 1024 if device.kind == "cuda" and device.peak_flops < 200e12 else 2048)
    if value < low:
        raise ConfigError(
            f"engine.max_num_batched_tokens = {value}: must be at least {low}, so that a step holds one token of "
            f"each of {seqs} reports and a whole image ({shape.image_tokens} tokens)."
        )
    return value


def _max_preparing_and_starting(device: Device, config: ServeConfig, servers: int) -> tuple[int, int]:
    # The CPU values are measured. An H200 needed two films per step for its maximum throughput, and a prompt took about
    # four steps to its first token, hence eight prompts.
    gateway = config.gateway
    preparing, prompts = (servers, 4) if device.kind == "cpu" else (2 * servers, 8)
    preparing = gateway.max_preparing or preparing
    return preparing, gateway.max_starting or preparing + prompts


def _api_servers(device: Device, upper_bound: Throughput) -> int:
    """Return enough API processes for twice the GPU's throughput, at most 4 and at most a quarter of the cores."""
    if device.kind == "cpu":
        return 1
    count = min(4, math.ceil(2 * upper_bound.reports_per_s / roofline.FILMS_PER_API_PROCESS))
    return min(count, max(1, device.cores // 4)) if device.cores else count
