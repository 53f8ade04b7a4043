"""The settings of the server: names, types, ranges, defaults and descriptions.

`SCHEMA` drives the checks of the file (`config.load`), the command-line options (`cli`) and the commented default file
(`pedcxr-serve config`), so that the three agree.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from pedcxr_serve.config.schema import Schema

DEMO_NAME = "pedcxr-demo"

_Port = Annotated[int, Meta(ge=0, le=65535)]
_Seconds = Annotated[float, Meta(ge=1, le=3600)]
_SecondsOrZero = Annotated[float, Meta(ge=0, le=3600)]
_LongSeconds = Annotated[float, Meta(ge=1, le=86400)]
_Requests = Annotated[int, Meta(ge=1, le=4096)]
_Tokens = Annotated[int, Meta(ge=64, le=131072)]


class GatewayConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[gateway]`: addresses, limits and time-outs of the HTTP server."""

    host: Annotated[str, Meta(description="address of the API; any but loopback needs tenants")] = "127.0.0.1"
    port: Annotated[_Port, Meta(description="port of the API; 0 selects a free one")] = 8000
    admin_host: Annotated[
        str, Meta(description="address of /metrics and /usage; any but loopback needs gateway.admin_token_file")
    ] = "127.0.0.1"
    admin_port: Annotated[_Port, Meta(description="port of /metrics and /usage; 0 selects a free one")] = 8001
    admin_token_file: Annotated[
        str, Meta(description="file with the bearer token that /metrics and /usage ask for; empty = none")
    ] = ""
    engine: Annotated[
        str,
        Meta(
            description="engine of `pedcxr-serve gateway`: unix:/PATH, http://HOST:PORT or https://HOST:PORT; "
            "empty = as engine.listen and engine.socket_dir say"
        ),
    ] = ""
    slots: Annotated[
        _Requests | None,
        Meta(description="maximum number of requests that this gateway sends to the engine at once; none = all"),
    ] = None
    cache_secret_file: Annotated[
        str,
        Meta(
            description="file with the secret of the engine's cache keys, the same for all gateways of an engine, "
            "created if absent; empty = a new secret at each start"
        ),
    ] = ""
    allow_engine_version: Annotated[
        str, Meta(description='further minor version of vLLM to accept, such as "0.33", or "any"; untested')
    ] = ""
    allow_plain_vllm: Annotated[
        bool, Meta(description="true: accept an engine without pedcxr's plugin, which may change films silently")
    ] = False
    tls_cert: Annotated[str, Meta(description="PEM file of the certificate and its chain; empty = plain HTTP")] = ""
    tls_key: Annotated[str, Meta(description="PEM file of the private key, without a passphrase")] = ""
    body_limit_mib: Annotated[int, Meta(ge=1, le=1024, description="maximum size of a request body, MiB")] = 16
    start_timeout_s: Annotated[_LongSeconds, Meta(description="time until the engine must be ready, s")] = 900.0
    restarts: Annotated[
        int, Meta(ge=0, le=1000, description="maximum number of consecutive failed engine restarts; 0 = never restart")
    ] = 5
    restart_wait_s: Annotated[_SecondsOrZero, Meta(description="maximum back-off before an engine restart, s")] = 30.0
    probe_every_s: Annotated[
        _Seconds, Meta(description="time without engine output until a one-token probe is sent, s")
    ] = 15.0
    probe_timeout_s: Annotated[
        _Seconds, Meta(description="time until an unanswered probe means that the engine hangs, s")
    ] = 60.0
    lame_duck_s: Annotated[
        _SecondsOrZero,
        Meta(description="time at shutdown with /health/ready at 503 and requests still accepted, for balancers, s"),
    ] = 0.0
    keep_alive_s: Annotated[
        _Seconds, Meta(description="time that an idle connection stays open; longer than that of a proxy in front, s")
    ] = 75.0
    drain_s: Annotated[_SecondsOrZero, Meta(description="time for in-flight requests to finish at shutdown, s")] = 60.0
    tenants: Annotated[str, Meta(description="file of tenants and API keys; empty = no keys, loopback only")] = ""
    allowed_origins: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=256)], ...],
        Meta(description='origins of web pages that may call the API (CORS), such as "https://x.org"; "*" = all'),
    ] = ()
    allowed_hosts: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=256)], ...],
        Meta(description='host names of a proxy in front that clients may use without tenants; "*" = all'),
    ] = ()
    limits_url: Annotated[
        str,
        Meta(
            description="Redis that counts requests and tokens for several gateways, or PEDCXR_LIMITS_URL; "
            "empty = count in this process",
            extra={"secret": True},  # may contain a password
        ),
    ] = ""
    limits_required: Annotated[
        bool, Meta(description="true: refuse requests (503) while Redis does not answer; false: count in this process")
    ] = False
    replica: Annotated[
        str, Meta(description="name of this server among several, or PEDCXR_REPLICA; empty = host name and port")
    ] = ""
    max_waiting: Annotated[int, Meta(ge=0, le=1_000_000, description="maximum number of queued requests")] = 1024
    max_preparing: Annotated[
        _Requests | None, Meta(description="maximum number of requests in image preprocessing (multi-tenant only)")
    ] = None
    max_starting: Annotated[
        _Requests | None,
        Meta(description="maximum number of requests before their first token, preprocessing too (multi-tenant only)"),
    ] = None
    max_wait_s: Annotated[
        _LongSeconds, Meta(description="requests with a longer expected queue wait are rejected, s")
    ] = 120.0
    body_timeout_s: Annotated[_Seconds, Meta(description="time for a client to send a request body, s")] = 60.0
    bodies_mib: Annotated[
        int, Meta(ge=16, le=1_048_576, description="memory for all request bodies, MiB; one tenant may use 3/4 of it")
    ] = 1024
    system_chars: Annotated[
        int, Meta(ge=0, le=1_000_000, description="maximum length of a request's system text, characters")
    ] = 8000
    log_level: Annotated[
        Literal["error", "warning", "info", "debug"] | None,
        Meta(description="minimum log level of the gateway; info logs one line per request; default engine.log_level"),
    ] = None
    log_format: Annotated[
        Literal["text", "json"], Meta(description="form of the log lines; json = one object per line, for log storage")
    ] = "text"
    usage_db: Annotated[
        str,
        Meta(
            description="SQLite file of token counts per day; empty = in $STATE_DIRECTORY, else beside the tenants file"
        ),
    ] = ""
    audit_log: Annotated[
        str, Meta(description="file with one line per request, without content; needs PEDCXR_AUDIT_KEY; empty = off")
    ] = ""


class EngineConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[engine]`: vLLM. `planner.plan` chooses the settings that have no default."""

    device: Annotated[
        Literal["auto", "h200", "h100", "a100-80", "l40s", "l4", "cpu"],
        Meta(description="device to plan for; auto detects it"),
    ] = "auto"
    # vLLM rejects float16 for Gemma 3 because it overflows (config/model.py, _FLOAT16_NOT_SUPPORTED_MODELS).
    dtype: Annotated[
        Literal["auto", "bfloat16", "float32"],
        Meta(description="number format; auto = bfloat16 on a GPU, float32 on a CPU"),
    ] = "auto"
    max_model_len: Annotated[_Tokens, Meta(description="maximum length of prompt and report together, tokens")] = 2048
    max_new_tokens: Annotated[
        int, Meta(ge=1, le=131071, description="maximum length of a report, tokens; a request may ask for less")
    ] = 500
    max_num_seqs: Annotated[_Requests | None, Meta(description="maximum number of reports in progress")] = None
    max_num_batched_tokens: Annotated[_Tokens | None, Meta(description="maximum number of tokens per engine step")] = (
        None
    )
    target_itl_ms: Annotated[
        float, Meta(ge=1, le=10000, description="target for the time between two tokens of a report, ms")
    ] = 50.0
    api_server_count: Annotated[
        Annotated[int, Meta(ge=1, le=16)] | None, Meta(description="number of processes that decode images")
    ] = None
    stream_interval: Annotated[
        Annotated[int, Meta(ge=1, le=64)] | None,
        Meta(description="tokens per event of a stream after the first; 4 on a GPU, 1 on a CPU"),
    ] = None
    gpu_memory_utilization: Annotated[
        float, Meta(ge=0.1, le=0.99, description="fraction of the GPU memory that vLLM may use")
    ] = 0.92
    cpu_kv_cache_gib: Annotated[
        Annotated[int, Meta(ge=1, le=4096)] | None,
        Meta(description="size of the KV cache on a CPU, GiB; default: enough for max_num_seqs reports"),
    ] = None
    block_size: Annotated[
        Annotated[int, Meta(ge=16, le=256)] | None,
        Meta(description="tokens per KV cache block; 16 on a GPU, 128 on a CPU"),
    ] = None
    enforce_eager: Annotated[
        bool | None, Meta(description="true: neither compile nor capture graphs; default on a CPU only")
    ] = None
    max_image_pixels: Annotated[int, Meta(ge=1, le=178_956_970, description="maximum size of an image, pixels")] = (
        50_000_000
    )
    socket_dir: Annotated[
        str, Meta(description="folder of the private socket; empty = a temporary folder with mode 0700")
    ] = ""
    listen: Annotated[
        str,
        Meta(
            description="HOST:PORT of `pedcxr-serve engine` for gateways on other machines, with engine.key_file; "
            "empty = a Unix socket in engine.socket_dir"
        ),
    ] = ""
    key_file: Annotated[
        str, Meta(description="file with the key that gateways send to engine.listen; the engine creates it, mode 0600")
    ] = ""
    log_level: Annotated[
        Literal["error", "warning", "info", "debug"],
        Meta(description="minimum log level of the engine, and of the gateway without gateway.log_level"),
    ] = "error"
    extra_args: Annotated[tuple[str, ...], Meta(description="further options of `vllm serve`")] = ()


class TelemetryConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[telemetry]`: OpenTelemetry traces of gateway and engine, without prompts, reports and films."""

    otlp_endpoint: Annotated[
        str,
        Meta(
            description="where traces are sent, over OTLP (HTTP, protobuf), such as http://127.0.0.1:4318/v1/traces; "
            "empty = no traces"
        ),
    ] = ""
    trace_ratio: Annotated[float, Meta(ge=0, le=1, description="share of the requests whose trace is recorded")] = 1.0


class AdapterConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[adapters.NAME]`: a LoRA adapter that is served beside the model, under its own name."""

    path: Annotated[str, Meta(min_length=1, description="folder that PEFT saved the adapter to")]
    rank: Annotated[
        Annotated[int, Meta(ge=1, le=512)] | None, Meta(description="rank that the adapter must have; none = any")
    ] = None
    tenants: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=32)], ...],
        Meta(description="tenants that may use the adapter; empty = all"),
    ] = ()
    require_promotion: Annotated[
        str, Meta(description="promotion.json that must say yes for the adapter's revision; empty = none")
    ] = ""


class ServeConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole configuration of `pedcxr-serve start`; `config.load` returns it checked."""

    model: Annotated[str, Meta(description='model to serve: "demo", a folder, or a hub id (owner/name)')] = "demo"
    revision: Annotated[str | None, Meta(description="branch, tag or commit of a hub id")] = None
    served_name: Annotated[
        str, Meta(description=f'model name in the API; empty = "{DEMO_NAME}", or the name of folder or hub id')
    ] = ""
    require_promotion: Annotated[
        str,
        Meta(
            description="promotion.json of `pedcxr-serve promote` that must say yes for the revision of the model; "
            "empty = none"
        ),
    ] = ""
    gateway: Annotated[GatewayConfig, Meta(description="gateway", extra={"requirement": "a table [gateway]"})] = (
        GatewayConfig()
    )
    engine: Annotated[EngineConfig, Meta(description="engine", extra={"requirement": "a table [engine]"})] = (
        EngineConfig()
    )
    telemetry: Annotated[
        TelemetryConfig, Meta(description="telemetry", extra={"requirement": "a table [telemetry]"})
    ] = TelemetryConfig()
    adapters: Annotated[
        dict[str, AdapterConfig],
        Meta(description="LoRA adapters of the model", extra={"requirement": "tables [adapters.NAME]"}),
    ] = {}


SCHEMA = Schema(ServeConfig, "a table")
