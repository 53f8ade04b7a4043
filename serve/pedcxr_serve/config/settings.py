"""The settings of the server: names, types, ranges, defaults and what they mean.

The dataclasses below are the schema. Each field's metadata (meaning, range, choices) drives the checks of a file
(`config.load`), the command's flags (`options`) and the commented default file (`reference`): they cannot drift apart.
"""

from __future__ import annotations

import math
import typing
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

__all__ = ["DEMO_NAME", "TABLES", "EngineConfig", "GatewayConfig", "Option", "ServeConfig", "options", "reference"]

DEVICES = ("auto", "h200", "h100", "a100-80", "l40s", "l4", "cpu")
DTYPES = ("auto", "bfloat16", "float32")
LOG_LEVELS = ("error", "warning", "info", "debug")
DEMO_NAME = "pedcxr-demo"


def _setting(
    default: Any, doc: str, *, low: float = -math.inf, high: float = math.inf, choices: tuple[str, ...] = ()
) -> Any:
    return field(default=default, metadata={"doc": doc, "low": low, "high": high, "choices": choices})


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """`[gateway]`: where the server listens and how long it waits."""

    host: str = _setting("127.0.0.1", "address of the API; any but loopback needs tenants")
    port: int = _setting(8000, "port of the API; 0 takes any free one", low=0, high=65535)
    admin_port: int = _setting(8001, "port of /metrics, always on loopback; 0 takes any free one", low=0, high=65535)
    tls_cert: str = _setting("", "PEM file of the certificate and its chain; empty = plain HTTP")
    tls_key: str = _setting("", "PEM file of its private key, without a passphrase")
    body_limit_mib: int = _setting(16, "largest request body, MiB", low=1, high=1024)
    start_timeout_s: float = _setting(900.0, "seconds the engine may take to become ready", low=1, high=86400)
    restarts: int = _setting(
        5, "starts in a row that may fail after an engine ended or hung; 0 = end with it", low=0, high=1000
    )
    restart_wait_s: float = _setting(30.0, "longest wait before the engine is started again", low=0, high=3600)
    probe_every_s: float = _setting(
        15.0, "seconds of silence after which the engine is asked for a token", low=1, high=3600
    )
    probe_timeout_s: float = _setting(
        60.0, "seconds it may take for that, before it is taken to hang", low=1, high=3600
    )
    drain_s: float = _setting(
        60.0, "seconds that running reports get to finish when the server stops", low=0, high=3600
    )
    tenants: str = _setting("", "file of the teams and their keys; empty = everybody, on loopback only")
    limits_url: str = _setting(
        "",
        "Redis that counts requests a minute for several gateways, or PEDCXR_LIMITS_URL; empty = this one for itself",
    )
    max_waiting: int = _setting(1024, "requests that may wait for their turn", low=0, high=1_000_000)
    max_preparing: int | None = _setting(
        None, "requests sent whose films the engine still prepares; with several tenants", low=1, high=4096
    )
    max_starting: int | None = _setting(
        None, "requests sent whose reports have not begun, with the former; with several tenants", low=1, high=4096
    )
    max_wait_s: float = _setting(120.0, "a request that would wait longer is turned away", low=1, high=86400)
    body_timeout_s: float = _setting(60.0, "seconds a client may take to send a request's body", low=1, high=3600)
    bodies_mib: int = _setting(1024, "request bodies held at once, MiB; one team may fill 3/4", low=16, high=1_048_576)
    system_chars: int = _setting(8000, "longest system text of a request, characters", low=0, high=1_000_000)
    usage_db: str = _setting("", "file that counts tokens by team and day; empty = beside the tenants file")
    audit_log: str = _setting("", "file with a line a request, without content; needs PEDCXR_AUDIT_KEY; empty = none")


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """`[engine]`: vLLM. A setting without a value is chosen by `plan` for the device."""

    device: str = _setting("auto", "which machine to plan for; auto looks at this one", choices=DEVICES)
    # vLLM refuses float16 for Gemma 3 (config/model.py, _FLOAT16_NOT_SUPPORTED_MODELS): it overflows.
    dtype: str = _setting("auto", "numbers; auto = bfloat16 on a GPU, float32 on a CPU", choices=DTYPES)
    max_model_len: int = _setting(2048, "longest prompt and answer together, tokens", low=64, high=131072)
    max_new_tokens: int = _setting(500, "longest report, tokens; a request may ask for less", low=1, high=131071)
    max_num_seqs: int | None = _setting(None, "reports in work at once", low=1, high=4096)
    max_num_batched_tokens: int | None = _setting(None, "tokens of one engine step", low=64, high=131072)
    target_itl_ms: float = _setting(50.0, "slowest acceptable gap between tokens, ms", low=1, high=10000)
    api_server_count: int | None = _setting(None, "processes that decode images", low=1, high=16)
    gpu_memory_utilization: float = _setting(0.92, "share of the GPU's memory vLLM may take", low=0.1, high=0.99)
    cpu_kv_cache_gib: int = _setting(1, "KV cache on a CPU, GiB", low=1, high=4096)
    block_size: int | None = _setting(None, "tokens of one KV block; 16 on a GPU, 128 on a CPU", low=16, high=256)
    enforce_eager: bool | None = _setting(None, "true: neither compile nor capture graphs; default only on a CPU")
    max_image_pixels: int = _setting(50_000_000, "largest image, pixels", low=1, high=178_956_970)
    socket_dir: str = _setting("", "folder of the private socket; empty = a temporary folder of mode 0700")
    log_level: str = _setting(
        "error", "least important lines of engine and gateway to show; info: one a request", choices=LOG_LEVELS
    )
    extra_args: tuple[str, ...] = _setting((), "more flags of `vllm serve`, as a list")


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """Everything `pedcxr-serve start` needs to know; made by `load`, never changed afterwards."""

    model: str = _setting("demo", 'what to serve: "demo", a folder, or a hub id (owner/name)')
    revision: str | None = _setting(None, "branch, tag or commit of a hub id")
    served_name: str = _setting("", f'name that clients ask for; empty = "{DEMO_NAME}", or the name of folder or id')
    gateway: GatewayConfig = field(default_factory=GatewayConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    source: Path | None = None


TABLES: dict[str, type] = {"": ServeConfig, "gateway": GatewayConfig, "engine": EngineConfig}


@dataclass(frozen=True, slots=True)
class Option:
    """One setting of the schema.

    Attributes:
        key: As in the file, with its table: ``gateway.port``.
        flag: As on the command line: ``--port``.
        kind: ``str``, ``int``, ``float``, ``bool`` or ``list``.
        optional: Whether leaving it out means "choose for me".
    """

    key: str
    flag: str
    kind: str
    optional: bool
    default: object
    doc: str
    low: float
    high: float
    choices: tuple[str, ...]

    def allowed(self) -> str:
        """What a value may be, in words for an error."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        if self.kind in ("int", "float"):
            noun = "a whole number" if self.kind == "int" else "a number"
            return (
                f"{noun} from {self.low:g} to {self.high:,.0f}"
                if self.high >= 1
                else f"{noun} from {self.low:g} to {self.high:g}"
            )
        return {"str": "a text", "bool": "true or false", "list": "a list of texts"}[self.kind]


def options() -> tuple[Option, ...]:
    """The whole schema, in the file's order: what a command line can offer and a file can hold."""
    return tuple(option for table, cls in TABLES.items() for option in _options_of(table, cls))


def _options_of(table: str, cls: type) -> list[Option]:
    hints = typing.get_type_hints(cls)
    found = []
    for item in fields(cls):
        if "doc" not in item.metadata:
            continue
        kinds = [kind for kind in typing.get_args(hints[item.name]) if kind is not type(None) and kind is not Ellipsis]
        base = hints[item.name] if isinstance(hints[item.name], type) else kinds[0]
        found.append(
            Option(
                key=f"{table}.{item.name}" if table else item.name,
                flag="--" + item.name.replace("_", "-"),
                kind="list" if isinstance(item.default, tuple) else base.__name__,
                optional=type(None) in typing.get_args(hints[item.name]),
                default=item.default,
                **{key: item.metadata[key] for key in ("doc", "low", "high", "choices")},
            )
        )
    return found


def reference() -> str:
    """A commented serve.toml in which every setting stands at its default."""
    lines = ["# serve.toml: the settings of pedcxr-serve, each at its default. Flags of the same name win over it."]
    table = ""
    for option in options():
        head, _, name = option.key.rpartition(".")
        if head != table:
            table = head
            lines += ["", f"[{table}]"]
        lines.append(f"# {option.doc} ({option.allowed()})")
        lines.append(f"# {name} =" if option.default is None else f"{name} = {_toml(option.default)}")
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return f'"{value}"' if isinstance(value, str) else str(value)
