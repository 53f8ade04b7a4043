"""Values and labels of the client metrics."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from pedcxr_client import InputError, ReportError, RequestError, Timeouts
from pedcxr_client.metrics import Metrics
from tests.support.servers.fake_engine import Answer

WORDS = {
    "", "chat", "fake", "other", "input", "output", "encode", "wait", "generate",
    "truncated", "aborted", "empty", "timeout", "cancelled", "unavailable", "bad_request",
}  # fmt: skip


def scrape(registry: CollectorRegistry) -> dict[tuple[str, ...], float]:
    page = generate_latest(registry).decode()
    return {
        (sample.name, *(value for name, value in sorted(sample.labels.items()) if name != "le")): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if not sample.name.endswith(("_bucket", "_created"))
    }


def boundaries(registry: CollectorRegistry, name: str) -> list[float]:
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return [float(s.labels["le"]) for family in families for s in family.samples if s.name == name + "_bucket"]


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def test_successful_report_is_timed_and_counted(engine, film, twin, registry):
    engine.answer = Answer(gap=0.01)
    engine.reply(Answer(status=503, headers={"retry-after": "0.01"}))
    report = twin.report(engine.url, film, client={"metrics": Metrics(registry, models=["fake"])})
    page = scrape(registry)
    assert page["gen_ai_client_operation_duration_seconds_count", "", "chat", "fake"] == 1
    assert page["gen_ai_client_operation_time_to_first_chunk_seconds_sum", "chat", "fake"] == pytest.approx(
        report.timing.ttft
    )
    assert page["gen_ai_client_token_usage_sum", "chat", "fake", "input"] == 300
    assert page["gen_ai_client_token_usage_sum", "chat", "fake", "output"] == 6
    assert page["pedcxr_client_time_per_output_token_seconds_sum", "fake"] == pytest.approx(report.timing.tpot)
    assert {page["pedcxr_client_phase_seconds_count", phase] for phase in ("encode", "wait", "generate")} == {1}
    assert page["pedcxr_client_request_bytes_sum",] == len(engine.chats[0].body)
    assert page["pedcxr_client_retries_total", "unavailable"] == 1
    assert page["pedcxr_client_in_flight",] == 0


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (Answer(pieces=("no ",) * 30), "looping"),
        (Answer(pieces=("<end_of_turn>", "Clear.")), "prompt_echo"),
        (Answer(pieces=("\ufffd",)), "not_text"),
        (Answer(pieces=("I'm sorry.",)), "not_report"),
        (Answer(pieces=("Cordul este normal.",)), "not_english"),
        (Answer(finish="length"), "truncated"),
        (Answer(cut_after=1), "aborted"),
        (Answer(pieces=()), "empty"),
        (Answer(stall_after=1), "timeout"),
        (Answer(status=400), "bad_request"),
    ],
)
def test_each_outcome_has_its_label(engine, film, twin, registry, answer, outcome):
    engine.answer = answer
    gap = 0.1 if outcome == "timeout" else 30  # generous, because the test machine may be busy
    with pytest.raises(RequestError) as caught:
        twin.report(engine.url, film, client={"metrics": Metrics(registry), "timeouts": Timeouts(gap=gap)})
    page = scrape(registry)
    assert page["gen_ai_client_operation_duration_seconds_count", outcome, "chat", "other"] == 1
    aborted = isinstance(caught.value, ReportError) or outcome == "timeout"
    assert page.get(("pedcxr_client_aborts_total", outcome), 0) == aborted
    assert page["pedcxr_client_in_flight",] == 0


def test_invalid_film_counts_as_input(engine, twin, registry):
    with pytest.raises(InputError):
        twin.report(engine.url, b"no film", client={"metrics": Metrics(registry)})
    assert scrape(registry)["gen_ai_client_operation_duration_seconds_count", "input", "chat", "other"] == 1


def test_label_values_are_from_closed_sets(engine, film, registry, twin):
    """An arbitrary model name becomes a label only if it is listed in ``models``."""
    metrics = Metrics(registry)
    twin.report(engine.url, film, client={"metrics": metrics, "model": "Popescu^Ana"})
    for name, *labels in scrape(registry):
        assert set(labels) <= WORDS, name


def test_slos_are_bucket_boundaries(registry):
    Metrics(registry, ttft_slo=0.7, tpot_slo=0.0123, e2e_slo=11.5)
    registry_page = generate_latest(registry).decode()
    assert "pedcxr_client_in_flight 0.0" in registry_page

    fresh = CollectorRegistry()
    metrics = Metrics(fresh, ttft_slo=0.7, tpot_slo=0.0123, e2e_slo=11.5)
    metrics._first_chunk.labels("chat", "other").observe(1)
    metrics._per_token.labels("other").observe(1)
    metrics._duration.labels("chat", "other", "").observe(1)
    assert 0.7 in boundaries(fresh, "gen_ai_client_operation_time_to_first_chunk_seconds")
    assert {0.002, 0.0123} <= set(boundaries(fresh, "pedcxr_client_time_per_output_token_seconds"))
    assert min(boundaries(fresh, "pedcxr_client_time_per_output_token_seconds")) == 0.002
    assert 11.5 in boundaries(fresh, "gen_ai_client_operation_duration_seconds")
