"""Metrics of the gateway's process: event loop, memory, connections, and the files that it reads and writes."""

from __future__ import annotations

import asyncio
import platform
import time
from collections.abc import Callable
from importlib.metadata import version

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

_LAG_BUCKETS_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_LAG_EVERY_S = 0.25
PROCESS_NAMESPACE = "pedcxr_gateway"
"""Prefix of ``process_*``: the engine's page, which is appended, may have metrics of these names."""


class RuntimeMetrics:
    """Created once per server; a value that nobody follows stays 0."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"pedcxr_{name}", text, labels, registry=registry)

        ProcessCollector(namespace=PROCESS_NAMESPACE, registry=registry)
        build = gauge("build_info", "1, with the versions of pedcxr and Python.", "version", "python")
        build.labels(version("pedcxr"), platform.python_version()).set(1)
        text = "1, with the name of this server and the checkpoint and vLLM of its engine."
        self.replica_info = gauge("replica_info", text, "replica", "revision", "vllm")
        self.loop_lag = Histogram(
            "pedcxr_event_loop_lag_seconds",
            "Delay of a timer of the event loop, measured four times per second.",
            registry=registry,
            buckets=_LAG_BUCKETS_S,
        )
        self.slots = gauge("slots", "Requests that may be sent to the engine at once.")
        self.body_bytes = gauge("request_body_bytes", "Memory of the request bodies that are held.")
        self.connections = gauge("connections", "Open connections of the public port, without TLS handshakes.")
        self.handshakes = gauge("tls_handshakes_in_progress", "TLS handshakes in progress.")
        self.audit_next_seq = gauge("audit_next_seq", "seq of the next line of the audit log.")
        self._reload_successful = gauge(
            "last_reload_successful", "1 if the last attempt to read the file succeeded.", "file"
        )
        self._reload_time = gauge(
            "last_reload_timestamp_seconds", "Time of the last successful read of the file, Unix time.", "file"
        )
        self._write_failures = Counter(
            "pedcxr_write_failures", "Failed writes to a file.", ("file",), registry=registry
        )
        self.spans_lost = Counter("pedcxr_spans_lost", "Spans that the collector did not take.", registry=registry)
        self._failures_seen: dict[str, int] = {}

    def follow_reloads(self, file: str, is_successful: Callable[[], bool], read_at: Callable[[], float]) -> None:
        """Export whether the last reload of ``tenants`` or ``certificate`` succeeded, and when one did."""
        self._reload_successful.labels(file).set_function(lambda: float(is_successful()))
        self._reload_time.labels(file).set_function(read_at)

    def count_write_failures(self, file: str, failures: int) -> None:
        """Set the number of failed writes to ``audit`` or ``usage`` since the start."""
        before = self._failures_seen.get(file, 0)
        self._write_failures.labels(file).inc(failures - before)
        self._failures_seen[file] = failures

    async def measure_loop_lag(self) -> None:
        """Measure the lag of the running event loop until cancelled."""
        while True:
            start = time.monotonic()
            await asyncio.sleep(_LAG_EVERY_S)
            self.loop_lag.observe(max(0.0, time.monotonic() - start - _LAG_EVERY_S))
