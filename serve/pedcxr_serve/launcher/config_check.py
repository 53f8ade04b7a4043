"""Check settings and the files that they name without starting anything, also beside a running server."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from pedcxr_serve.config import load, secret_file
from pedcxr_serve.config.settings import ServeConfig
from pedcxr_serve.engine import address
from pedcxr_serve.errors import ServeError
from pedcxr_serve.gateway.accounting import audit, redis_calls
from pedcxr_serve.gateway.auth import tenants
from pedcxr_serve.gateway.http import tls
from pedcxr_serve.gateway.state import import_traces, usage_path
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


def _checks(config: ServeConfig, env: Mapping[str, str]) -> Iterator[tuple[str, Callable[[], str]]]:
    gateway, engine = config.gateway, config.engine
    yield "settings", lambda: f"model {config.served_name}, API on {gateway.host}:{gateway.port}"
    yield "environment", lambda: _environment(env)
    if config.require_promotion:
        yield "require_promotion", lambda: _promotion(_path(config.require_promotion))
    for name, adapter in config.adapters.items():
        if adapter.require_promotion:
            yield f"adapters.{name}.require_promotion", partial(_promotion, _path(adapter.require_promotion))
    if gateway.tenants:
        yield "gateway.tenants", lambda: _tenants(_path(gateway.tenants))
    if gateway.tls_cert:
        yield "gateway.tls_cert", lambda: _certificate(_path(gateway.tls_cert), _path(gateway.tls_key))
    if gateway.audit_log:
        yield "gateway.audit_log", lambda: _audit(_path(gateway.audit_log), env)
    if (usage := usage_path(gateway, env)) is not None:
        yield "gateway.usage_db", lambda: _usage(usage)
    if url := redis_calls.url_from(gateway.limits_url, env):
        yield "gateway.limits_url", lambda: _redis(url)
    if gateway.admin_token_file:
        yield "gateway.admin_token_file", lambda: secret_file.read(_path(gateway.admin_token_file)) and "a secret"
    if gateway.cache_secret_file:
        yield "gateway.cache_secret_file", lambda: _created(_path(gateway.cache_secret_file))
    if config.telemetry.otlp_endpoint:
        yield "telemetry.otlp_endpoint", lambda: f"traces by {import_traces().SERVICE_NAME}"
    if engine.key_file:
        yield "engine.key_file", lambda: _created(_path(engine.key_file))
    if gateway.engine:
        yield "gateway.engine", lambda: address.describe(address.parse(gateway.engine))
    if engine.listen:
        yield "engine.listen", lambda: address.describe(address.listener(engine.listen))


def _path(setting: str) -> Path:
    return Path(setting).expanduser()


def _environment(env: Mapping[str, str]) -> str:
    load.reject_environment(env)
    return "no variable that vLLM must not see"


def _promotion(path: Path) -> str:
    result = promotion_file.read(path)
    return f"{'yes' if result.get('promote') is True else 'no'}, of {result.get('created')}"


def _redis(url: str) -> str:
    redis_calls.connection_pool(url)
    return "an address of Redis"


def _tenants(path: Path) -> str:
    loaded = tenants.load(path).all
    keys = sum(key.valid(datetime.now(UTC)) for tenant in loaded.values() for key in tenant.keys)
    return f"{len(loaded)} tenants, {keys} valid keys"


def _certificate(certificate: Path, key: Path) -> str:
    return f"expires {tls.load(certificate, key, datetime.now(UTC)).expires:%Y-%m-%d}"


def _audit(path: Path, env: Mapping[str, str]) -> str:
    key = audit.key_from(env)
    if path.exists():
        return audit.verify(path, key)
    return _creatable(path)


def _usage(path: Path) -> str:
    if not path.exists():
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
    return secret_file.read(path) and "a secret" if path.exists() else _creatable(path)


def _creatable(path: Path) -> str:
    if os.access(path.parent, os.W_OK | os.X_OK):
        return "absent; will be created"
    raise ServeError(f"{path}: absent, and cannot be created in its folder by this user")
