"""One film on its way in: read, checked, developed, checked again and encoded; and the words that go with it."""

from __future__ import annotations

from dataclasses import dataclass

from . import gate, image, prompt
from .facts import Facts
from .gate import Asked, Check
from .preparation import Preparation


@dataclass(frozen=True, slots=True, repr=False)
class Intake:
    """What would be sent of a film, and the checks it passed.

    Attributes:
        image: the pixels.
        checks: all of them; none blocks that was not allowed.
        prompt: the words.
    """

    image: image.EncodedImage
    checks: tuple[Check, ...]
    prompt: str


def take(film: image.Film, asked: Asked, preparation: Preparation) -> Intake:
    """Take a film in.

    Raises:
        BlockedFilm: if it is outside the intended use; what the header decides is decided before anything is decoded.
        InputError: if it cannot be read.
    """
    encoded = film if isinstance(film, image.EncodedImage) else _developed(film, asked, preparation)
    checks = gate.check(encoded.facts, asked, encoded.look)
    gate.enforce(checks)
    return Intake(encoded, checks, words(encoded.facts, asked))


def words(facts: Facts, asked: Asked) -> str:
    """The prompt: what the caller says goes before what the header says."""
    return prompt.card(asked.age_of(facts), asked.sex_of(facts))


def _developed(film: object, asked: Asked, preparation: Preparation) -> image.EncodedImage:
    undeveloped = image.read(film)  # type: ignore[arg-type]
    gate.enforce(gate.check(undeveloped.facts, asked))
    radiograph = undeveloped.develop(preparation)
    gate.enforce(gate.check(radiograph.facts, asked, radiograph.look))
    return image.encode(radiograph)
