"""Options of `vllm serve` that `engine.extra_args` must not contain, with the reasons.

Written for vLLM 0.32: `entrypoints/launchers/cli_args.py` and `engine/arg_utils.py`. Three kinds are rejected: options
that would break a guarantee of the server (private socket, request policy, no content in logs), options that have a
setting of their own (so that `plan` and the engine agree), and short forms, which are ambiguous.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_SOCKET = "the engine listens on a private socket only"
_GATEWAY = "this is the task of the gateway"
_POLICY = "requests must not change how the model runs"
_PRIVACY = "prompts, reports and films are never logged"
_ONE_MODEL = "one server runs one engine; run several servers behind a router"

# Options that break a guarantee -> the reason.
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
    "--disable-log-stats": "token accounting needs the engine's statistics",
    "--data-parallel-size": _ONE_MODEL,
    "--data-parallel-size-local": _ONE_MODEL,
    "--data-parallel-external-lb": _ONE_MODEL,
    "--data-parallel-hybrid-lb": _ONE_MODEL,
    "--data-parallel-multi-port-external-lb": _ONE_MODEL,
}

# Options that `plan` sets -> the setting to use instead, or None when users cannot choose the value.
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
        for option, reason in _FORBIDDEN.items():
            if option.startswith(spelling):
                return reason
        for option, key in _PLANNED.items():
            if option.startswith(spelling):
                return f"set {key} instead" if key else "pedcxr sets it"
    return None
