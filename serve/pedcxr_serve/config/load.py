"""The configuration: one TOML file, flags over it, every value checked before anything starts."""

from __future__ import annotations

import ipaddress
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pedcxr_serve.config.settings import (
    DEMO_NAME,
    TABLES,
    EngineConfig,
    GatewayConfig,
    Option,
    ServeConfig,
    options,
    reference,
)
from pedcxr_serve.config.vllm_flags import refuse as refuse_extra_args
from pedcxr_serve.errors import ConfigError

__all__ = [
    "EngineConfig",
    "GatewayConfig",
    "Option",
    "ServeConfig",
    "is_loopback",
    "load",
    "options",
    "reference",
    "refuse_environment",
]

_FILE_LIMIT = 1 << 20


def load(path: Path | None, overrides: Mapping[str, object]) -> ServeConfig:
    """Read, merge and check the configuration.

    Args:
        path: A TOML file, or None for the defaults.
        overrides: Settings that win over the file, keyed ``gateway.port``, as flags give them: numbers may be text,
            None means that the flag was not given.

    Raises:
        ConfigError: Naming file (or flag), key, value and what is allowed.
    """
    schema = {option.key: option for option in options()}
    values: dict[str, object] = {}
    where: dict[str, str] = {}
    if path is not None:
        for key, raw in _flatten(_read(path), path).items():
            where[key] = f"{path}: {key}"
            values[key] = _checked(_known(schema, key, str(path)), raw, where[key])
    for key, raw in overrides.items():
        if raw is None:
            continue
        option = _known(schema, key, "command line")
        where[key] = f"command line: {option.flag} ({key})"
        values[key] = _checked(option, _from_text(option, raw), where[key])
    config = _build(values, path)
    _check_together(config, lambda key: where.get(key, f"{path or 'defaults'}: {key}"))
    return config


def refuse_environment(env: Mapping[str, str]) -> None:
    """Refuse environment variables that would start an engine other than the one that was checked.

    Raises:
        ConfigError: For ``VLLM_USE_RUST_FRONTEND``, under which vLLM 0.32 (``entrypoints/cli/serve.py``) starts the
            vllm-rs binary instead of the Python server and loads no plugin in it; for ``VLLM_API_KEY``, which would
            lock out our own gateway.
    """
    rust = env.get("VLLM_USE_RUST_FRONTEND", "0").strip()
    if rust not in ("", "0"):
        raise ConfigError(
            f"environment: VLLM_USE_RUST_FRONTEND = {rust!r}: the Rust frontend does not load pedcxr's plugin, so "
            "images would reach the model unchecked. Allowed: unset, or 0. Run `unset VLLM_USE_RUST_FRONTEND`."
        )
    if env.get("VLLM_API_KEY"):
        raise ConfigError(
            "environment: VLLM_API_KEY is set, and the engine would refuse the gateway. Allowed: unset. "
            "Run `unset VLLM_API_KEY`; keys are the business of the gateway or of a proxy in front of it."
        )


def _read(path: Path) -> dict[str, object]:
    try:
        with path.open("rb") as file:
            raw = file.read(_FILE_LIMIT + 1)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}). Give a readable TOML file, or no --config."
        ) from error
    if len(raw) > _FILE_LIMIT:
        raise ConfigError(f"{path}: larger than 1 MiB, so hardly a configuration. Give a TOML file.")
    try:
        return tomllib.loads(raw.decode())
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8. Save the file as UTF-8 text.") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            f"{path}: not valid TOML: {error}. Texts need quotes; numbers, true and false none."
        ) from error


def _flatten(tables: Mapping[str, object], path: Path) -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in tables.items():
        if name in TABLES and not isinstance(value, dict):
            raise ConfigError(f"{path}: {name} = {value!r}: allowed is a table, written [{name}].")
        if isinstance(value, dict):
            if name not in TABLES:
                close = get_close_matches(name, [table for table in TABLES if table], n=1)
                hint = f"did you mean [{close[0]}]?" if close else "allowed are [gateway] and [engine]."
                raise ConfigError(f"{path}: [{name}]: no such table; {hint}")
            flat |= {f"{name}.{key}": item for key, item in value.items()}
        else:
            flat[name] = value
    return flat


def _known(schema: Mapping[str, Option], key: str, source: str) -> Option:
    if key in schema:
        return schema[key]
    leaf = key.rpartition(".")[2]
    close = [name for name in schema if name.rpartition(".")[2] == leaf] or get_close_matches(key, schema, n=1)
    close = close or [name for name in schema if get_close_matches(leaf, [name.rpartition(".")[2]])]
    hint = f"did you mean {close[0]}?" if close else "allowed are " + ", ".join(schema) + "."
    raise ConfigError(f"{source}: {key}: no such setting; {hint}")


def _from_text(option: Option, raw: object) -> object:
    if not isinstance(raw, str):
        return raw
    try:
        if option.kind == "int":
            return int(raw)
        if option.kind == "float":
            return float(raw)
    except ValueError:
        return raw
    return {"true": True, "false": False}.get(raw.lower(), raw) if option.kind == "bool" else raw


def _checked(option: Option, raw: object, where: str) -> object:
    value = float(raw) if option.kind == "float" and isinstance(raw, int) and not isinstance(raw, bool) else raw
    if option.kind == "list" and isinstance(raw, (list, tuple)) and all(isinstance(item, str) for item in raw):
        value = tuple(raw)
    expected = {"str": str, "int": int, "float": float, "bool": bool, "list": tuple}[option.kind]
    good = isinstance(value, expected) and not (isinstance(value, bool) and expected is not bool)
    if good and isinstance(value, (int, float)) and not isinstance(value, bool):
        good = option.low <= value <= option.high
    if good and option.choices:
        good = value in option.choices
    if not good:
        raise ConfigError(f"{where} = {raw!r}: allowed is {option.allowed()}.")
    texts = value if isinstance(value, tuple) else (value,)
    if any(isinstance(text, str) and (len(text) > 4096 or not text.isprintable()) for text in texts):
        raise ConfigError(f"{where}: allowed is a text of at most 4,096 printable characters.")
    return value


def _build(values: Mapping[str, Any], source: Path | None) -> ServeConfig:
    tables: dict[str, dict[str, Any]] = {table: {} for table in TABLES}
    for key, value in values.items():
        table, _, name = key.rpartition(".")
        tables[table][name] = value
    config = ServeConfig(
        **tables[""],
        gateway=GatewayConfig(**tables["gateway"]),
        engine=EngineConfig(**tables["engine"]),
        source=source,
    )
    return config if config.served_name else replace(config, served_name=_name_of(config.model))


def _name_of(model: str) -> str:
    if model == "demo":
        return DEMO_NAME
    name = (
        Path(model).expanduser().resolve().name
        if Path(model).expanduser().exists()
        else model.rstrip("/").rpartition("/")[2]
    )
    return re.sub(r"[^\w.-]", "-", name, flags=re.ASCII) or "model"


def _check_together(config: ServeConfig, where: Callable[[str], str]) -> None:
    gateway, engine = config.gateway, config.engine
    if not config.model.strip():
        raise ConfigError(
            f'{where("model")} = {config.model!r}: allowed is "demo", a folder, or a hub id (owner/name).'
        )
    if not re.fullmatch(r"[\w.:/-]{1,128}", config.served_name, flags=re.ASCII):
        raise ConfigError(
            f"{where('served_name')} = {config.served_name!r}: allowed are 1 to 128 of A-Z a-z 0-9 _ . : / -"
        )
    if not gateway.tenants and not is_loopback(gateway.host):
        raise ConfigError(
            f"{where('gateway.host')} = {gateway.host!r}: without tenants, allowed is loopback (127.0.0.1, ::1, "
            "localhost), since anybody who reaches the port could use it. Make keys with `pedcxr-serve keys new NAME` "
            "and set gateway.tenants, or put your own authenticated proxy in front of loopback."
        )
    if gateway.host == "":
        raise ConfigError(f"{where('gateway.host')} = '': allowed is an address; 0.0.0.0 is every IPv4 address.")
    if _password(gateway.limits_url) and where("gateway.limits_url").startswith("command line"):
        raise ConfigError(
            f"{where('gateway.limits_url')}: a password on a command line is seen by everybody on this machine. "
            "Allowed is a file given with --config, or PEDCXR_LIMITS_URL in the environment."
        )
    for given, missing in (("tls_cert", "tls_key"), ("tls_key", "tls_cert")):
        if getattr(gateway, given) and not getattr(gateway, missing):
            raise ConfigError(f"{where('gateway.' + given)}: allowed only together with gateway.{missing}.")
    if gateway.port and gateway.port == gateway.admin_port:
        raise ConfigError(
            f"{where('gateway.admin_port')} = {gateway.admin_port}: allowed is any port but gateway.port's."
        )
    if engine.max_new_tokens >= engine.max_model_len:
        raise ConfigError(
            f"{where('engine.max_new_tokens')} = {engine.max_new_tokens}: allowed is less than engine.max_model_len "
            f"({engine.max_model_len}), which holds the prompt too."
        )
    if engine.block_size and engine.block_size & (engine.block_size - 1):
        raise ConfigError(f"{where('engine.block_size')} = {engine.block_size}: allowed are 16, 32, 64, 128, 256.")
    if why := refuse_extra_args(engine.extra_args):
        raise ConfigError(f"{where('engine.extra_args')}: {why}.")


def _password(url: str) -> str | None:
    try:
        return urlsplit(url).password
    except ValueError:
        return None


def is_loopback(host: str) -> bool:
    """Whether an address is one that other machines cannot reach."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
