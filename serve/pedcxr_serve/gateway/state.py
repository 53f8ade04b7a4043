"""The state that the gateway's routes and the supervisor share, and how it is built from the configuration."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pedcxr_serve.config.settings import GatewayConfig, ServeConfig
from pedcxr_serve.engine.heartbeat import EngineHeartbeat
from pedcxr_serve.engine.served_models import ServedModels
from pedcxr_serve.errors import ConfigError
from pedcxr_serve.gateway import rate_limit
from pedcxr_serve.gateway.accounting import audit
from pedcxr_serve.gateway.accounting.audit import AuditLog
from pedcxr_serve.gateway.accounting.film_quarantine import FilmQuarantine
from pedcxr_serve.gateway.accounting.metrics import GatewayMetrics, TenantMetrics
from pedcxr_serve.gateway.accounting.usage import UsageStore
from pedcxr_serve.gateway.auth.models import NO_ADAPTERS, ServedAdapter, revision_of
from pedcxr_serve.gateway.auth.tenant_store import TenantStore
from pedcxr_serve.gateway.auth.tenants import Tenant
from pedcxr_serve.gateway.http.tls import CertificateStore
from pedcxr_serve.gateway.rate_limit import RateLimiter
from pedcxr_serve.gateway.request.body import BodyMemory
from pedcxr_serve.gateway.request.validation import Rules
from pedcxr_serve.gateway.scheduler import FairQueue, FairScheduler

_MIB = 1 << 20


@dataclass(slots=True)
class State:
    """Everything that requests share; one object per server, built by `open_state`.

    Attributes:
        socket: the engine's Unix socket.
        demo: whether the demo checkpoint is served; every report is then marked.
        body_limit: maximum size of a request body in bytes.
        tls: certificate and key of the public port, or None for plain HTTP.
        image_tokens: prompt tokens per image.
        image_size: width and height in pixels that the model's processor resizes an image to.
        revision: of the checkpoint (`pedcxr_serve.checkpoint.revision`), or None if unknown.
        stage: description of the start-up or shutdown step for clients, ``ready`` in between. While it is ``stopping``,
            every answer closes its connection.
        ready: whether new requests for reports are accepted. ``/health/ready`` also requires the stage ``ready``.
        engine_up: whether accepted requests can be sent to the engine; stays true during a drain.
        heartbeat: time of the engine's last output.
        comment_after_s, comment_every_s: a stream that waits so long gets its headers and a first comment, then further
            comments.
        keep_alive_s: time that an idle connection stays open.
        allowed_origins: origins of web pages that may send requests (CORS); ``*`` allows all.
        allowed_hosts: names other than loopback that the Host header may have on a server without API keys.
        in_flight: number of requests queued or sent to the engine.
        started: start time of the server, of `time.monotonic`.
    """

    socket: Path
    demo: bool
    body_limit: int
    rules: Rules = field(default_factory=lambda: Rules("pedcxr-demo", 500))
    tenants: TenantStore = field(default_factory=lambda: TenantStore(None))
    scheduler: FairScheduler = field(
        default_factory=lambda: FairScheduler(FairQueue(64, max_waiting=1024, max_wait_s=120))
    )
    rate_limiter: RateLimiter = field(default_factory=RateLimiter)
    models: ServedModels = field(default_factory=ServedModels)
    quarantine: FilmQuarantine = field(default_factory=FilmQuarantine)
    bodies: BodyMemory = field(default_factory=lambda: BodyMemory(1 << 30, timeout_s=60))
    usage: UsageStore = field(default_factory=lambda: UsageStore(None))
    audit: AuditLog | None = None
    tls: CertificateStore | None = None
    image_tokens: int = 256
    image_size: tuple[int, int] = (896, 896)
    revision: str | None = None
    stage: str = "starting"
    ready: bool = False
    engine_up: bool = True
    heartbeat: EngineHeartbeat = field(default_factory=EngineHeartbeat)
    comment_after_s: float = 10.0
    comment_every_s: float = 15.0
    keep_alive_s: float = 75.0
    allowed_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    in_flight: int = 0
    started: float = field(default_factory=time.monotonic)
    metrics: GatewayMetrics = field(default_factory=GatewayMetrics)
    tenant_metrics: TenantMetrics = field(init=False)

    def __post_init__(self) -> None:
        self.tenant_metrics = TenantMetrics(self.metrics.registry, self.usage)
        self.rate_limiter.register(self.metrics.registry)
        runtime, tenants, tls, log = self.metrics.runtime, self.tenants, self.tls, self.audit
        runtime.slots.set(self.scheduler.queue.slots)
        runtime.body_bytes.set_function(lambda: self.bodies.in_use)
        if log is not None:
            runtime.audit_next_seq.set_function(lambda: log.next_seq)
        if not tenants.current.is_anonymous:
            runtime.follow_reloads("tenants", lambda: tenants.broken is None, lambda: tenants.read_at)
        if tls is not None:
            tls.register(self.metrics.registry)
            runtime.follow_reloads("certificate", lambda: not tls.broken, lambda: tls.read_at)

    def set_ready(self, ready: bool, stage: str) -> None:
        """Accept or refuse requests for reports; ``stage`` is part of the 503 answer."""
        self.ready, self.stage = ready, stage
        self.metrics.ready.set(int(ready))

    def revision_of(self, model: str) -> str | None:
        """Return the revision of the weights that answer for a model; see `models.revision_of`."""
        return revision_of(model, self.revision, self.rules.adapters)

    def reload(self) -> None:
        """Read tenants and certificate again, as on SIGHUP. An invalid file leaves the current values in use."""
        self.tenants.reload()
        if self.tls is not None:
            self.tls.reload()

    def reload_if_changed(self) -> None:
        """Read tenants and certificate again if their files have changed."""
        self.tenants.reload_if_changed()
        if self.tls is not None:
            self.tls.reload_if_changed()


@contextlib.contextmanager
def open_state(
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
    adapters: Mapping[str, ServedAdapter] = NO_ADAPTERS,
) -> Iterator[State]:
    """Build the state from the configuration; its files are open until the end of the block.

    Args:
        slots: maximum number of running requests, the plan's ``max_num_seqs``.
        max_preparing, max_starting: the plan's limits of the same names, applied with a tenants file only.
        adapters: the adapters that the engine loads, by name.
        env: holds the key of the audit log, and the address of Redis if the settings do not.

    Raises:
        ConfigError: a file is invalid or cannot be used; the message names the file.
    """
    gateway = settings.gateway
    tenants_path = Path(gateway.tenants).expanduser() if gateway.tenants else None
    tenants = TenantStore(tenants_path)
    _check_tenants(settings, tenants.current.all)
    with contextlib.ExitStack() as stack:
        usage = UsageStore(_usage_path(gateway.usage_db, tenants_path, env))
        stack.callback(usage.close)
        log = None
        if gateway.audit_log:
            log = AuditLog(Path(gateway.audit_log).expanduser(), audit.key_from(env))
            stack.callback(log.close)
        redis_url = rate_limit.url_from(gateway.limits_url, env)
        tls = None
        if gateway.tls_cert:
            tls = CertificateStore(Path(gateway.tls_cert).expanduser(), Path(gateway.tls_key).expanduser())
        state = State(
            socket,
            demo=demo,
            body_limit=gateway.body_limit_mib * _MIB,
            rules=Rules(
                settings.served_name,
                settings.engine.max_new_tokens,
                system_chars=gateway.system_chars,
                served=frozenset(adapters),
                adapters=adapters,
            ),
            tenants=tenants,
            scheduler=FairScheduler(_fair_queue(gateway, slots, max_preparing, max_starting)),
            rate_limiter=RateLimiter(rate_limit.connection_pool(redis_url) if redis_url else None),
            bodies=BodyMemory(gateway.bodies_mib * _MIB, timeout_s=gateway.body_timeout_s),
            usage=usage,
            audit=log,
            tls=tls,
            image_tokens=image_tokens,
            image_size=image_size,
            revision=revision,
            keep_alive_s=gateway.keep_alive_s,
            allowed_origins=gateway.allowed_origins,
            allowed_hosts=tuple(host.lower() for host in gateway.allowed_hosts),
        )
        for name in (settings.served_name, *adapters):
            state.metrics.models.labels(name, state.revision_of(name) or "").set(1)
        yield state


def _fair_queue(gateway: GatewayConfig, slots: int, max_preparing: float, max_starting: float) -> FairQueue:
    """Return a queue that, with a tenants file, limits starting requests and reserves slots for light tenants."""
    multi_tenant = bool(gateway.tenants)
    spare = min(8, slots // 16) if multi_tenant else 0
    return FairQueue(
        slots - spare,
        max_waiting=gateway.max_waiting,
        max_wait_s=gateway.max_wait_s,
        max_preparing=max_preparing if multi_tenant else math.inf,
        max_starting=max_starting if multi_tenant else math.inf,
        spare=spare,
    )


def _check_tenants(settings: ServeConfig, tenants: Mapping[str, Tenant]) -> None:
    """Raise ConfigError if a tenant of an adapter, or the default model of a tenant, does not exist."""
    names = {settings.served_name, *settings.adapters}
    for adapter, entry in settings.adapters.items():
        if absent := [name for name in entry.tenants if name not in tenants]:
            raise ConfigError(
                f"adapters.{adapter}.tenants: no tenant {absent[0]!r} in {settings.gateway.tenants}. "
                f"`pedcxr-serve keys new {absent[0]}` creates it."
            )
    for tenant in tenants.values():
        if tenant.default_model and tenant.default_model not in names:
            raise ConfigError(
                f"{settings.gateway.tenants}: tenant.{tenant.name}.default_model = {tenant.default_model!r}: "
                f"must be one of {', '.join(sorted(names))}."
            )


def _usage_path(setting: str, tenants: Path | None, env: Mapping[str, str]) -> Path | None:
    if setting:
        return Path(setting).expanduser()
    if tenants is None:
        return None
    # systemd sets it for units with StateDirectory=, to which /etc is usually read-only.
    state_folder = env.get("STATE_DIRECTORY", "").partition(":")[0]
    return Path(state_folder, "usage.sqlite") if state_folder else tenants.with_name("usage.sqlite")
