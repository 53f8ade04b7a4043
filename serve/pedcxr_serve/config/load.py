"""Loading of the configuration: one TOML file, the environment over it, options over both, every value checked."""

from __future__ import annotations

import contextlib
import ipaddress
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from pedcxr_serve.config import environment, paths, toml_file
from pedcxr_serve.config.schema import FieldError
from pedcxr_serve.config.settings import DEMO_NAME, SCHEMA, ServeConfig
from pedcxr_serve.config.vllm_flags import forbidden_reason
from pedcxr_serve.errors import ConfigError

_MAX_TEXT = 4096
_ADAPTER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def load(path: Path | None, overrides: Mapping[str, object], env: Mapping[str, str] | None = None) -> ServeConfig:
    """Read, merge and check the configuration.

    Args:
        path: A TOML file, or None for the defaults.
        overrides: Settings that take precedence over the file, keyed ``gateway.port``. Numbers and booleans may be
            text, as on a command line; None means that the option is absent.
        env: Environment variables, which take precedence over the file; see `environment.settings_from`.

    Raises:
        ConfigError: The message has file or option, key, value and what is allowed.
    """
    tables: dict[str, Any] = {}
    source = str(path or "defaults")
    origins: dict[str, str] = {}
    try:
        if path is not None:
            text = toml_file.read_text(path, remedy="Give a readable TOML file, or omit --config.")
            tables = SCHEMA.check(toml_file.parse(text, source))
        source = "environment"
        for key, value in environment.settings_from(env or {}).items():
            origins[key] = f"environment: {environment.variable_name(key)} ({key})"
            _override(tables, key, value, environment.variable_name(key))
        source = "command line"
        for key, value in overrides.items():
            if value is not None:
                origins[key] = f"command line: {option_name(key)} ({key})"
                _override(tables, key, value, option_name(key))
    except FieldError as error:
        raise ConfigError(f"{source}: {error.assignment}: {error}.") from error
    _require_printable(tables, lambda key: origins.get(key, f"{path}: {key}"))
    config = msgspec.convert(tables, ServeConfig)
    if not config.served_name:
        config = msgspec.structs.replace(config, served_name=_name_of(config.model))
    _check_combinations(config, lambda key: origins.get(key, f"{path or 'defaults'}: {key}"))
    return config


def option_name(key: str) -> str:
    """Return the command-line option of a setting: ``--admin-port`` for ``gateway.admin_port``."""
    if key == "gateway.log_level":  # --log-level is the engine's
        return "--gateway-log-level"
    return "--" + key.rpartition(".")[2].replace("_", "-")


def reject_environment(env: Mapping[str, str]) -> None:
    """Reject environment variables that change which engine vLLM starts or who may use it.

    Raises:
        ConfigError: For ``VLLM_USE_RUST_FRONTEND``, with which vLLM 0.32 (``entrypoints/cli/serve.py``) starts the
            vllm-rs binary, which loads no plugin. For ``VLLM_API_KEY``, with which the engine rejects the gateway.
            For a ``VLLM_PORT`` that is no number, which Kubernetes sets in every pod if a Service is named ``vllm``.
    """
    port = env.get("VLLM_PORT", "")
    if port and not port.isdecimal():
        raise ConfigError(
            f"environment: VLLM_PORT = {port!r} is not a port: a Kubernetes Service named vllm sets it. Rename the "
            "Service, or set enableServiceLinks: false in the pod."
        )
    rust = env.get("VLLM_USE_RUST_FRONTEND", "0").strip()
    if rust not in ("", "0"):
        raise ConfigError(
            f"environment: VLLM_USE_RUST_FRONTEND = {rust!r}: the Rust frontend does not load pedcxr's plugin, so "
            "images would reach the model unchecked. Allowed: unset, or 0. Run `unset VLLM_USE_RUST_FRONTEND`."
        )
    if env.get("VLLM_API_KEY"):
        raise ConfigError(
            "environment: VLLM_API_KEY is set, so the engine would reject the gateway. Allowed: unset. "
            "Run `unset VLLM_API_KEY`; the gateway, or a proxy in front of it, checks API keys."
        )


def is_loopback(host: str) -> bool:
    """Return whether an address can be reached from this machine only."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def is_host(text: str) -> bool:
    """Return whether Python can resolve a host name: no part of it is empty or longer than 63 characters."""
    try:
        text.encode("idna")
    except UnicodeError:
        return False
    return True


def _override(tables: dict[str, Any], key: str, value: object, name_of_source: str) -> None:
    field = next((field for field in SCHEMA.walk() if field.path == key), None)
    table, _, name = key.rpartition(".")
    if field is None:
        raise SCHEMA.unknown(key, name, SCHEMA.fields)
    path = f"{name_of_source} ({key})"
    checked = SCHEMA.check_field(field, value, path, strict=not isinstance(value, str))
    (tables.setdefault(table, {}) if table else tables)[name] = checked


def _require_printable(tables: Mapping[str, Any], where: Callable[[str], str], parent: str = "") -> None:
    for name, value in tables.items():
        key = f"{parent}{name}"
        if isinstance(value, dict):
            _require_printable(value, where, f"{key}.")
            continue
        texts = value if isinstance(value, tuple) else (value,)
        if any(isinstance(text, str) and (len(text) > _MAX_TEXT or not text.isprintable()) for text in texts):
            raise ConfigError(f"{where(key)}: must have at most {_MAX_TEXT:,} characters, all of them printable.")


def _name_of(model: str) -> str:
    if model == "demo":
        return DEMO_NAME
    name = model.rstrip("/").rpartition("/")[2]
    with contextlib.suppress(ConfigError):  # of a folder that cannot be used; that is found when it is needed
        folder = paths.expand(model)
        name = folder.resolve().name if paths.exists(folder) else name
    return re.sub(r"[^\w.-]", "-", name, flags=re.ASCII) or "model"


def _check_combinations(config: ServeConfig, where: Callable[[str], str]) -> None:
    gateway, engine = config.gateway, config.engine
    if not config.model.strip():
        raise ConfigError(f'{where("model")} = {config.model!r}: must be "demo", a folder, or a hub id (owner/name).')
    if not re.fullmatch(r"[\w.:/-]{1,128}", config.served_name, flags=re.ASCII):
        raise ConfigError(
            f"{where('served_name')} = {config.served_name!r}: must be 1 to 128 characters of A-Z a-z 0-9 _ . : / -"
        )
    if not gateway.tenants and not is_loopback(gateway.host):
        raise ConfigError(
            f"{where('gateway.host')} = {gateway.host!r}: must be a loopback address (127.0.0.1, ::1, localhost) "
            "without tenants, because every client that reaches the port could use the server. Create API keys with "
            "`pedcxr-serve keys new NAME` and set gateway.tenants, or run an authenticated proxy in front of loopback."
        )
    if not gateway.admin_token_file and not is_loopback(gateway.admin_host):
        raise ConfigError(
            f"{where('gateway.admin_host')} = {gateway.admin_host!r}: must be a loopback address without "
            "gateway.admin_token_file, because metrics and usage would be open to every client that reaches the port."
        )
    if engine.listen and not engine.key_file:
        raise ConfigError(
            f"{where('engine.listen')} = {engine.listen!r}: requires engine.key_file, because every client that "
            "reaches the address could use the engine. Name a file; the engine creates it."
        )
    if gateway.host == "":
        raise ConfigError(f"{where('gateway.host')} = '': must be an address; 0.0.0.0 is every IPv4 address.")
    for name in ("host", "admin_host"):
        if not is_host(host := getattr(gateway, name)):
            raise ConfigError(f"{where('gateway.' + name)} = {host!r}: must be an address or a host name.")
    if _password(gateway.limits_url) and where("gateway.limits_url").startswith("command line"):
        raise ConfigError(
            f"{where('gateway.limits_url')}: a password on the command line is visible to every user of this machine. "
            "Put the URL into the file given with --config, or into PEDCXR_LIMITS_URL in the environment."
        )
    for name, other in (("tls_cert", "tls_key"), ("tls_key", "tls_cert")):
        if getattr(gateway, name) and not getattr(gateway, other):
            raise ConfigError(f"{where('gateway.' + name)}: requires gateway.{other}.")
    if gateway.port and gateway.port == gateway.admin_port:
        raise ConfigError(f"{where('gateway.admin_port')} = {gateway.admin_port}: must differ from gateway.port.")
    if engine.max_new_tokens >= engine.max_model_len:
        raise ConfigError(
            f"{where('engine.max_new_tokens')} = {engine.max_new_tokens}: must be less than engine.max_model_len "
            f"({engine.max_model_len}), which includes the prompt."
        )
    if engine.block_size and engine.block_size & (engine.block_size - 1):
        raise ConfigError(f"{where('engine.block_size')} = {engine.block_size}: must be 16, 32, 64, 128 or 256.")
    for name, adapter in config.adapters.items():
        key = where(f"adapters.{name}")
        if not _ADAPTER_NAME.fullmatch(name):
            raise ConfigError(
                f"{key}: the name must be 1 to 64 characters of A-Z a-z 0-9 _ . - and start with a letter."
            )
        if name == config.served_name:
            raise ConfigError(f"{key}: the model itself has this name; rename the adapter, or set served_name.")
        if adapter.tenants and not gateway.tenants:
            raise ConfigError(f"{key}.tenants: requires gateway.tenants, the file of the tenants.")
    if (endpoint := config.telemetry.otlp_endpoint) and not _is_collector(endpoint):
        raise ConfigError(
            f"{where('telemetry.otlp_endpoint')}: must be http://HOST:PORT/PATH or https://HOST:PORT/PATH without a "
            "password, such as http://127.0.0.1:4318/v1/traces; headers with secrets come from "
            "OTEL_EXPORTER_OTLP_HEADERS in the environment."
        )
    if reason := forbidden_reason(engine.extra_args):
        raise ConfigError(f"{where('engine.extra_args')}: {reason}.")


def _is_collector(text: str) -> bool:
    try:
        url = urlsplit(text)
        is_url = url.scheme in ("http", "https") and bool(url.hostname) and url.username is None and url.port != 0
        # Without a path, a collector answers 404 to all spans.
        return is_url and is_host(url.hostname or "") and url.path not in ("", "/")
    except ValueError:
        return False


def _password(url: str) -> str | None:
    try:
        return urlsplit(url).password
    except ValueError:
        return None
