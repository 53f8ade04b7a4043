"""Test whether a model uses the image: send the same prompt with other pixels and compare the reports.

A language model can write a plausible report from the age and the sex alone. Text metrics do not detect this.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from io import BytesIO
from typing import TYPE_CHECKING, Literal

from pedcxr_client.evaluation import negation
from pedcxr_client.evaluation.lexicon import Lexicon
from pedcxr_client.evaluation.negation import Assertion
from pedcxr_client.films.film import EncodedImage, encode_png

if TYPE_CHECKING:
    from PIL.Image import Image

Probe = Literal["again", "black", "mirrored", "shuffled"]
PROBES: tuple[Probe, ...] = ("again", "black", "mirrored", "shuffled")
"""``again`` is the control: the film unchanged. ``black``: black pixels of the same size. ``mirrored``: left and right
exchanged. ``shuffled``: the pixels of the next film with the prompt of this film."""

RequestText = Callable[[int, EncodedImage], str]
"""Sends an image with the prompt of the film at an index, and returns the output text, even if it is not a report."""


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """For each probe of one film, whether it changed the text; None if it left the pixels unchanged and was not sent.

    ``sided``: the report of the film names an abnormal finding of one side only. The report of the mirrored film must
    then differ.
    """

    changed: dict[Probe, bool | None]
    sided: bool


@dataclass(frozen=True, slots=True)
class Tally:
    """One probe over all films: ``changed`` reports of ``asked`` comparable reports.

    ``again``: how many reports of the same films the control changed.
    """

    changed: int
    asked: int
    again: int


def variant(probe: Probe, own: EncodedImage, following: EncodedImage) -> EncodedImage:
    """Return the image of a probe. It keeps the header values of the film, because the prompt depends on them."""
    if probe == "again":
        return own
    return replace(following, facts=own.facts) if probe == "shuffled" else _altered(own, f"probe: {probe}")


def run(films: Sequence[EncodedImage], request_text: RequestText, lexicon: Lexicon) -> Iterator[ProbeResult]:
    """Run all probes on each film, in order. The lexicon finds the sides of abnormal findings."""
    for index, own in enumerate(films):
        text = request_text(index, own)
        changed: dict[Probe, bool | None] = {}
        for probe in PROBES:
            other = variant(probe, own, films[(index + 1) % len(films)])
            same_pixels = probe != "again" and _pixels(other).tobytes() == _pixels(own).tobytes()
            changed[probe] = None if same_pixels else request_text(index, other) != text
        yield ProbeResult(changed, _names_one_side(text, lexicon))


def _names_one_side(text: str, lexicon: Lexicon) -> bool:
    return any(
        len(mention.sides) == 1 and mention.assertion != Assertion.ABSENT and lexicon.findings[mention.finding].abnormal
        for mention in negation.mentions(text, lexicon)
    )


def tallies(films: Sequence[ProbeResult]) -> dict[Probe, Tally]:
    """Count each probe over all films. ``mirrored`` counts a film only if its report is ``sided``."""
    counts: dict[Probe, Tally] = {}
    for probe in PROBES:
        comparable = [
            film.changed for film in films if film.changed[probe] is not None and (film.sided or probe != "mirrored")
        ]
        changed, again = (sum(bool(changes[name]) for changes in comparable) for name in (probe, "again"))
        counts[probe] = Tally(changed, len(comparable), again)
    return counts


def failings(counts: dict[Probe, Tally]) -> list[str]:
    """Return a sentence for each failed probe. A probe fails if ``again`` changes as many reports of the same films."""
    messages: dict[Probe, str] = {
        "black": "black films: the reports do not change; the model does not use the image",
        "shuffled": "shuffled films: the reports do not change; the model does not use the image",
        "mirrored": "mirrored films: the reports do not change; the model does not distinguish left from right",
    }
    return [
        message
        for probe, message in messages.items()
        if (tally := counts[probe]).asked and tally.changed <= tally.again
    ]


def _pixels(image: EncodedImage) -> Image:
    from PIL import Image as pillow

    with pillow.open(BytesIO(b64decode(image.base64))) as image_file:
        return image_file.convert("L")


def _altered(own: EncodedImage, how: str) -> EncodedImage:
    from PIL import Image as pillow
    from PIL import ImageOps

    pixels = _pixels(own)
    changed = pillow.new("L", pixels.size) if how.endswith("black") else ImageOps.mirror(pixels)
    data = encode_png(changed)
    return replace(
        own, mime="image/png", base64=b64encode(data), sha256=sha256(data).hexdigest(), how=(*own.how, how), stats=None
    )
