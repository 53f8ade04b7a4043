"""Two tenants at one real engine: neither sees, hits or hinders what is the other's."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import Teams
from tests.support.gateway_server import assert_openai_error
from tests.support.phantom_films import CHAT, Film, body, fresh

pytestmark = pytest.mark.slow

LEAVERS = 24
COUNTERS = ("prefix_cache_hits", "prefix_cache_queries")


@pytest.fixture(scope="module")
def ward(shared_by_two: Teams) -> Iterator[httpx.Client]:
    with shared_by_two.client("ward") as client:
        yield client


@pytest.fixture(scope="module")
def clinic(shared_by_two: Teams) -> Iterator[httpx.Client]:
    with shared_by_two.client("clinic") as client:
        yield client


def counted(teams: Teams) -> dict[str, float]:
    """vLLM's own counters; its cache of prepared films is off, and that of encoded ones counts nothing."""
    page = teams.metrics()
    return {name: float(re.search(rf"^vllm:{name}_total\{{.*\}} (\S+)$", page, re.M)[1]) for name in COUNTERS}  # type: ignore[index]


def moved(teams: Teams, client: httpx.Client, asked: dict[str, Any] | bytes) -> tuple[str, dict[str, float]]:
    """A report, and how far it moved the counters."""
    before = counted(teams)
    text = report_of(client, asked)
    after = counted(teams)
    assert after["prefix_cache_queries"] > before["prefix_cache_queries"], "counted too early"
    return text, {name: after[name] - before[name] for name in COUNTERS}


def report_of(client: httpx.Client, asked: dict[str, Any] | bytes) -> str:
    content = asked if isinstance(asked, bytes) else json.dumps(asked).encode()
    answer = client.post(CHAT, content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["choices"][0]["message"]["content"]
    return text


def test_a_film_is_cached_for_its_tenant_alone(shared_by_two: Teams, ward: httpx.Client, clinic: httpx.Client) -> None:
    """The same bytes, replayed with another key, find nothing; with their own they find the cache warm."""
    film = fresh()
    asked = json.dumps(film.body()).encode()
    first, cold = moved(shared_by_two, ward, asked)
    assert cold["prefix_cache_hits"] == 0
    others, replayed = moved(shared_by_two, clinic, asked)
    assert replayed["prefix_cache_hits"] == 0
    again, warm = moved(shared_by_two, ward, asked)
    assert warm["prefix_cache_hits"] >= 64
    assert first == others == again == film.report


@pytest.mark.parametrize("wrapped", ["another type", "other words", "a stream"])
def test_nor_by_the_same_film_in_other_wrappings(
    shared_by_two: Teams, ward: httpx.Client, clinic: httpx.Client, wrapped: str
) -> None:
    film = fresh(1)
    asked = film.body()
    if wrapped == "another type":
        asked["messages"][0]["content"][0]["image_url"]["url"] = film.url.replace("image/png", "image/jpeg")
    elif wrapped == "other words":
        asked["messages"][0]["content"][1]["text"] += " Be brief."
    assert report_of(ward, film.body()) == film.report
    before = counted(shared_by_two)
    if wrapped == "a stream":
        with clinic.stream("POST", CHAT, json=asked | {"stream": True}) as answer:
            assert "[DONE]" in answer.read().decode()
    else:
        report_of(clinic, asked)
    after = counted(shared_by_two)
    assert after["prefix_cache_queries"] > before["prefix_cache_queries"]
    assert after["prefix_cache_hits"] == before["prefix_cache_hits"]


def test_a_prompt_is_cached_for_its_tenant_alone(
    shared_by_two: Teams, ward: httpx.Client, clinic: httpx.Client
) -> None:
    asked = body(words="The child has had a fever and a cough for five days. " * 8, max_tokens=4)
    report_of(ward, asked)
    assert moved(shared_by_two, clinic, asked)[1]["prefix_cache_hits"] == 0
    assert moved(shared_by_two, ward, asked)[1]["prefix_cache_hits"] >= 32


def test_without_the_gateway_the_cache_is_everybody_s(shared_by_two: Teams, engine: httpx.Client) -> None:
    """What the tests above would see if the gateway named nothing and salted nothing."""
    asked = fresh().body(model="pedcxr-demo", max_tokens=4)
    report_of(engine, asked)
    hits = moved(shared_by_two, engine, asked)[1]
    assert hits["prefix_cache_hits"] >= 64


def test_forged_names_and_salts_are_refused(clinic: httpx.Client, ward: httpx.Client) -> None:
    film = fresh(2)
    assert report_of(ward, film.body()) == film.report
    without = {"type": "image_url", "uuid": "f" * 64}
    for asked, param in (
        (body(film.part(uuid="f" * 64)), "messages[0].content[0].uuid"),
        (body(without), "messages[0].content[0].uuid"),
        (body({"type": "image_url", "image_url": None, "uuid": "f" * 64}), "messages[0].content[0].uuid"),
        (film.body(cache_salt="0" * 64), "cache_salt"),
        (film.body(cache_salt=""), "cache_salt"),
        (film.body(priority=-1), "priority"),
        (film.body(mm_processor_kwargs={"do_resize": False}), "mm_processor_kwargs"),
        (film.body(kv_transfer_params={"do_remote_prefill": True}), "kv_transfer_params"),
    ):
        answer = clinic.post(CHAT, json=asked)
        assert_openai_error(answer, 400, "unknown_field")
        assert answer.json()["error"]["param"] == param
        assert film.report not in answer.text


def test_the_other_s_words_without_the_other_s_film(ward: httpx.Client, clinic: httpx.Client) -> None:
    theirs, own = fresh(0), fresh(3)
    assert report_of(ward, theirs.body()) == theirs.report
    assert report_of(clinic, body(own.part())) == own.report
    assert report_of(clinic, body()) != theirs.report


def test_one_request_id_for_two_tenants(shared_by_two: Teams) -> None:
    """vLLM takes its request id from the header: who sends another's must neither get nor end the other's report."""
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
        kept = [pool.submit(ask, tenant, film, leave=False) for film in films for tenant in ("ward", "clinic")]
        for film in films:
            pool.submit(ask, "clinic", film, leave=True)
        texts = [one.result() for one in kept]
    assert texts == [film.report for film in films for _ in range(2)]


def test_who_leaves_while_his_film_is_prepared_costs_the_next_nothing(shared_by_two: Teams, ward: httpx.Client) -> None:
    """Whatever the engine had done with a film when its sender left, the same film sent again is reported."""
    for number in range(LEAVERS):
        film = fresh(number)
        with shared_by_two.client("ward") as gone, pytest.raises(httpx.ReadTimeout):
            gone.post(CHAT, json=film.body(), timeout=0.004 * (number + 1))
        assert report_of(ward, film.body()) == film.report


def test_models_are_those_a_tenant_may_use(shared_by_two: Teams) -> None:
    with shared_by_two.client("narrow") as narrow, shared_by_two.client("ward") as ward:
        assert narrow.get("/v1/models").json()["data"] == []
        for named in ({}, {"model": "pedcxr-demo"}):
            assert_openai_error(narrow.post(CHAT, json=fresh().body(**named)), 404, "model_not_found")
        assert [model["id"] for model in ward.get("/v1/models").json()["data"]] == ["pedcxr-demo"]
        assert ward.post(CHAT, json=fresh().body(model="another")).status_code == 404


def test_usage_is_the_tenant_s_own(shared_by_two: Teams) -> None:
    with shared_by_two.client("small") as small:
        assert report_of(small, fresh().body())
        answer = small.post(CHAT, json=fresh().body())
        assert_openai_error(answer, 429, "budget_spent")
        assert int(answer.headers["retry-after"]) >= 1
    with shared_by_two.client("ward") as ward:
        assert report_of(ward, fresh().body())
