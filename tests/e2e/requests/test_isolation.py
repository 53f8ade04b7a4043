"""Two tenants on one real engine: no cache, key, request id or film is shared between them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import Teams
from tests.support.films.phantom_films import CHAT, Film, body, fresh
from tests.support.servers.gateway_server import assert_openai_error

pytestmark = pytest.mark.slow

DISCONNECTS = 24
COUNTERS = ("prefix_cache_hits", "prefix_cache_queries")


@pytest.fixture(scope="module")
def ward(shared_by_two: Teams) -> Iterator[httpx.Client]:
    with shared_by_two.client("ward") as client:
        yield client


@pytest.fixture(scope="module")
def clinic(shared_by_two: Teams) -> Iterator[httpx.Client]:
    with shared_by_two.client("clinic") as client:
        yield client


def cache_counters(teams: Teams) -> dict[str, float]:
    """Return vLLM's prefix cache counters. The multimodal processor cache is off; the encoder cache has no counters."""
    page = teams.metrics()
    return {name: float(re.search(rf"^vllm:{name}_total\{{.*\}} (\S+)$", page, re.M)[1]) for name in COUNTERS}  # type: ignore[index]


def report_and_hits(
    teams: Teams, client: httpx.Client, payload: dict[str, Any] | bytes
) -> tuple[str, dict[str, float]]:
    """Return the report and the increase of each counter."""
    before = cache_counters(teams)
    text = report_of(client, payload)
    after = cache_counters(teams)
    assert after["prefix_cache_queries"] > before["prefix_cache_queries"], (
        "the counters were read before vLLM updated them"
    )
    return text, {name: after[name] - before[name] for name in COUNTERS}


def report_of(client: httpx.Client, payload: dict[str, Any] | bytes) -> str:
    content = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    answer = client.post(CHAT, content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["choices"][0]["message"]["content"]
    return text


def test_a_film_is_cached_per_tenant(shared_by_two: Teams, ward: httpx.Client, clinic: httpx.Client) -> None:
    """The same body misses the cache under another tenant's key and hits it under its own."""
    film = fresh()
    payload = json.dumps(film.body()).encode()
    first, cold = report_and_hits(shared_by_two, ward, payload)
    assert cold["prefix_cache_hits"] == 0
    others, replayed = report_and_hits(shared_by_two, clinic, payload)
    assert replayed["prefix_cache_hits"] == 0
    again, warm = report_and_hits(shared_by_two, ward, payload)
    assert warm["prefix_cache_hits"] >= 64
    assert first == others == again == film.report


@pytest.mark.parametrize("wrapped", ["another type", "other words", "a stream"])
def test_other_encodings_of_a_film_miss_the_cache_of_the_other_tenant(
    shared_by_two: Teams, ward: httpx.Client, clinic: httpx.Client, wrapped: str
) -> None:
    film = fresh(1)
    payload = film.body()
    if wrapped == "another type":
        payload["messages"][0]["content"][0]["image_url"]["url"] = film.url.replace("image/png", "image/jpeg")
    elif wrapped == "other words":
        payload["messages"][0]["content"][1]["text"] += " Be brief."
    assert report_of(ward, film.body()) == film.report
    before = cache_counters(shared_by_two)
    if wrapped == "a stream":
        with clinic.stream("POST", CHAT, json=payload | {"stream": True}) as answer:
            assert "[DONE]" in answer.read().decode()
    else:
        report_of(clinic, payload)
    after = cache_counters(shared_by_two)
    assert after["prefix_cache_queries"] > before["prefix_cache_queries"]
    assert after["prefix_cache_hits"] == before["prefix_cache_hits"]


def test_a_prompt_is_cached_per_tenant(shared_by_two: Teams, ward: httpx.Client, clinic: httpx.Client) -> None:
    payload = body(words="The child has had a fever and a cough for five days. " * 8, max_tokens=4)
    report_of(ward, payload)
    assert report_and_hits(shared_by_two, clinic, payload)[1]["prefix_cache_hits"] == 0
    assert report_and_hits(shared_by_two, ward, payload)[1]["prefix_cache_hits"] >= 32


def test_the_engine_alone_shares_its_cache(shared_by_two: Teams, engine: httpx.Client) -> None:
    """Control: the tests above would see these hits if the gateway added neither uuid nor cache salt."""
    payload = fresh().body(model="pedcxr-demo", max_tokens=4)
    report_of(engine, payload)
    hits = report_and_hits(shared_by_two, engine, payload)[1]
    assert hits["prefix_cache_hits"] >= 64


def test_forged_uuids_and_salts_are_refused(clinic: httpx.Client, ward: httpx.Client) -> None:
    film = fresh(2)
    assert report_of(ward, film.body()) == film.report
    without = {"type": "image_url", "uuid": "f" * 64}
    for payload, param in (
        (body(film.part(uuid="f" * 64)), "messages[0].content[0].uuid"),
        (body(without), "messages[0].content[0].uuid"),
        (body({"type": "image_url", "image_url": None, "uuid": "f" * 64}), "messages[0].content[0].uuid"),
        (film.body(cache_salt="0" * 64), "cache_salt"),
        (film.body(cache_salt=""), "cache_salt"),
        (film.body(priority=-1), "priority"),
        (film.body(mm_processor_kwargs={"do_resize": False}), "mm_processor_kwargs"),
        (film.body(kv_transfer_params={"do_remote_prefill": True}), "kv_transfer_params"),
    ):
        answer = clinic.post(CHAT, json=payload)
        assert_openai_error(answer, 400, "unknown_field")
        assert answer.json()["error"]["param"] == param
        assert film.report not in answer.text


def test_the_prompt_of_another_tenant_without_its_film(ward: httpx.Client, clinic: httpx.Client) -> None:
    theirs, own = fresh(0), fresh(3)
    assert report_of(ward, theirs.body()) == theirs.report
    assert report_of(clinic, body(own.part())) == own.report
    assert report_of(clinic, body()) != theirs.report


def test_two_tenants_with_the_same_request_id(shared_by_two: Teams) -> None:
    """vLLM derives its request id from the header: a tenant must neither receive nor abort another tenant's report."""
    films = [fresh(kind) for kind in range(4)]

    def ask(tenant: str, film: Film, *, leave: bool) -> str:
        with shared_by_two.client(tenant) as client:
            headers = {"X-Request-Id": "the-same"}
            if not leave:
                answer = client.post(CHAT, json=film.body(), headers=headers)
                assert answer.status_code == 200, answer.text
                text: str = answer.json()["choices"][0]["message"]["content"]
                return text
            with client.stream("POST", CHAT, json=film.body(stream=True), headers=headers) as answer:
                return next(answer.iter_text())

    with ThreadPoolExecutor(16) as pool:
        pending = [pool.submit(ask, tenant, film, leave=False) for film in films for tenant in ("ward", "clinic")]
        for film in films:
            pool.submit(ask, "clinic", film, leave=True)
        texts = [one.result() for one in pending]
    assert texts == [film.report for film in films for _ in range(2)]


def test_a_disconnect_during_preprocessing_does_not_affect_the_next_request(
    shared_by_two: Teams, ward: httpx.Client
) -> None:
    """A film that is sent again after its client disconnected, at any stage, gets its report."""
    for number in range(DISCONNECTS):
        film = fresh(number)
        with shared_by_two.client("ward") as leaver, pytest.raises(httpx.ReadTimeout):
            leaver.post(CHAT, json=film.body(), timeout=httpx.Timeout(60, read=0.004 * (number + 1)))
        assert report_of(ward, film.body()) == film.report


def test_models_lists_the_models_of_the_tenant(shared_by_two: Teams) -> None:
    with shared_by_two.client("narrow") as narrow, shared_by_two.client("ward") as ward:
        assert narrow.get("/v1/models").json()["data"] == []
        for named in ({}, {"model": "pedcxr-demo"}):
            assert_openai_error(narrow.post(CHAT, json=fresh().body(**named)), 404, "model_not_found")
        assert [model["id"] for model in ward.get("/v1/models").json()["data"]] == ["pedcxr-demo"]
        assert ward.post(CHAT, json=fresh().body(model="another")).status_code == 404


def test_token_budgets_are_per_tenant(shared_by_two: Teams) -> None:
    with shared_by_two.client("small") as small:
        assert report_of(small, fresh().body())
        answer = small.post(CHAT, json=fresh().body())
        assert_openai_error(answer, 429, "budget_spent")
        assert int(answer.headers["retry-after"]) >= 1
    with shared_by_two.client("ward") as ward:
        assert report_of(ward, fresh().body())
