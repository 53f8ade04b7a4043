"""Values and labels of the client metrics."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from pedcxr_client import ConnectionFailed, InputError, Outcome, ReportError, RequestError, Timeouts, Timing
from pedcxr_client.metrics import Metrics
from tests.support.servers.fake_engine import Answer

WORDS = {
    "", "chat", "pedcxr", "fake", "other", "input", "output", "encode", "wait", "generate",
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
    assert page["gen_ai_client_operation_duration_seconds_count", "", "chat", "pedcxr", "fake"] == 1
    assert page["gen_ai_client_operation_time_to_first_chunk_seconds_sum", "chat", "pedcxr", "fake"] == pytest.approx(
        report.timing.ttft
    )
    assert page["gen_ai_client_token_usage_sum", "chat", "pedcxr", "fake", "input"] == 300
    assert page["gen_ai_client_token_usage_sum", "chat", "pedcxr", "fake", "output"] == 6
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
    gap = 3 if outcome == "timeout" else 30  # generous, because the test machine may be busy
    with pytest.raises(RequestError) as caught:
        twin.report(engine.url, film, client={"metrics": Metrics(registry), "timeouts": Timeouts(gap=gap)})
    page = scrape(registry)
    assert page["gen_ai_client_operation_duration_seconds_count", outcome, "chat", "pedcxr", "fake"] == 1
    aborted = isinstance(caught.value, ReportError) or outcome == "timeout"
    assert page.get(("pedcxr_client_aborts_total", outcome), 0) == aborted
    assert page["pedcxr_client_in_flight",] == 0


@pytest.mark.parametrize(("options", "reason"), [({}, "input"), ({"age": "31y"}, "blocked"), ({"age": "62"}, "input")])
def test_a_film_that_is_never_sent_has_a_counter_of_its_own(engine, film, twin, registry, options, reason):
    with pytest.raises(InputError):
        twin.report(engine.url, film if options else b"no film", client={"metrics": Metrics(registry)}, **options)
    page = scrape(registry)
    assert page["pedcxr_client_not_sent_total", reason] == 1
    assert not [name for name, *_ in page if name.startswith("gen_ai_client_operation_duration")]


def test_a_call_that_fails_before_the_film_is_sent_is_timed(film, twin, registry):
    with pytest.raises(ConnectionFailed):
        twin.report("http://127.0.0.1:1/v1", film, client={"metrics": Metrics(registry), "retries": 0})
    assert scrape(registry)["gen_ai_client_operation_duration_seconds_count", "connection", "chat", "pedcxr", "other"]


def test_the_number_of_model_labels_is_limited(registry):
    metrics = Metrics(registry)
    names = [f"model-{number}" for number in range(20)]
    for name in (*names, *names):
        metrics.started()
        timing = Timing(scheduled=0.0, encoded=1.0, sent=2.0, first=3.0, last=4.0, done=5.0, completion_tokens=9)
        metrics.finished(Outcome(name="ok", model=name, timing=timing, usage=None, request_bytes=1))
    counts = {
        labels[-1]: value
        for (name, *labels), value in scrape(registry).items()
        if name.endswith("duration_seconds_count")
    }
    assert counts == dict.fromkeys(names[:10], 2) | {"other": 20}


def test_bucket_boundaries_include_those_of_the_conventions(engine, film, twin, registry):
    twin.report(engine.url, film, client={"metrics": Metrics(registry)})
    seconds = {0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92}
    for name in ("gen_ai_client_operation_duration_seconds", "gen_ai_client_operation_time_to_first_chunk_seconds"):
        assert seconds <= set(boundaries(registry, name))
    tokens = {1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864}
    assert tokens <= set(boundaries(registry, "gen_ai_client_token_usage"))


def test_label_values_are_from_closed_sets(engine, film, registry, twin):
    """An arbitrary model name becomes a label only if it is listed in ``models``."""
    metrics = Metrics(registry, models=["fake"])
    twin.report(engine.url, film, client={"metrics": metrics, "model": "Popescu^Ana"})
    for name, *labels in scrape(registry):
        assert set(labels) <= WORDS, name


def test_slos_are_bucket_boundaries(registry):
    Metrics(registry, ttft_slo=0.7, tpot_slo=0.0123, e2e_slo=11.5)
    registry_page = generate_latest(registry).decode()
    assert "pedcxr_client_in_flight 0.0" in registry_page

    fresh = CollectorRegistry()
    metrics = Metrics(fresh, ttft_slo=0.7, tpot_slo=0.0123, e2e_slo=11.5)
    metrics._first_chunk.labels("chat", "pedcxr", "fake").observe(1)
    metrics._per_token.labels("other").observe(1)
    metrics._duration.labels("chat", "pedcxr", "fake", "").observe(1)
    assert 0.7 in boundaries(fresh, "gen_ai_client_operation_time_to_first_chunk_seconds")
    assert {0.002, 0.0123} <= set(boundaries(fresh, "pedcxr_client_time_per_output_token_seconds"))
    assert min(boundaries(fresh, "pedcxr_client_time_per_output_token_seconds")) == 0.002
    assert 11.5 in boundaries(fresh, "gen_ai_client_operation_duration_seconds")
