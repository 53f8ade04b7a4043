"""One film on its way in: read, checked, developed, checked again and encoded; and the words that go with it."""

from __future__ import annotations

from dataclasses import dataclass

from pedcxr_client.checks import rules
from pedcxr_client.checks.rules import CallerFacts
from pedcxr_client.films import film as image
from pedcxr_client.films.age import Age
from pedcxr_client.films.geometry import Preparation
from pedcxr_client.films.header import Facts
from pedcxr_client.request.film_request import FilmRequest
from pedcxr_client.request.prompts import Prompt
from pedcxr_client.types import Check, Sex


@dataclass(frozen=True, slots=True, repr=False)
class Intake:
    """What would be sent of a film, and the checks it passed.

    Attributes:
        image: the pixels.
        checks: all of them; none blocks that was not allowed.
        prompt: the words.
        age, sex: of the child, as the words have them; None where not known.
        view: ViewPosition as the header has it, None where it says nothing.
    """

    image: image.EncodedImage
    checks: tuple[Check, ...]
    prompt: Prompt
    age: Age | None
    sex: Sex | None
    view: str | None


def take(request: FilmRequest, size: tuple[int, int] | None = None) -> Intake:
    """Take a film in; ``size`` is the model's input as the server told it.

    Raises:
        BlockedFilm: if it is outside the intended use; what the header decides is decided before anything is decoded.
        InputError: if it cannot be read, or the age, the sex or the indication not be used.
        ConfigurationError: if a check that is to be allowed is none.
    """
    film, asked = request.film, request.caller_facts()
    encoded = film if isinstance(film, image.EncodedImage) else _developed(film, asked, request.preparation.sized(size))
    checks = rules.check(encoded.facts, asked, encoded.stats)
    rules.enforce(checks)
    view = encoded.facts.view
    return Intake(
        image=encoded,
        checks=checks,
        prompt=words(encoded.facts, request),
        age=asked.age_of(encoded.facts),
        sex=asked.sex_of(encoded.facts),
        view=None if view is None else view.value or None,
    )


def words(facts: Facts, request: FilmRequest) -> Prompt:
    """The prompt: what the caller says goes before what the header says.

    Raises:
        InputError: if the age, the sex or the indication cannot be used.
    """
    asked = request.caller_facts()
    return request.prompt_profile.prompt(asked.age_of(facts), asked.sex_of(facts), indication=request.indication)


def _developed(film: object, asked: CallerFacts, preparation: Preparation) -> image.EncodedImage:
    undeveloped = image.read(film)  # type: ignore[arg-type]
    rules.enforce(rules.check(undeveloped.facts, asked))
    radiograph = undeveloped.render(preparation)
    rules.enforce(rules.check(radiograph.facts, asked, radiograph.stats))
    return image.encode(radiograph)
