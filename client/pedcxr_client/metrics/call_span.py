"""The OpenTelemetry span of one call, for clients with a tracer: ``Client(tracer=trace.get_tracer("app"))``.

A span holds names, times and counts: no text, no film, no path, no key.
"""

from __future__ import annotations

import time

from opentelemetry.trace import SpanKind, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from pedcxr_client.metrics.hooks import Outcome
from pedcxr_client.request.retry import Clock


class CallSpan:
    """A span from the creation of this object to `end`, a child of the caller's current span.

    Args:
        clock: of the call's timestamps, in seconds.
    """

    def __init__(self, tracer: Tracer, clock: Clock) -> None:
        self._tracer, self._epoch = tracer, time.time() - clock()
        self._span = tracer.start_span("pedcxr.report", kind=SpanKind.CLIENT)
        self._context = set_span_in_context(self._span)

    def headers(self) -> dict[str, str]:
        """Return the header that makes the server's span a child of this one (W3C Trace Context)."""
        carrier: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(carrier, self._context)
        return {"traceparent": carrier["traceparent"]} if carrier else {}  # without tracestate, which may hold anything

    def end(self, outcome: Outcome, *, request_id: str | None, attempts: int) -> None:
        """Describe how the call ended, and end the span."""
        span, timing = self._span, outcome.timing
        span.set_attributes(
            {
                "gen_ai.operation.name": "chat",
                "http.request.body.size": outcome.request_bytes,
                "pedcxr.attempts": attempts,
                "pedcxr.outcome": outcome.name,
            }
        )
        if outcome.model is not None:
            span.set_attribute("gen_ai.request.model", outcome.model)
        if request_id is not None:
            span.set_attribute("pedcxr.request_id", request_id)
        if outcome.usage is not None:
            span.set_attribute("gen_ai.usage.input_tokens", outcome.usage.prompt_tokens)
            span.set_attribute("gen_ai.usage.output_tokens", outcome.usage.completion_tokens)
        if timing.encoded is not None:
            prepared = self._tracer.start_span("prepare", self._context, start_time=self._ns(timing.scheduled))
            prepared.end(self._ns(timing.encoded))
        if timing.first is not None:
            span.add_event("first token", timestamp=self._ns(timing.first))
        if outcome.name not in ("ok", "cancelled"):
            span.set_attribute("error.type", outcome.name)
            span.set_status(StatusCode.ERROR)
        span.end()

    def _ns(self, seconds: float) -> int:
        return int((self._epoch + seconds) * 1e9)
