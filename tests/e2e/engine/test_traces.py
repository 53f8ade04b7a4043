"""One trace in three processes: the client's span, the gateway's with its stages, and vLLM's own."""

from __future__ import annotations

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from pedcxr_client import Client
from tests.e2e.conftest import Teams
from tests.support.films.phantom_films import CHAT, fresh
from tests.support.servers.otlp_receiver import attributes

pytestmark = pytest.mark.slow


def test_one_trace_joins_client_gateway_and_engine(shared_by_two: Teams) -> None:
    collector = shared_by_two.collector
    provider = TracerProvider(resource=Resource.create({"service.name": "an-app"}))
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(endpoint=collector.url)))
    settings = {"api_key": shared_by_two.keys["ward"], "tracer": provider.get_tracer("an-app")}
    with Client(shared_by_two.server.url, **settings) as client:
        report = client.report(fresh().png, age="5y", sex="F")
    provider.shutdown()
    assert report.request_id is not None

    (ours,) = collector.wait_for("an-app", "pedcxr.report", request_id=report.request_id)
    (gateway,) = collector.wait_for("pedcxr-gateway", "POST /v1/chat/completions", request_id=report.request_id)
    (engine,) = collector.wait_for("pedcxr-engine", "llm_request", request_id=report.request_id)
    assert {ours.trace_id, gateway.trace_id, engine.trace_id} == {ours.trace_id}
    assert gateway.parent_span_id == ours.span_id and engine.parent_span_id == gateway.span_id
    assert report.usage is not None
    assert attributes(engine)["gen_ai.usage.completion_tokens"] == report.usage.completion_tokens
    assert attributes(gateway)["gen_ai.usage.output_tokens"] == report.usage.completion_tokens
    stages = [span for span in collector.spans("pedcxr-gateway") if span.parent_span_id == gateway.span_id]
    assert {span.name for span in stages} == {"body", "policy", "queue", "engine", "stream"}


def test_the_engine_records_what_the_gateway_records_and_nothing_else(shared_by_two: Teams) -> None:
    with shared_by_two.client("ward") as client:
        assert client.post(CHAT, json=fresh().body(), headers={"X-Request-Id": "sampled"}).status_code == 200
    collector = shared_by_two.collector
    collector.wait_for("pedcxr-engine", "llm_request", request_id="sampled")
    recorded = {span.trace_id for span in collector.spans("pedcxr-engine")}
    # The gateway sends its spans every few seconds, so perhaps later, and those of earlier requests before this one's.
    collector.wait_for("pedcxr-gateway", "POST /v1/chat/completions", request_id="sampled")
    # The warm-up and the probes of the launcher, and the start of vLLM, are not recorded.
    assert recorded <= {span.trace_id for span in collector.spans("pedcxr-gateway")}
