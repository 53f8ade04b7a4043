"""Check settings and the files that they name without starting anything, also beside a running server."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from pedcxr_serve.checkpoint import download
from pedcxr_serve.config import load, paths, secret_file
from pedcxr_serve.config.settings import ServeConfig
from pedcxr_serve.engine import address
from pedcxr_serve.errors import ServeError
from pedcxr_serve.gateway.accounting import audit, redis_calls
from pedcxr_serve.gateway.auth import tenants
from pedcxr_serve.gateway.http import tls
from pedcxr_serve.gateway.state import check_tenants, import_traces, usage_path
from pedcxr_serve.launcher import promotion_file

_SQLITE = b"SQLite format 3\0"


@dataclass(frozen=True, slots=True)
class Result:
    """One check: of a setting, what was found, and the error if it is wrong."""

    setting: str
    text: str
    error: str = ""


def check(config: ServeConfig, env: Mapping[str, str]) -> list[Result]:
    """Return the result of each check that these settings need. No file is created or changed."""
    return [_result(setting, look) for setting, look in _checks(config, env)]


def render(results: list[Result]) -> str:
    """Return a line per check, and a last line with the verdict."""
    wrong = sum(bool(result.error) for result in results)
    lines = [
        f"{'WRONG' if result.error else 'ok':<5}  {result.setting}: {result.error or result.text}" for result in results
    ]
    return "\n".join([*lines, f"{wrong} wrong" if wrong else "the configuration can be used"])


def _result(setting: str, look: Callable[[], str]) -> Result:
    try:
        return Result(setting, look())
    except ServeError as error:
        return Result(setting, "", str(error))
    except OSError as error:
        return Result(setting, "", f"{error.filename}: {error.strerror}")


def _checks(config: ServeConfig, env: Mapping[str, str]) -> Iterator[tuple[str, Callable[[], str]]]:
    gateway, engine = config.gateway, config.engine
    yield "settings", lambda: f"model {config.served_name}, API on {gateway.host}:{gateway.port}"
    yield "environment", lambda: _environment(env)
    if not _engine_is_apart(config):  # a gateway apart needs no model folder
        yield "model", lambda: _model(config)
        for name, adapter in config.adapters.items():
            yield f"adapters.{name}.path", partial(_adapter, adapter.path)
    if config.require_promotion:
        yield "require_promotion", lambda: _promotion(config.require_promotion)
    for name, adapter in config.adapters.items():
        if adapter.require_promotion:
            yield f"adapters.{name}.require_promotion", partial(_promotion, adapter.require_promotion)
    if gateway.tenants:
        yield "gateway.tenants", lambda: _tenants(config)
    if gateway.tls_cert:
        yield "gateway.tls_cert", lambda: _certificate(paths.expand(gateway.tls_cert), paths.expand(gateway.tls_key))
    if gateway.audit_log:
        yield "gateway.audit_log", lambda: _audit(paths.expand(gateway.audit_log), env)
    if gateway.tenants or gateway.usage_db:
        yield "gateway.usage_db", lambda: _usage(usage_path(gateway, env))
    if url := redis_calls.url_from(gateway.limits_url, env):
        yield "gateway.limits_url", lambda: _redis(url)
    if gateway.admin_token_file:
        yield "gateway.admin_token_file", lambda: _secret(paths.expand(gateway.admin_token_file))
    if gateway.cache_secret_file:
        yield "gateway.cache_secret_file", lambda: _created(paths.expand(gateway.cache_secret_file))
    if config.telemetry.otlp_endpoint:
        yield "telemetry.otlp_endpoint", lambda: import_traces().check(config.telemetry)
    if engine.key_file:
        yield "engine.key_file", lambda: _created(paths.expand(engine.key_file))
    if gateway.engine:
        yield "gateway.engine", lambda: address.describe(address.parse(gateway.engine))
    if engine.listen:
        yield "engine.listen", lambda: address.describe(address.listener(engine.listen))


def _engine_is_apart(config: ServeConfig) -> bool:
    """Return whether `pedcxr-serve gateway` may use these settings, whose engine another machine may run."""
    return bool(config.gateway.engine or config.engine.listen or config.engine.socket_dir)


def _model(config: ServeConfig) -> str:
    folder = download.local_folder(config.model, config.revision)
    return f"{config.model}, to be downloaded" if folder is None else str(folder)


def _adapter(setting: str) -> str:
    folder = paths.expand(setting)
    if not paths.is_dir(folder):
        raise ServeError(f"{folder}: no such folder")
    return str(folder)


def _environment(env: Mapping[str, str]) -> str:
    load.reject_environment(env)
    return "no variable that vLLM must not see"


def _promotion(setting: str) -> str:
    result = promotion_file.read(paths.expand(setting))
    return f"{'yes' if result.get('promote') is True else 'no'}, of {result.get('created')}"


def _redis(url: str) -> str:
    redis_calls.connection_pool(url)
    return "an address of Redis"


def _tenants(config: ServeConfig) -> str:
    loaded = tenants.load(paths.expand(config.gateway.tenants))
    # The file of a gateway apart may leave the model to its engine.
    apart = _engine_is_apart(config) and config.model == "demo"
    check_tenants(config, loaded, models_known=not config.gateway.engine and not apart)
    keys = sum(key.valid(datetime.now(UTC)) for tenant in loaded.all.values() for key in tenant.keys)
    return f"{len(loaded.all)} tenants, {keys} valid keys"


def _certificate(certificate: Path, key: Path) -> str:
    return f"expires {tls.load(certificate, key, datetime.now(UTC)).expires:%Y-%m-%d}"


def _audit(path: Path, env: Mapping[str, str]) -> str:
    key = audit.key_from(env)
    if not paths.exists(path):
        return _creatable(path)
    if not os.access(path, os.W_OK):
        raise ServeError(f"{path}: cannot be written by this user")
    return audit.verify(path, key, allow_truncated=True)


def _usage(path: Path | None) -> str:
    if path is None:
        return "in memory"
    if not paths.exists(path):
        return _creatable(path)
    # SQLite itself would create files beside it, perhaps as another user than the server's.
    try:
        with path.open("rb+") as file:
            magic, size = file.read(len(_SQLITE)), os.fstat(file.fileno()).st_size
    except OSError as error:
        raise ServeError(f"{path}: cannot be written ({error.strerror})") from error
    if magic not in (_SQLITE, b""):
        raise ServeError(f"{path}: is no SQLite database; move it away")
    return f"{size:,} bytes"


def _created(path: Path) -> str:
    return _secret(path) if paths.exists(path) else _creatable(path)


def _secret(path: Path) -> str:
    secret_file.read(path)
    return "a secret"


def _creatable(path: Path) -> str:
    if os.access(path.parent, os.W_OK | os.X_OK):
        return "absent; will be created"
    raise ServeError(f"{path}: absent, and cannot be created in its folder by this user")
