"""Options of `vllm serve` that `engine.extra_args` must not contain, with the reasons.

Written for vLLM 0.32: `entrypoints/launchers/cli_args.py` and `engine/arg_utils.py`. Three kinds are rejected: options
that would break a guarantee of the server (private socket, request policy, no content in logs), options that have a
setting of their own (so that `plan` and the engine agree), and short forms, which are ambiguous.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

# Reason -> the options that would break a guarantee.
_FORBIDDEN = {
    "the engine listens on a private socket only": (
        "--host", "--port", "--uds", "--grpc", "--grpc-port", "--headless", "--ssl-keyfile", "--ssl-certfile",
        "--ssl-ca-certs", "--root-path",
    ),
    "this is the task of the gateway": (
        "--api-key", "--allow-credentials", "--allowed-origins", "--middleware", "--enable-tokenizer-info-endpoint",
        "--enable-scale-out", "--tokens-only",
    ),
    "requests must not change how the model runs": (
        "--enable-auto-tool-choice", "--tool-server", "--trust-request-chat-template", "--trust-request-mm-kwargs",
        "--allowed-local-media-path", "--allowed-media-domains", "--media-io-kwargs", "--mm-processor-kwargs",
        "--enable-prompt-embeds", "--enable-mm-embeds", "--logits-processors",
    ),
    "prompts, reports and films are never logged": (
        "--enable-log-requests", "--enable-log-outputs", "--log-error-stack",
    ),
    "code from a model repository is never run": ("--trust-remote-code",),
    "an adapter must be checked before it is served; set [adapters.NAME] in serve.toml": (
        "--enable-lora", "--lora-modules", "--max-loras", "--max-lora-rank", "--default-mm-loras",
        "--lora-target-modules",
    ),
    # vLLM 0.32 assumes 16 patches per image token (models/gemma3_mm.py, `get_mm_lora_token_counts`). With another
    # number the first film ends the engine. On a model that has 16, the second adapter of a server had no effect.
    "adapters of the vision tower are served only when merged (`pedcxr-serve merge`)": (
        "--enable-tower-connector-lora",
    ),
    "a second configuration file would bypass these checks": ("--config",),
    "set model in serve.toml": ("--model",),
    "set revision in serve.toml": ("--revision",),
    "token accounting needs the engine's statistics": ("--disable-log-stats",),
    "one server runs one engine; run several servers behind a router": (
        "--data-parallel-size", "--data-parallel-size-local", "--data-parallel-external-lb",
        "--data-parallel-hybrid-lb", "--data-parallel-multi-port-external-lb",
    ),
}  # fmt: skip

# Options that `plan` sets -> the setting to use instead.
_PLANNED = {
    "--served-model-name": "served_name",
    "--dtype": "engine.dtype",
    "--max-model-len": "engine.max_model_len",
    "--max-num-seqs": "engine.max_num_seqs",
    "--max-num-batched-tokens": "engine.max_num_batched_tokens",
    "--api-server-count": "engine.api_server_count",
    "--stream-interval": "engine.stream_interval",
    "--gpu-memory-utilization": "engine.gpu_memory_utilization",
    "--kv-cache-memory-bytes": "engine.cpu_kv_cache_gib",
    "--block-size": "engine.block_size",
    "--enforce-eager": "engine.enforce_eager",
    "--override-generation-config": "engine.max_new_tokens",
    "--shutdown-timeout": "gateway.drain_s",
    "--otlp-traces-endpoint": "telemetry.otlp_endpoint",
    "--uvicorn-log-level": "engine.log_level",
}
# Options that `plan` sets to values that users cannot choose.
_FIXED = (
    "--generation-config", "--limit-mm-per-prompt", "--mm-processor-cache-gb", "--max-num-queued-reqs",
    "--sse-keep-alive-interval", "--enable-force-include-usage", "--enable-per-request-metrics",
    "--enable-prompt-tokens-details", "--disable-fastapi-docs", "--enable-request-id-headers",
    "--disable-access-log-for-endpoints", "--disable-chunked-mm-input", "--custom-histogram-buckets",
)  # fmt: skip
_REASONS = {
    **{option: reason for reason, options in _FORBIDDEN.items() for option in options},
    **{option: f"set {key} instead" for option, key in _PLANNED.items()},
    **dict.fromkeys(_FIXED, "pedcxr sets it"),
}

_NUMBER = re.compile(r"-\d+(\.\d+)?")


def forbidden_reason(args: Sequence[str]) -> str | None:
    """Return why these arguments must not be appended to vLLM's, or None if they may."""
    if args and (not args[0].startswith("-") or _NUMBER.fullmatch(args[0])):
        return f"{args[0]!r} is a value without an option before it"
    for arg in args:
        if arg.startswith("-") and not _NUMBER.fullmatch(arg) and (reason := _reason(arg)):
            return f"{arg!r} is not allowed: {reason}"
    return None


def _reason(arg: str) -> str | None:
    if not arg.startswith("--") or arg == "--":
        return "write options in their long form, as --name value"
    # vLLM's parser accepts _ for -, --name.key for a JSON member, --no-name for false, and any unambiguous prefix.
    name = re.split(r"[=.+]", arg, maxsplit=1)[0].replace("_", "-").lower()
    for spelling in {name, "--" + name.removeprefix("--no-")}:
        for option, reason in _REASONS.items():
            if option.startswith(spelling):
                return reason
    return None
