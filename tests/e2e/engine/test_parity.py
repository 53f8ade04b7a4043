"""Served greedy reports equal those of the model card's own code, token for token, in float32."""

from __future__ import annotations

import random

import pytest

from pedcxr_client.films.age import Age
from pedcxr_client.request import prompts
from pedcxr_serve.demo import drawing, expected_report
from pedcxr_serve.demo.findings import Case, Finding, Kind, sample
from tests.e2e.served_reports import UNSEEN, Study, draw, reference, served, token_ids
from tests.support.servers.local_server import LocalServer

pytestmark = pytest.mark.slow

UNSEEN_EXACT = 300


@pytest.fixture(scope="module")
def expected(phantoms: list[Study]) -> list[list[int]]:
    return reference(phantoms)


@pytest.mark.parametrize("in_flight", [1, 32])
def test_phantoms(running: LocalServer, phantoms: list[Study], expected: list[list[int]], in_flight: int) -> None:
    answers = served(running.url, phantoms, in_flight)
    differing = [
        study.film.name
        for study, answer, ids in zip(phantoms, answers, expected, strict=True)
        if token_ids(answer) != ids
    ]
    assert not differing


@pytest.mark.parametrize("in_flight", [1, 32])
def test_real_films(running: LocalServer, children: list[Study], in_flight: int) -> None:
    opaque = served(running.url, children, in_flight)
    assert [token_ids(answer) for answer in opaque] == reference(children)


def test_swapped_films_differ(running: LocalServer, phantoms: list[Study], expected: list[list[int]]) -> None:
    """Control: with the films swapped between prompts, most reports differ from the reference."""
    films = [*phantoms[1:], phantoms[0]]
    swapped = [Study(film.film, study.prompt) for film, study in zip(films, phantoms, strict=True)]
    answers = served(running.url, swapped, 32)
    same = sum(token_ids(answer) == ids for answer, ids in zip(answers, expected, strict=True))
    assert same < len(phantoms) / 4


def test_unseen_phantoms_are_reported_as_drawn(running: LocalServer, tmp_path_factory: pytest.TempPathFactory) -> None:
    seeds = range(UNSEEN + 1000, UNSEEN + 1000 + UNSEEN_EXACT)
    answers = served(running.url, draw(tmp_path_factory.mktemp("unseen"), seeds), 32)
    texts = [answer.choices[0].message.content for answer in answers]
    exact = sum(text == expected_report.text(sample(seed)) for text, seed in zip(texts, seeds, strict=True))
    print(f"\n{exact} of {UNSEEN_EXACT} unseen phantoms reported exactly as drawn")
    assert exact >= 0.97 * UNSEEN_EXACT


def test_the_age_in_the_prompt_changes_the_report(running: LocalServer, tmp_path: object) -> None:
    """A wide mediastinum is a normal thymus at three months and abnormal at ten years."""
    wide = (Finding(Kind.WIDE_MEDIASTINUM),)
    film = tmp_path / "film.png"  # type: ignore[operator]
    film.write_bytes(drawing.encode_png(drawing.render(Case(None, None, wide), 5)))
    ages = (Age(3, "M"), Age(10, "Y"))
    infant, child = served(running.url, [Study(film, prompts.card(age, "M")) for age in ages], 2)
    for answer, age in ((infant, ages[0]), (child, ages[1])):
        assert answer.choices[0].message.content == expected_report.text(Case(age, "M", wide))
    assert infant.choices[0].message.content != child.choices[0].message.content


def other_ages(studies: list[Study]) -> list[Study]:
    """Return the films with other prompts, so that a cached prefix ends inside or right after the image."""
    pick = random.Random(0)
    return [
        Study(study.film, prompts.card(Age(pick.randint(1, 17), "Y"), pick.choice(["M", "F", None])))
        for study in studies
    ]
