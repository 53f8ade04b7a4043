"""An OpenTelemetry collector for tests: it keeps the spans that processes send over OTLP (HTTP, protobuf)."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.support.http_server import Handler, serving


@dataclass
class Received:
    """Everything that has arrived so far."""

    url: str
    bodies: list[bytes] = field(default_factory=list)
    status: int = 200
    arrived: threading.Condition = field(default_factory=threading.Condition)

    def spans(self, service: str) -> list[Span]:
        """Return the spans of the processes of this ``service.name``."""
        found = []
        for body in self.bodies:
            for sent in ExportTraceServiceRequest.FromString(body).resource_spans:
                names = {one.key: one.value.string_value for one in sent.resource.attributes}
                if names["service.name"] == service:
                    found += [span for scope in sent.scope_spans for span in scope.spans]
        return found

    def wait_for(
        self, service: str, name: str, count: int = 1, *, request_id: str = "", timeout: float = 60
    ) -> list[Span]:
        """Return the spans of this name, and of this request, once as many have arrived."""

        def matching() -> list[Span]:
            found = [span for span in self.spans(service) if span.name == name]
            return [span for span in found if request_id in "".join(map(str, attributes(span).values()))]

        with self.arrived:
            assert self.arrived.wait_for(lambda: len(matching()) >= count, timeout), f"no {count} spans {name!r}"
        return matching()


@contextmanager
def otlp_receiver() -> Iterator[Received]:
    """Run a collector on loopback until the end of the block."""

    class Collector(Handler):
        def do_POST(self) -> None:
            body = self.body()
            with received.arrived:
                received.bodies.append(body)
                received.arrived.notify_all()
            self.answer(status=received.status)

    with serving(Collector) as port:
        received = Received(f"http://127.0.0.1:{port}/v1/traces")
        yield received


def attributes(span: Span) -> dict[str, object]:
    """Return the attributes of a span by name."""
    values = {one.key: one.value for one in span.attributes}
    return {name: getattr(value, str(value.WhichOneof("value"))) for name, value in values.items()}
