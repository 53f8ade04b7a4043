"""Which flags of `vllm serve` a user may not pass through `engine.extra_args`, and why.

Written for vLLM 0.32: `entrypoints/launchers/cli_args.py` and `engine/arg_utils.py`. Three kinds are refused: flags
that would break a promise of the server (private socket, request policy, silent logs), flags that have a setting of
their own (so that `plan` and the engine cannot disagree), and short forms, which cannot be told apart reliably.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["refuse"]

_SOCKET = "the engine listens on a private socket only"
_GATEWAY = "the gateway decides that"
_POLICY = "requests must not change how the model is run"
_PRIVACY = "prompts, reports and films are never logged"
_ONE_MODEL = "one engine serves one model; run more servers behind a router"

# Promises: flag -> why not.
_FORBIDDEN = {
    "--host": _SOCKET,
    "--port": _SOCKET,
    "--uds": _SOCKET,
    "--grpc": _SOCKET,
    "--grpc-port": _SOCKET,
    "--headless": _SOCKET,
    "--ssl-keyfile": _SOCKET,
    "--ssl-certfile": _SOCKET,
    "--ssl-ca-certs": _SOCKET,
    "--root-path": _SOCKET,
    "--api-key": _GATEWAY,
    "--allow-credentials": _GATEWAY,
    "--allowed-origins": _GATEWAY,
    "--middleware": _GATEWAY,
    "--enable-tokenizer-info-endpoint": _GATEWAY,
    "--enable-scale-out": _GATEWAY,
    "--tokens-only": _GATEWAY,
    "--enable-auto-tool-choice": _POLICY,
    "--tool-server": _POLICY,
    "--trust-request-chat-template": _POLICY,
    "--trust-request-mm-kwargs": _POLICY,
    "--allowed-local-media-path": _POLICY,
    "--allowed-media-domains": _POLICY,
    "--media-io-kwargs": _POLICY,
    "--mm-processor-kwargs": _POLICY,
    "--enable-prompt-embeds": _POLICY,
    "--enable-mm-embeds": _POLICY,
    "--logits-processors": _POLICY,
    "--enable-log-requests": _PRIVACY,
    "--enable-log-outputs": _PRIVACY,
    "--log-error-stack": _PRIVACY,
    "--otlp-traces-endpoint": _PRIVACY,
    "--trust-remote-code": "code from a model repository is never run",
    "--config": "a second configuration file would bypass these checks",
    "--model": "set model in serve.toml",
    "--revision": "set revision in serve.toml",
    "--disable-log-stats": "metering needs the engine's statistics",
    "--data-parallel-size": _ONE_MODEL,
    "--data-parallel-size-local": _ONE_MODEL,
    "--data-parallel-external-lb": _ONE_MODEL,
    "--data-parallel-hybrid-lb": _ONE_MODEL,
    "--data-parallel-multi-port-external-lb": _ONE_MODEL,
}

# Flags that `plan` sets, and the setting to use instead; none where it is not the user's to choose.
_PLANNED = {
    "--served-model-name": "served_name",
    "--dtype": "engine.dtype",
    "--max-model-len": "engine.max_model_len",
    "--max-num-seqs": "engine.max_num_seqs",
    "--max-num-batched-tokens": "engine.max_num_batched_tokens",
    "--api-server-count": "engine.api_server_count",
    "--gpu-memory-utilization": "engine.gpu_memory_utilization",
    "--kv-cache-memory-bytes": "engine.cpu_kv_cache_gib",
    "--block-size": "engine.block_size",
    "--enforce-eager": "engine.enforce_eager",
    "--override-generation-config": "engine.max_new_tokens",
    "--shutdown-timeout": "gateway.drain_s",
    "--uvicorn-log-level": "engine.log_level",
    "--generation-config": None,
    "--limit-mm-per-prompt": None,
    "--mm-processor-cache-gb": None,
    "--max-num-queued-reqs": None,
    "--sse-keep-alive-interval": None,
    "--enable-force-include-usage": None,
    "--enable-per-request-metrics": None,
    "--enable-prompt-tokens-details": None,
    "--disable-fastapi-docs": None,
    "--enable-request-id-headers": None,
    "--disable-access-log-for-endpoints": None,
    "--disable-chunked-mm-input": None,
    "--custom-histogram-buckets": None,
}

_NUMBER = re.compile(r"-\d+(\.\d+)?")


def refuse(args: Sequence[str]) -> str | None:
    """Why these arguments must not be appended to vLLM's, or None when they may."""
    if args and (not args[0].startswith("-") or _NUMBER.fullmatch(args[0])):
        return f"{args[0]!r} is a value without a flag before it"
    for arg in args:
        if arg.startswith("-") and not _NUMBER.fullmatch(arg) and (why := _refuse_flag(arg)):
            return f"{arg!r} is not allowed: {why}"
    return None


def _refuse_flag(arg: str) -> str | None:
    if not arg.startswith("--") or arg == "--":
        return "write flags in their long form, as --name value"
    # vLLM's parser takes _ for -, --name.key for a JSON member, --no-name for false, and any unambiguous prefix.
    name = re.split(r"[=.+]", arg, maxsplit=1)[0].replace("_", "-").lower()
    for spelling in {name, "--" + name.removeprefix("--no-")}:
        for flag, why in _FORBIDDEN.items():
            if flag.startswith(spelling):
                return why
        for flag, key in _PLANNED.items():
            if flag.startswith(spelling):
                return f"set {key} instead" if key else "pedcxr sets it"
    return None
