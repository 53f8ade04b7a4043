"""Does a model look at the film? The same prompts with other pixels: the reports must change. Pure but for ``ask``.

A language model can write a likely report from the age and the sex alone. No metric of texts tells, but these do.
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from io import BytesIO
from typing import TYPE_CHECKING, Literal

from pedcxr_client.films.film import EncodedImage, encode_png

if TYPE_CHECKING:
    from PIL.Image import Image

Probe = Literal["again", "black", "mirrored", "shuffled"]
PROBES: tuple[Probe, ...] = ("again", "black", "mirrored", "shuffled")
"""``again``: the film as it is, the control. ``black``: no picture. ``mirrored``: left is right. ``shuffled``: the next
film's pixels under this film's prompt."""

_SIDE = re.compile(r"\b(left|right)\b", re.IGNORECASE)
Ask = Callable[[int, EncodedImage], str]
"""Asks for the report of these pixels with the prompt of the film of this number; what came back, report or not."""


@dataclass(frozen=True, slots=True)
class Probed:
    """One film.

    Attributes:
        changed: by probe, whether another text came back; None where there was nothing to ask, since the pixels are
            the same.
        sided: its own report names a side, so that the mirrored film's must differ.
    """

    changed: dict[Probe, bool | None]
    sided: bool


@dataclass(frozen=True, slots=True)
class Tally:
    """One probe over all films: reports that changed, of those that should."""

    changed: int
    asked: int


def variant(probe: Probe, own: EncodedImage, following: EncodedImage) -> EncodedImage:
    """The pixels of a probe, with the facts of the film itself, which the prompt follows."""
    if probe == "again":
        return own
    if probe == "shuffled":
        return replace(following, facts=own.facts)
    return _encoded(own, "probe: black") if probe == "black" else _encoded(own, "probe: mirrored")


def run(films: Sequence[EncodedImage], ask: Ask) -> Iterator[Probed]:
    """Probe films, one after the other."""
    for at, own in enumerate(films):
        text = ask(at, own)
        changed: dict[Probe, bool | None] = {}
        for probe in PROBES:
            other = variant(probe, own, films[(at + 1) % len(films)])
            same_pixels = probe != "again" and _pixels(other).tobytes() == _pixels(own).tobytes()
            changed[probe] = None if same_pixels else ask(at, other) != text
        yield Probed(changed, _SIDE.search(text) is not None)


def tallies(films: Sequence[Probed]) -> dict[Probe, Tally]:
    """Each probe over all films; of the mirrored ones only those count whose own report names a side."""
    found: dict[Probe, Tally] = {}
    for probe in PROBES:
        counted = [film.changed[probe] for film in films if film.sided or probe != "mirrored"]
        asked = [one for one in counted if one is not None]
        found[probe] = Tally(sum(asked), len(asked))
    return found


def failings(found: dict[Probe, Tally]) -> list[str]:
    """What speaks against the model, in sentences; [] where its reports follow the film.

    A probe fails where no more reports changed than when the same film was asked about again.
    """
    noise = found["again"].changed
    told: dict[Probe, str] = {
        "black": "black films: the reports stay the same; the model does not look at the film",
        "shuffled": "shuffled films: the reports stay the same; the model does not look at the film",
        "mirrored": "mirrored films: the reports stay the same; the model does not tell left from right",
    }
    return [says for probe, says in told.items() if found[probe].asked and found[probe].changed <= noise]


def _pixels(image: EncodedImage) -> Image:
    from PIL import Image as pillow

    with pillow.open(BytesIO(b64decode(image.base64))) as opened:
        return opened.convert("L")


def _encoded(own: EncodedImage, how: str) -> EncodedImage:
    from PIL import Image as pillow
    from PIL import ImageOps

    pixels = _pixels(own)
    changed = pillow.new("L", pixels.size) if how.endswith("black") else ImageOps.mirror(pixels)
    data = encode_png(changed)
    return replace(
        own, mime="image/png", base64=b64encode(data), sha256=sha256(data).hexdigest(), how=(*own.how, how), stats=None
    )
