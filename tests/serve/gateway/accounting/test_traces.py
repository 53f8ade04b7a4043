"""Traces: one span per request with its stages, joined with the client's and the engine's, and without content."""

from __future__ import annotations

import gzip
import logging
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace import TracerProvider, sampling
from prometheus_client import CollectorRegistry, Counter

from pedcxr_serve.config.settings import TelemetryConfig
from pedcxr_serve.errors import ConfigError
from pedcxr_serve.gateway.accounting import traces
from tests.support.servers.fake_engine import Answer, FakeEngine
from tests.support.servers.gateway_server import BODY, CHAT, Gateway, running
from tests.support.servers.otlp_receiver import Received, attributes, otlp_receiver

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
NAME = "POST /v1/chat/completions"
STAGES = ["body", "policy", "queue", "engine", "stream"]


@pytest.fixture
def collector() -> Iterator[Received]:
    with otlp_receiver() as received:
        yield received


@contextmanager
def traced(engine: FakeEngine, url: str, ratio: float = 1.0) -> Iterator[tuple[Gateway, Counter]]:
    """Run a gateway that sends its spans when the block ends."""
    lost = Counter("lost", "Lost spans.", registry=CollectorRegistry())
    config = TelemetryConfig(otlp_endpoint=url, trace_ratio=ratio)
    with traces.exporting(config, "replica-a", lost) as recording, running(engine, traces=recording) as gateway:
        yield gateway, lost


def post(gateway: Gateway, **request: Any) -> httpx.Response:
    with gateway.client() as client:
        return client.post(CHAT, **request)


def test_a_request_is_a_child_of_the_clients_span_and_the_parent_of_the_engines(
    engine: FakeEngine, collector: Received
) -> None:
    with traced(engine, collector.url) as (gateway, _):
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-00", "X-Request-Id": "r-1"}
        answer = post(gateway, json=BODY | {"stream": True}, headers=headers)
        assert answer.status_code == 200
    (span,) = collector.wait_for("pedcxr-gateway", NAME)
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    # The client does not ask for a recording; the server decides.
    assert engine.requests[0].headers["traceparent"] == f"00-{TRACE}-{span.span_id.hex()}-01"

    found = attributes(span)
    assert found["pedcxr.tenant"] == "anonymous" and found["pedcxr.outcome"] == "ok"
    assert found["pedcxr.request_id"] == "r-1" and found["http.response.status_code"] == 200
    assert found["gen_ai.usage.output_tokens"] == 6
    assert [event.name for event in span.events] == ["first token"]
    assert span.start_time_unix_nano < span.events[0].time_unix_nano < span.end_time_unix_nano
    assert abs(span.end_time_unix_nano / 1e9 - time.time()) < 3600

    children = [child for child in collector.spans("pedcxr-gateway") if child.parent_span_id == span.span_id]
    assert [child.name for child in sorted(children, key=lambda one: one.start_time_unix_nano)] == STAGES
    assert all(child.end_time_unix_nano <= span.end_time_unix_nano for child in children)


def test_spans_hold_nothing_of_the_request_but_its_id(engine: FakeEngine, collector: Received) -> None:
    engine.answer = Answer(pieces=("Planted report.",))
    body = {**BODY, "user": "planteduser"}
    body["messages"] = [{"role": "system", "content": "plantedsystem"}, *BODY["messages"]]
    with traced(engine, collector.url) as (gateway, _):
        headers = {
            "traceparent": f"00-{TRACE}-{PARENT}-01",
            "tracestate": "vendor=plantedstate",
            "baggage": "patient=plantedbaggage",
            "User-Agent": "plantedagent",
            "Authorization": "Bearer plantedkey",
        }
        assert post(gateway, json=body | {"stream": True}, headers=headers).status_code == 200
        assert post(gateway, json=body, headers=headers).status_code == 200
        refused = post(gateway, json=body | {"plantedfield": 1}, headers=headers)
        assert refused.status_code in (200, 400)
        engine.reply(Answer(status=400, error={"message": "planted error", "code": 400}))
        post(gateway, json=body, headers=headers)
    collector.wait_for("pedcxr-gateway", NAME, 4)
    sent = b"".join(gzip.decompress(one) if one[:2] == b"\x1f\x8b" else one for one in collector.bodies)
    assert b"pedcxr.tenant" in sent
    assert b"lanted" not in sent and b"base64" not in sent and b"Generate" not in sent
    assert {"tracestate", "baggage"}.isdisjoint(engine.requests[0].headers)


def test_an_error_of_the_engine_marks_the_span(engine: FakeEngine, collector: Received) -> None:
    engine.reply(Answer(cut_after=1))
    with traced(engine, collector.url) as (gateway, _):
        post(gateway, json=BODY | {"stream": True})
    (span,) = collector.wait_for("pedcxr-gateway", NAME)
    assert attributes(span)["error.type"] == "engine_lost"
    assert span.status.code == span.status.STATUS_CODE_ERROR


@pytest.mark.parametrize("header", ["", "nonsense", f"00-{'0' * 32}-{PARENT}-01", f"00-{TRACE}-{PARENT}-01\u00e9"])
def test_a_request_without_a_valid_traceparent_begins_a_trace(
    engine: FakeEngine, collector: Received, header: str
) -> None:
    with traced(engine, collector.url) as (gateway, _):
        headers = {b"traceparent": header.encode()} if header else {}
        assert post(gateway, json=BODY, headers=headers).status_code == 200
    (span,) = collector.wait_for("pedcxr-gateway", NAME)
    assert span.parent_span_id == b"" and span.trace_id.hex() not in (TRACE, "0" * 32)


def test_a_trace_that_is_not_recorded_is_not_recorded_by_the_engine_either(
    engine: FakeEngine, collector: Received
) -> None:
    with traced(engine, collector.url, ratio=0.0) as (gateway, _):
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
        assert post(gateway, json=BODY, headers=headers).status_code == 200
    sent = engine.requests[0].headers["traceparent"]
    assert sent.startswith(f"00-{TRACE}-") and sent.endswith("-00")
    assert collector.bodies == []


def test_without_traces_the_engine_gets_no_header(engine: FakeEngine, gateway: Gateway) -> None:
    post(gateway, json=BODY, headers={"traceparent": f"00-{TRACE}-{PARENT}-01"})
    assert "traceparent" not in engine.requests[0].headers


def test_disabled_sdk_means_no_traces(engine: FakeEngine, collector: Received, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    with traced(engine, collector.url) as (gateway, _):
        assert gateway.state.traces is None
        assert post(gateway, json=BODY).status_code == 200
    assert "traceparent" not in engine.requests[0].headers and collector.bodies == []


@pytest.mark.parametrize(
    ("variable", "value"),
    [("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "100000"), ("OTEL_BSP_SCHEDULE_DELAY", "-1")],
)
def test_wrong_variable_is_a_configuration_error(
    engine: FakeEngine, variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with (
        pytest.raises(ConfigError, match="environment: OpenTelemetry refuses a variable OTEL_"),
        traced(engine, "http://127.0.0.1:1/v1/traces"),
    ):
        pytest.fail("the gateway started")


class BrokenSampler(sampling.Sampler):
    def should_sample(self, *_: Any, **__: Any) -> sampling.SamplingResult:
        raise KeyError("traceparent")

    def get_description(self) -> str:
        return "broken"


def test_failure_of_a_span_is_counted(engine: FakeEngine) -> None:
    recording = traces.Traces(TracerProvider(BrokenSampler(), shutdown_on_exit=False))
    with running(engine, traces=recording) as gateway:
        assert post(gateway, json=BODY).status_code == 500
        assert 'pedcxr_tenant_requests_total{outcome="failed",tenant="anonymous"} 1.0' in gateway.metrics()


def test_log_lines_have_the_trace(engine: FakeEngine, collector: Received, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "pedcxr.gateway"), traced(engine, collector.url) as (gateway, _):
        post(gateway, json=BODY, headers={"traceparent": f"00-{TRACE}-{PARENT}-01"})
    (line,) = [record for record in caplog.records if "chat/completions" in record.getMessage()]
    assert line.fields["trace_id"] == TRACE  # type: ignore[attr-defined]
    assert f"trace {TRACE}" in line.getMessage()


def test_a_collector_that_refuses_costs_spans_and_nothing_else(engine: FakeEngine, collector: Received) -> None:
    collector.status = 400
    with traced(engine, collector.url) as (gateway, lost):
        assert post(gateway, json=BODY).status_code == 200
    assert lost._value.get() == 5  # the request and four stages


def test_a_collector_that_never_answers_does_not_hold_the_shutdown(engine: FakeEngine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1/traces"
        with traced(engine, url) as (gateway, _):
            assert post(gateway, json=BODY).status_code == 200
            stopped = time.monotonic()
        # OpenTelemetry's own limit is 10 s for one batch, with retries beyond that.
        assert time.monotonic() - stopped < traces.SHUTDOWN_S + 5


def test_refused_requests_have_a_span_with_the_code(engine: FakeEngine, collector: Received) -> None:
    with traced(engine, collector.url) as (gateway, _):
        answer: httpx.Response = post(gateway, content=b"{")
        assert answer.status_code == 400
    (span,) = collector.wait_for("pedcxr-gateway", NAME)
    found = attributes(span)
    assert found["pedcxr.outcome"] == "refused" and found["pedcxr.code"] == answer.json()["error"]["code"]
    assert "error.type" not in found  # the client's fault
