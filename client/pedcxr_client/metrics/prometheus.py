"""Prometheus metrics of a client.

Metric names, labels and bucket boundaries follow the OpenTelemetry conventions for generative AI where these define
them (https://github.com/open-telemetry/semantic-conventions-genai, gen-ai-metrics.md). The histograms have boundaries
of our own as well. Label values come from closed sets; the set of model names grows to `MAX_MODELS`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Histogram

    from pedcxr_client.errors import RequestError
    from pedcxr_client.metrics.hooks import Outcome

MAX_MODELS = 10
"""Number of model names that become label values, unless ``Metrics(models=...)`` lists them."""

_PROVIDER = "pedcxr"  # none of the values that the conventions define fits, so one of our own
_OPERATION = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model")
_CONVENTION_SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_CONVENTION_TOKENS = tuple(4**power for power in range(14))
_DURATION = (0.05, 0.1, 0.25, 0.5, 1, 2, 3, 5, 8, 13, 20, 30, 60, 120, 300, 600)
_FIRST_CHUNK = (0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 30, 60, 120)
_PER_TOKEN = (0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1)
_PHASE = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 120, 300)
_TOKENS = (1, 4, 16, 64, 128, 256, 384, 512, 1024, 4096)
_ABORTS = (
    "truncated", "aborted", "empty", "looping", "prompt_echo", "not_text", "not_english", "not_report", "timeout",
    "cancelled",
)  # fmt: skip
_NOT_SENT = ("input", "blocked", "configuration", "cancelled", "error")  # if nothing was sent, not the server's doing
_BYTES = (10_000, 30_000, 100_000, 300_000, 1_000_000, 3_000_000, 10_000_000, 30_000_000)


class Metrics:
    """A hook that counts and times the calls of a client: ``Client(metrics=Metrics(registry))``.

    Several clients and threads may share one object.

    Args:
        registry: registry for the metrics. A registry accepts one ``Metrics`` object.
        models: model names that are allowed as label values. Any other model becomes ``"other"``. By default, the first
            `MAX_MODELS` models that the client requests, by the name that it sends.
        ttft_slo, tpot_slo, e2e_slo: latency objectives in seconds. Each becomes a bucket boundary, so that the share
            of calls within the objective is exact. TTFT starts when the request is sent, E2E when the call starts.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        models: Iterable[str] | None = None,
        ttft_slo: float | None = None,
        tpot_slo: float | None = None,
        e2e_slo: float | None = None,
    ) -> None:
        from prometheus_client import Counter, Gauge, Histogram

        self._models = set() if models is None else set(models)
        self._accepts_models = models is None

        def histogram(name: str, help_text: str, labels: Iterable[str], buckets: Iterable[float]) -> Histogram:
            return Histogram(name, help_text, tuple(labels), registry=registry, buckets=tuple(buckets))

        self._duration = histogram(
            "gen_ai_client_operation_duration_seconds",
            "Duration of a call, including encoding and retries, without films that were never sent.",
            (*_OPERATION, "error_type"),
            _with_boundaries(_DURATION, _CONVENTION_SECONDS, e2e_slo),
        )
        self._first_chunk = histogram(
            "gen_ai_client_operation_time_to_first_chunk_seconds",
            "Time from sending the request to the first text (TTFT).",
            _OPERATION,
            _with_boundaries(_FIRST_CHUNK, _CONVENTION_SECONDS, ttft_slo),
        )
        self._tokens = histogram(
            "gen_ai_client_token_usage",
            "Tokens of a call, as counted by the server.",
            (*_OPERATION, "gen_ai_token_type"),
            _with_boundaries(_TOKENS, _CONVENTION_TOKENS),
        )
        self._per_token = histogram(
            "pedcxr_client_time_per_output_token_seconds",
            "Time per output token after the first (TPOT).",
            ("gen_ai_request_model",),
            _with_boundaries(_PER_TOKEN, (), tpot_slo),
        )
        self._phases = histogram(
            "pedcxr_client_phase_seconds",
            "Time per phase: encode, wait (until the first text), generate.",
            ("phase",),
            _PHASE,
        )
        self._bytes = histogram("pedcxr_client_request_bytes", "Size of request bodies.", (), _BYTES)
        self._in_flight = Gauge("pedcxr_client_in_flight", "Calls in flight.", registry=registry)
        self._retries = Counter("pedcxr_client_retries", "Retries by reason.", ("reason",), registry=registry)
        self._aborts = Counter(
            "pedcxr_client_aborts",
            "Calls without a usable report: rejected text, timeout or cancellation.",
            ("reason",),
            registry=registry,
        )
        self._not_sent = Counter(
            "pedcxr_client_not_sent",
            "Calls that ended before anything was sent: blocked and invalid films, cancellation.",
            ("reason",),
            registry=registry,
        )

    def started(self) -> None:
        """Count the start of a call."""
        self._in_flight.inc()

    def retrying(self, error: RequestError, wait: float) -> None:
        """Count a retry."""
        self._retries.labels(error.outcome).inc()

    def finished(self, outcome: Outcome) -> None:
        """Record the result of a call."""
        self._in_flight.dec()
        model = self._model_label(outcome.model)
        timing, operation = outcome.timing, ("chat", _PROVIDER, model)
        error_type = "" if outcome.name == "ok" else outcome.name
        if timing.sent is None and outcome.name in _NOT_SENT:
            self._not_sent.labels(outcome.name).inc()
        else:
            _observe(self._duration.labels(*operation, error_type), timing.scheduled, timing.done)
        _observe(self._first_chunk.labels(*operation), timing.sent, timing.first)
        _observe(self._phases.labels("encode"), timing.scheduled, timing.encoded)
        _observe(self._phases.labels("wait"), timing.sent, timing.first)
        _observe(self._phases.labels("generate"), timing.first, timing.last)
        if timing.tpot is not None:
            self._per_token.labels(model).observe(timing.tpot)
        if outcome.usage is not None:
            self._tokens.labels(*operation, "input").observe(outcome.usage.prompt_tokens)
            self._tokens.labels(*operation, "output").observe(outcome.usage.completion_tokens)
        if outcome.request_bytes:
            self._bytes.observe(outcome.request_bytes)
        if outcome.name in _ABORTS:
            self._aborts.labels(outcome.name).inc()

    def _model_label(self, name: str | None) -> str:
        if name is not None and self._accepts_models and len(self._models) < MAX_MODELS:
            self._models.add(name)
        return name if name in self._models else "other"


def _with_boundaries(own: Iterable[float], convention: Iterable[float], slo: float | None = None) -> list[float]:
    return sorted({*own, *convention} if slo is None else {*own, *convention, slo})


def _observe(histogram: Histogram, start: float | None, end: float | None) -> None:
    if start is not None and end is not None:
        histogram.observe(end - start)
