"""OpenTelemetry traces: one span per request with the gateway's stages as children, sent over OTLP (HTTP, protobuf).

A span holds names, times and counts: no text, no film, no key, no address. ``tracestate`` and baggage of a client are
neither recorded nor passed on, because they may hold anything.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from importlib import metadata

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased
from opentelemetry.trace import NoOpTracer, Span, SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from prometheus_client import Counter

from pedcxr_serve.config.settings import TelemetryConfig
from pedcxr_serve.errors import ConfigError
from pedcxr_serve.gateway.accounting.metrics import RequestRecord

SERVICE_NAME = "pedcxr-gateway"
SHUTDOWN_S = 2.0
"""Time at shutdown for the last spans. Without a limit, a collector that does not answer holds the server for 8 s."""

_ERRORS = ("failed", "engine_lost", "aborted")  # outcomes that are faults of the server
_PROPAGATOR = TraceContextTextMapPropagator()


class Traces:
    """Records a span for each request of an authenticated client."""

    def __init__(self, provider: TracerProvider) -> None:
        self._tracer = provider.get_tracer("pedcxr.gateway")

    @contextlib.contextmanager
    def request(self, record: RequestRecord, traceparent: str) -> Iterator[None]:
        """Record a span for the time of the block, and set ``record.traceparent`` for the engine.

        Args:
            record: read at the end of the block.
            traceparent: header of the client (W3C Trace Context), or an empty string. A valid one makes this span a
                child of the client's. Whether the span is recorded is decided here and not by the client.
        """
        parent = _PROPAGATOR.extract({"traceparent": traceparent}, Context())
        epoch = time.time() - time.monotonic()
        span = self._tracer.start_span(
            "POST /v1/chat/completions", parent, SpanKind.SERVER, start_time=_ns(epoch + record.arrived_at)
        )
        context = set_span_in_context(span, Context())
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier, context)
        record.traceparent = carrier["traceparent"]
        try:
            yield
        finally:
            if span.is_recording():
                _describe(span, record, epoch)
                for name, (start, end) in record.stages.items():
                    self._tracer.start_span(name, context, start_time=_ns(epoch + start)).end(_ns(epoch + end))
            span.end()


@contextlib.contextmanager
def exporting(config: TelemetryConfig, replica: str, lost: Counter | None) -> Iterator[Traces | None]:
    """Yield traces that are sent to ``config.otlp_endpoint``. At the end of the block the last ones are sent.

    Yield None if ``OTEL_SDK_DISABLED`` is ``true``. Spans are sent by a thread. A collector that does not answer costs
    spans, and nothing else.

    Args:
        config: with an endpoint.
        replica: name of this server among several.
        lost: counts the spans that the collector did not take.

    Raises:
        ConfigError: a variable of OpenTelemetry in the environment has a wrong value.
    """
    try:
        provider = _provider(config, replica, lost)
    except (ValueError, OSError) as error:  # it warns of some wrong values, and raises for others
        raise ConfigError(f"environment: OpenTelemetry refuses a variable OTEL_...: {error}") from error
    try:
        # The spans of a disabled SDK have no ids that the engine could get.
        yield None if isinstance(provider.get_tracer(SERVICE_NAME), NoOpTracer) else Traces(provider)
    finally:
        last = threading.Thread(target=provider.shutdown, daemon=True)
        last.start()
        last.join(SHUTDOWN_S)


def check(config: TelemetryConfig) -> str:
    """Return what `exporting` does with these settings and the environment; see there for the errors."""
    with exporting(config, "", None) as traces:
        return "no traces: OTEL_SDK_DISABLED is set" if traces is None else f"traces by {SERVICE_NAME}"


def _provider(config: TelemetryConfig, replica: str, lost: Counter | None) -> TracerProvider:
    resource = Resource.create(
        {"service.name": SERVICE_NAME, "service.version": metadata.version("pedcxr"), "service.instance.id": replica}
    )
    sampler = TraceIdRatioBased(config.trace_ratio)
    provider = TracerProvider(sampler, resource, shutdown_on_exit=False)  # at exit it would wait without a limit
    exporter = _CountingExporter(lost, endpoint=config.otlp_endpoint)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


class _CountingExporter(OTLPSpanExporter):
    def __init__(self, lost: Counter | None, *, endpoint: str) -> None:
        super().__init__(endpoint=endpoint)
        self._lost = lost

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = super().export(spans)
        if result is not SpanExportResult.SUCCESS and self._lost is not None:
            self._lost.inc(len(spans))
        return result


def _describe(span: Span, record: RequestRecord, epoch: float) -> None:
    """Set the attributes of a request's span; their names are those of OpenTelemetry's conventions where one exists."""
    span.set_attributes(
        {
            "http.request.method": "POST",
            "http.route": "/v1/chat/completions",
            "http.response.status_code": record.status,
            "gen_ai.operation.name": "chat",
            "gen_ai.request.model": record.model,
            "pedcxr.tenant": record.tenant.name,
            "pedcxr.request_id": record.request_id,
            "pedcxr.outcome": record.outcome,
        }
    )
    if record.reason:
        span.set_attribute("pedcxr.code", record.reason)
    if record.usage is not None:
        span.set_attribute("gen_ai.usage.input_tokens", record.usage.prompt_tokens)
        span.set_attribute("gen_ai.usage.output_tokens", record.usage.output)
    if record.finish_reason is not None:
        span.set_attribute("gen_ai.response.finish_reasons", (record.finish_reason,))
    if record.first_token_at is not None:
        span.add_event("first token", timestamp=_ns(epoch + record.first_token_at))
    if record.outcome in _ERRORS:
        span.set_attribute("error.type", record.outcome)
        span.set_status(StatusCode.ERROR)


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
