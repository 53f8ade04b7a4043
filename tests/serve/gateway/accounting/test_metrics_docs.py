"""docs/metrics.md has a row for every metric there is, as the registries know it, and for none that is not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from pedcxr_client import PedcxrError
from pedcxr_client.metrics import prometheus
from pedcxr_serve.gateway.http.tls import Tls
from pedcxr_serve.gateway.rate_limit import Rate, pool_of
from pedcxr_serve.gateway.state import State
from tests.support.certificates import made
from tests.support.paths import ROOT

PAGE = (ROOT / "docs" / "metrics.md").read_text()


def rows(registry: CollectorRegistry) -> Iterator[str]:
    """As the page writes them, sorted by name."""
    collectors: dict[str, Any] = {collector._name: collector for collector in registry._collector_to_names}
    for name, collector in sorted(collectors.items()):
        kind = collector._type
        labels = ", ".join(f"`{label}`" for label in collector._labelnames)
        edges = " ".join(f"{edge:.10g}" for edge in collector._kwargs.get("buckets", ()))
        shown = name + ("_total" if kind == "counter" else "")
        yield f"| `{shown}` | {kind} | {labels} | {collector._documentation} | {edges} |".replace("|  |", "| |")


def test_every_metric_of_a_client_and_of_a_server_is_on_the_page(tmp_path: Path) -> None:
    files = made(tmp_path)
    state = State(
        tmp_path / "socket",
        demo=True,
        body_limit=1,
        rate=Rate(pool_of("redis://127.0.0.1:1")),
        tls=Tls(files.certificate, files.key),
    )
    client = CollectorRegistry()
    prometheus.Metrics(client)
    expected = [*rows(client), *rows(state.metrics.registry)]
    missing = [row for row in expected if row not in PAGE]
    assert not missing, "docs/metrics.md lacks:\n" + "\n".join(missing)
    on_page = re.findall(r"^\| `\w+` \| (?:counter|gauge|histogram) \|.*$", PAGE, re.MULTILINE)
    assert on_page == expected
    named = set(re.findall(r"`(\w+)`", " ".join(row.split("|")[3] for row in expected)))
    explained = PAGE.partition("## Labels")[2]
    assert named == {name for row in explained.splitlines()[3:] for name in re.findall(r"`(\w+)`", row.split("|")[1])}


def test_every_word_a_label_may_hold_is_on_the_page() -> None:
    def outcomes(kind: type[PedcxrError]) -> set[str]:
        return {kind.outcome}.union(*map(outcomes, kind.__subclasses__()))

    (row,) = re.findall(r"^\| `error_type` .*$", PAGE, re.MULTILINE)
    assert set(re.findall(r"`([a-z_]+)`", row)) - {"error_type"} == outcomes(PedcxrError) - {"error"} | {"cancelled"}


def test_the_query_of_the_page_is_the_one_that_is_tried() -> None:
    """tests/client/test_scraped.py asks real Prometheus."""
    assert 'sum(gen_ai_client_operation_duration_seconds_bucket{error_type="",le="' in PAGE
