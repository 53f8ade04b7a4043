"""Arguments and environment of `vllm serve`, vLLM 0.32. A test parses every plan with vLLM's own parser."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from pedcxr_serve.checkpoint.adapter import Adapter
from pedcxr_serve.checkpoint.architecture import Shape
from pedcxr_serve.config.settings import ServeConfig
from pedcxr_serve.engine.address import EngineAddress
from pedcxr_serve.planner import adapters
from pedcxr_serve.planner.devices import Device

GPU_STREAM_INTERVAL = 4
"""Tokens per event on a GPU. Every event costs processor time in engine, gateway and client; a CPU writes few."""
# vLLM leaves one core to its other processes. Of two cores that is half of the arithmetic, which decides for a large
# model. For the demo model, with a million parameters, both cores were slower (docs/benchmarks.md).
_FEW_CORES = 2
_LARGE_MODEL = 100_000_000  # parameters of the language model
# In seconds. vLLM's default buckets start at 10 ms, which puts the whole range of an H200 into one bucket.
ITL_BUCKETS = (0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.025, 0.033, 0.05, 0.075, 0.1, 0.2, 0.4, 0.8, 1.6, 5.0)


def argv(
    device: Device,
    config: ServeConfig,
    model_dir: Path,
    socket: EngineAddress,
    *,
    dtype: str,
    seqs: int,
    batched: int,
    servers: int,
    served_adapters: Mapping[str, Adapter],
) -> tuple[str, ...]:
    """Return the arguments after the program name; see `plan.make` for the values."""
    engine = config.engine
    cpu = device.kind == "cpu"
    generation = {"temperature": 0, "max_new_tokens": engine.max_new_tokens}
    buckets = {"inter_token_latency": ITL_BUCKETS}
    words = ["serve", str(model_dir), *_listen(socket), "--served-model-name", config.served_name]
    words += ["--dtype", dtype, "--max-model-len", str(engine.max_model_len), "--max-num-seqs", str(seqs)]
    words += ["--max-num-batched-tokens", str(batched), "--api-server-count", str(servers)]
    # No processor cache: it marks a film as sent before the engine has it. If the client disconnects in between, the
    # next request for the same film fails without a retry (vLLM 0.32, MultiModalCacheMissError).
    words += ["--limit-mm-per-prompt", _compact({"image": 1}), "--mm-processor-cache-gb", "0"]
    words += ["--override-generation-config", _compact(generation), "--custom-histogram-buckets", _compact(buckets)]
    # Limits running and queued requests together, as a backstop: the gateway keeps the engine's queue nearly empty.
    words += ["--max-num-queued-reqs", str(2 * seqs)]
    words += ["--shutdown-timeout", str(int(min(45, config.gateway.drain_s))), "--sse-keep-alive-interval", "15"]
    words += ["--stream-interval", str(stream_interval(device, config))]
    # No --enable-force-include-usage: the gateway requests usage itself.
    words += ["--enable-per-request-metrics", "--enable-prompt-tokens-details"]
    words += ["--enable-request-id-headers", "--disable-fastapi-docs"]
    words += ["--disable-access-log-for-endpoints", "/health,/metrics", "--uvicorn-log-level", engine.log_level]
    if cpu:
        words += ["--disable-chunked-mm-input"]  # the attention of the plugin needs a whole image in one step
    else:
        words += ["--gpu-memory-utilization", f"{engine.gpu_memory_utilization:g}"]
    if is_eager(device, config):
        words += ["--enforce-eager"]
    if engine.block_size:
        words += ["--block-size", str(engine.block_size)]
    if config.telemetry.otlp_endpoint:
        words += ["--otlp-traces-endpoint", config.telemetry.otlp_endpoint]
    words += adapters.argv(device, config, served_adapters)
    return (*words, *engine.extra_args)


def _listen(address: EngineAddress) -> tuple[str, ...]:
    if isinstance(address, Path):
        return ("--uds", str(address))
    return ("--host", str(address.host), "--port", str(address.port))


def stream_interval(device: Device, config: ServeConfig) -> int:
    """Return the number of tokens per event of a stream after its first."""
    return config.engine.stream_interval or (1 if device.kind == "cpu" else GPU_STREAM_INTERVAL)


def is_eager(device: Device, config: ServeConfig) -> bool:
    """Return whether the engine neither compiles nor captures graphs."""
    eager = config.engine.enforce_eager
    return device.kind == "cpu" if eager is None else eager


def env(shape: Shape, device: Device, config: ServeConfig, *, dtype: str, kv_bytes: int) -> tuple[tuple[str, str], ...]:
    """Return the environment variables to set for the engine, in addition to the inherited ones."""
    variables = {
        "VLLM_PLUGINS": "pedcxr",
        "VLLM_MEDIA_CONNECTOR": "pedcxr",
        "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",
        "VLLM_MAX_IMAGE_PIXELS": str(config.engine.max_image_pixels),
        "VLLM_SERVER_DEV_MODE": "0",
        # No request may load an adapter: each is checked before the engine starts.
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "0",
        # Fixed here because the launcher may inherit other values: requests with equal ids must stay separate, and
        # responses must not be logged.
        "VLLM_DISABLE_REQUEST_ID_RANDOMIZATION": "0",
        "VLLM_DEBUG_LOG_API_SERVER_RESPONSE": "false",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        # The model is on disk; the engine must not contact the hub.
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        # The supervisor reads the start-up stage from INFO lines, and prints lines from engine.log_level upwards.
        "VLLM_LOGGING_LEVEL": "DEBUG" if config.engine.log_level == "debug" else "INFO",
    }
    if config.telemetry.otlp_endpoint:
        variables |= {
            "OTEL_SERVICE_NAME": "pedcxr-engine",
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
            # The gateway decides which requests are recorded. Spans of the start would have no parent.
            "OTEL_TRACES_SAMPLER": "parentbased_always_off",
        }
    if device.kind == "cuda":
        # The plan is for the GPU of this number in NVML and nvidia-smi, which CUDA alone would number by speed.
        variables["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    if device.kind == "cpu":
        variables |= {
            "VLLM_CPU_KVCACHE_SPACE": str(kv_bytes // 2**30),
            # Three processes share the cores: a thread that spins at a barrier delays the threads it waits for.
            # On 2 cores, `make bench-overhead` wrote 8.4 reports per second with the demo model, one at a time, and 2.9
            # with spinning threads.
            "OMP_WAIT_POLICY": "PASSIVE",
        }
        if device.cores <= _FEW_CORES and shape.text_parameters >= _LARGE_MODEL:
            variables["VLLM_CPU_NUM_OF_RESERVED_CPU"] = "0"
    elif dtype == "float32":
        # Triton multiplies float32 as TF32 by default, which has 10 bits of mantissa (vLLM's attention is in Triton).
        variables["TRITON_F32_DEFAULT"] = "ieee"
    if device.kind == "cpu" and is_eager(device, config):
        # vLLM compiles the ranks of log-probabilities even with --enforce-eager. The first request with `logprobs` then
        # stops all requests for many seconds while the compiler loads and runs.
        variables["TORCHDYNAMO_DISABLE"] = "1"
    return tuple(variables.items())


def _compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def shell(argv: Sequence[str], env: Sequence[tuple[str, str]]) -> str:
    """Return a shell command with one variable or flag per line."""
    parts = [f"{name}={shlex.quote(value)}" for name, value in env]
    line = " ".join(shlex.quote(word) for word in ("python", "-m", "pedcxr_serve.engine.vllm_main", *argv[:2]))
    for word in argv[2:]:
        if word.startswith("--"):
            parts.append(line)
            line = "  " + shlex.quote(word)
        else:
            line += " " + shlex.quote(word)
    return " \\\n".join([*parts, line])
