"""The gateway's state, from the configuration."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from pedcxr_serve.config.load import GatewayConfig, ServeConfig
from pedcxr_serve.gateway import rate_limit
from pedcxr_serve.gateway.accounting import audit
from pedcxr_serve.gateway.accounting.usage import UsageStore
from pedcxr_serve.gateway.auth.tenant_store import TenantStore
from pedcxr_serve.gateway.gate import Gate
from pedcxr_serve.gateway.http.tls import Tls
from pedcxr_serve.gateway.rate_limit import Rate
from pedcxr_serve.gateway.request.body import BodyMemory
from pedcxr_serve.gateway.request.validation import Rules
from pedcxr_serve.gateway.scheduler import Admission
from pedcxr_serve.gateway.state import State

_MIB = 1 << 20


@contextlib.contextmanager
def state(
    settings: ServeConfig,
    socket: Path,
    *,
    slots: int,
    max_preparing: float = math.inf,
    max_starting: float = math.inf,
    image_tokens: int,
    demo: bool,
    env: Mapping[str, str],
    image_size: tuple[int, int] = (896, 896),
    revision: str | None = None,
) -> Iterator[State]:
    """Everything that requests share; files are opened, and closed at the end of the block.

    Args:
        slots: reports in work at once, the plan's ``max_num_seqs``.
        max_preparing, max_starting: of those, the plan's; for several tenants.
        image_tokens: that a film takes in the prompt.
        env: holds the audit log's key, and Redis' address if the settings do not.
        image_size, revision: what clients are told of the model, see `State`.

    Raises:
        ConfigError: a file is broken or cannot be used; the message names it.
    """
    gateway = settings.gateway
    tenants = Path(gateway.tenants).expanduser() if gateway.tenants else None
    book = TenantStore(tenants)
    with contextlib.ExitStack() as stack:
        usage = UsageStore(_usage_path(gateway.usage_db, tenants))
        stack.callback(usage.close)
        log = None
        if gateway.audit_log:
            log = audit.AuditLog(Path(gateway.audit_log).expanduser(), audit.key_from(env))
            stack.callback(log.close)
        limits = rate_limit.url_from(gateway.limits_url, env)
        tls = Tls(Path(gateway.tls_cert).expanduser(), Path(gateway.tls_key).expanduser()) if gateway.tls_cert else None
        yield State(
            socket,
            demo=demo,
            body_limit=gateway.body_limit_mib * _MIB,
            rules=Rules(settings.served_name, settings.engine.max_new_tokens, system_chars=gateway.system_chars),
            book=book,
            gate=Gate(_admission(gateway, slots, max_preparing, max_starting)),
            rate=Rate(rate_limit.pool_of(limits) if limits else None),
            bodies=BodyMemory(gateway.bodies_mib * _MIB, timeout_s=gateway.body_timeout_s),
            usage=usage,
            audit=log,
            tls=tls,
            image_tokens=image_tokens,
            image_size=image_size,
            revision=revision,
        )


def _admission(gateway: GatewayConfig, slots: int, max_preparing: float, max_starting: float) -> Admission:
    """With several tenants few requests start at once and some slots are kept for whoever has little in work."""
    several = bool(gateway.tenants)
    spare = min(8, slots // 16) if several else 0
    return Admission(
        slots - spare,
        max_waiting=gateway.max_waiting,
        max_wait_s=gateway.max_wait_s,
        max_preparing=max_preparing if several else math.inf,
        max_starting=max_starting if several else math.inf,
        spare=spare,
    )


def _usage_path(chosen: str, tenants: Path | None) -> Path | None:
    if chosen:
        return Path(chosen).expanduser()
    return tenants.with_name("usage.sqlite") if tenants else None
