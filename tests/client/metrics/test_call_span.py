"""A client with a tracer: one span per call, whose header the server receives, and which holds no content."""

from __future__ import annotations

from pathlib import Path

import pytest

from pedcxr_client import Client
from pedcxr_client.errors import PedcxrError, ReportError
from tests.support.servers.fake_engine import Answer, FakeEngine

pytest.importorskip("opentelemetry.sdk", reason="pedcxr[otel] is not installed")

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, Tracer


class Recorded:
    """The spans that have ended."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer: Tracer = provider.get_tracer("tests")

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self._exporter.get_finished_spans() if span.name == name]


@pytest.fixture
def recorded() -> Recorded:
    return Recorded()


def test_a_call_is_a_child_of_the_callers_span_and_the_parent_of_the_servers(
    engine: FakeEngine, film: bytes, recorded: Recorded
) -> None:
    with Client(engine.url, tracer=recorded.tracer) as client, recorded.tracer.start_as_current_span("app") as app:
        client.report(film, age="5y", sex="F")
    (span,) = recorded.named("pedcxr.report")
    assert span.parent is not None and span.parent.span_id == app.get_span_context().span_id
    assert span.kind is SpanKind.CLIENT
    context = span.get_span_context()
    assert context is not None
    version, trace, parent, flags = engine.chats[0].headers["traceparent"].split("-")
    assert (version, int(trace, 16), int(parent, 16)) == ("00", context.trace_id, context.span_id)
    assert int(flags, 16) & 1, "the trace is not recorded"
    attributes = dict(span.attributes or {})
    assert attributes["pedcxr.outcome"] == "ok" and attributes["pedcxr.attempts"] == 1
    assert attributes["gen_ai.usage.output_tokens"] == 6
    assert [event.name for event in span.events] == ["first token"]
    (prepared,) = recorded.named("prepare")
    assert prepared.parent is not None and prepared.parent.span_id == context.span_id
    assert span.start_time and prepared.end_time and span.end_time
    assert prepared.end_time <= span.events[0].timestamp <= span.end_time


def test_retries_are_one_span(engine: FakeEngine, film: bytes, recorded: Recorded) -> None:
    engine.reply(Answer(status=503, headers={"retry-after": "0"}))
    with Client(engine.url, tracer=recorded.tracer) as client:
        client.report(film, age="5y", sex="F")
    (span,) = recorded.named("pedcxr.report")
    assert dict(span.attributes or {})["pedcxr.attempts"] == 2
    assert len({chat.headers["traceparent"] for chat in engine.chats}) == 1


def test_a_failed_call_has_its_outcome_and_no_text(engine: FakeEngine, film: bytes, recorded: Recorded) -> None:
    engine.answer = Answer(pieces=("Planted words.",), finish="length")
    with Client(engine.url, tracer=recorded.tracer) as client, pytest.raises(ReportError) as caught:
        client.report(film, age="5y", sex="F", indication="planted indication")
    (span,) = recorded.named("pedcxr.report")
    assert dict(span.attributes or {})["error.type"] == caught.value.outcome
    assert not span.status.is_ok
    everything = "".join(one.to_json() for one in (*recorded.named("pedcxr.report"), *recorded.named("prepare")))
    assert "lanted" not in everything and "Traceback" not in everything


def test_a_film_that_cannot_be_read_ends_its_span(engine: FakeEngine, tmp_path: Path, recorded: Recorded) -> None:
    with Client(engine.url, tracer=recorded.tracer) as client, pytest.raises(PedcxrError):
        client.report(tmp_path / "planted.png", age="5y", sex="F")
    (span,) = recorded.named("pedcxr.report")
    assert "planted" not in span.to_json()


def test_without_a_tracer_no_header_is_sent(engine: FakeEngine, film: bytes) -> None:
    with Client(engine.url) as client:
        client.report(film, age="5y", sex="F")
    assert "traceparent" not in engine.chats[0].headers
