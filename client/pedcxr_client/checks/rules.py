"""Is this film one that the model was made for? Pure checks on facts, before anything is sent.

Each check answers ``ok``, ``warn`` or ``block``, and why. A film without a header is only warned about by the checks
of a header. What blocks can be allowed by name, which is recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from pedcxr_client.errors import BlockedFilm, ConfigurationError, InputError
from pedcxr_client.films.age import Age
from pedcxr_client.films.header import Facts
from pedcxr_client.films.pixel_stats import PixelStats
from pedcxr_client.types import Check, Sex

SMALLEST_SIDE = 256
"""Pixels; below it a film is a thumbnail."""

_CR = "1.2.840.10008.5.1.4.1.1.1"  # PS3.4 annex B.5
_DX = "1.2.840.10008.5.1.4.1.1.1.1"
_DX_FOR_PROCESSING = "1.2.840.10008.5.1.4.1.1.1.1.1"
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_LATERAL = {"LL", "RL", "LLD", "RLD", "LLO", "RLO", "LATERAL"}
_ADULT = {"D": 6575, "W": 940, "M": 216, "Y": 18}


@dataclass(frozen=True, slots=True, kw_only=True)
class CallerFacts:
    """What the caller says about a film, which goes before its header.

    Attributes:
        age, sex: of the child, None to take the header's.
        assume_chest: the film shows a chest where nothing says so.
        allow: names of checks that must not block.

    Raises:
        InputError: if an age or a sex cannot be used.
        ConfigurationError: if a name in ``allow`` is of no check.
    """

    age: Age | None = None
    sex: Sex | None = None
    assume_chest: bool = False
    allow: Iterable[str] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.age, Age | None):
            raise InputError("age: give an Age, or a number and a unit such as '5y'")
        if self.sex not in ("M", "F", None):
            raise InputError("sex: is neither 'M' nor 'F'; leave it out if it is not known")
        names = (self.allow,) if isinstance(self.allow, str) else tuple(self.allow)
        if unknown := [name for name in names if name not in NAMES]:
            raise ConfigurationError(f"allow: {unknown[0]!r} is no check; there are {', '.join(NAMES)}")
        object.__setattr__(self, "allow", names)

    def age_of(self, facts: Facts) -> Age | None:
        """The age to put into the prompt."""
        return self.age or facts.age

    def sex_of(self, facts: Facts) -> Sex | None:
        """The sex to put into the prompt."""
        return self.sex or facts.sex


def modality(facts: Facts, asked: CallerFacts, stats: PixelStats | None) -> Check:
    """CR and DX; anything else blocks, and so does another kind of object that calls itself CR or DX."""
    if facts.modality is None or facts.sop_class is None:
        return _no_header("modality", "make sure that it is a radiograph")
    if facts.modality.value not in ("CR", "DX"):
        return Check("modality", "block", f"{facts.modality}; only CR and DX are chest films")
    if facts.sop_class.value not in (_CR, _DX, _DX_FOR_PROCESSING):
        return Check("modality", "block", f"{facts.sop_class}, which is no CR or DX image")
    return Check("modality", "ok", str(facts.modality))


def presentation(facts: Facts, asked: CallerFacts, stats: PixelStats | None) -> Check:
    """FOR PROCESSING blocks: the raw detector values are not the picture a radiologist reads."""
    if facts.intent is None or facts.sop_class is None:
        return _no_header("presentation", "make sure that it was processed for viewing")
    if facts.intent.value == "FOR PROCESSING":
        return Check("presentation", "block", f"{facts.intent}; send the FOR PRESENTATION film of the same exposure")
    if facts.sop_class.value == _DX_FOR_PROCESSING:
        return Check("presentation", "block", f"{facts.sop_class}, which is FOR PROCESSING; send the other film")
    return Check("presentation", "ok", str(facts.intent))


def body_part(facts: Facts, asked: CallerFacts, stats: PixelStats | None) -> Check:
    """A chest, as the header says or as the caller assumes where it says nothing."""
    if facts.body is not None and facts.body.value:
        if facts.body.value == "chest":
            return Check("body-part", "ok", str(facts.body))
        return Check("body-part", "block", f"{facts.body}, not a chest")
    if asked.assume_chest:
        return Check("body-part", "ok", "a chest, as the caller says (--assume-chest)")
    if facts.body is None:
        return _no_header("body-part", "make sure that it shows a chest")
    return Check("body-part", "block", f"{facts.body} and no description says chest; if it is one: --assume-chest")


def view(facts: Facts, asked: CallerFacts, stats: PixelStats | None) -> Check:
    """Frontal views are what the model was tuned on; others are warned about."""
    if facts.view is None:
        return _no_header("view", "make sure that it is a frontal film")
    if facts.view.value in ("AP", "PA"):
        return Check("view", "ok", str(facts.view))
    return Check("view", "warn", f"{facts.view}, {'lateral' if facts.view.value in _LATERAL else 'not AP or PA'}")


def age(facts: Facts, asked: CallerFacts, stats: PixelStats | None) -> Check:
    """A child below 18 years; an unknown age blocks a DICOM film, since the words of the prompt depend on it."""
    if asked.age is not None:
        return _given_age(facts, asked.age)
    if facts.age is None:
        if facts.kind == "image":
            return _no_header("age", "give it with --age")
        return Check("age", "block", f"{facts.age_why}; give it with --age")
    if is_adult(facts.age):
        return Check("age", "block", f"{facts.age_why}: 18 years or more; the model knows children only")
    if facts.age_by_dates is not None and is_adult(facts.age_by_dates):
        return Check("age", "block", f"{facts.age_why}, but its dates make 18 years or more; give it with --age")
    return Check("age", "ok", facts.age_why)


def _given_age(facts: Facts, given: Age) -> Check:
    if is_adult(given):
        return Check("age", "block", "18 years or more, as the caller says; the model knows children only")
    if facts.age is not None and is_adult(facts.age):
        return Check("age", "block", f"a child, as the caller says, but {facts.age_why}: 18 years or more")
    return Check("age", "ok", "as the caller says")


def sex(facts: Facts, asked: CallerFacts, stats: PixelStats | None) -> Check:
    """M or F; anything else is left out of the prompt."""
    if asked.sex is not None:
        return Check("sex", "ok", "as the caller says")
    if facts.sex is not None:
        return Check("sex", "ok", facts.sex_why)
    if facts.kind == "image":
        return _no_header("sex", "give it with --sex")
    return Check("sex", "ok", f"{facts.sex_why}; left out of the prompt")


def human(facts: Facts, asked: CallerFacts, stats: PixelStats | None) -> Check:
    """Anything that says animal blocks: their headers look like those of children."""
    if facts.kind == "image":
        return _no_header("human", "make sure that it is a child's")
    if facts.not_human is not None:
        return Check("human", "block", f"{facts.not_human}; the model knows human children only")
    return Check("human", "ok", "no species, breed, owner or veterinary word")


def burned_in_text(facts: Facts, asked: CallerFacts, stats: PixelStats | None) -> Check:
    """Text in the pixels may name the patient, and a secondary capture is a picture of a screen."""
    if facts.burned_in is None or facts.sop_class is None:
        return _no_header("burned-in-text", "make sure that no name stands in the picture")
    if facts.burned_in.value == "YES":
        return Check("burned-in-text", "block", f"{facts.burned_in}; the pixels may name the patient")
    if facts.sop_class.value == _SECONDARY_CAPTURE or facts.sop_class.value.startswith(_SECONDARY_CAPTURE + "."):
        return Check("burned-in-text", "block", f"{facts.sop_class}, a secondary capture; send the original film")
    return Check("burned-in-text", "ok", str(facts.burned_in))


def quality(facts: Facts, asked: CallerFacts, stats: PixelStats | None) -> Check:
    """A test film, a thumbnail or an empty one blocks; one that looks inverted is warned about."""
    if facts.quality_control is not None and facts.quality_control.value == "YES":
        return Check("quality", "block", f"{facts.quality_control}; this is a test of the device")
    if stats is None:
        return Check("quality", "warn", "the pixels were not looked at")
    if min(stats.width, stats.height) < SMALLEST_SIDE:
        return Check("quality", "block", f"{stats.width} x {stats.height} pixels, less than {SMALLEST_SIDE} on a side")
    if stats.flat:
        return Check("quality", "block", "the pixels are nearly constant; there is no picture in them")
    if stats.dark_middle:
        return Check("quality", "warn", "the middle is darker than the lungs: it looks inverted")
    return Check("quality", "ok", f"{stats.width} x {stats.height} pixels")


_CHECKS: dict[str, Callable[[Facts, CallerFacts, PixelStats | None], Check]] = {
    "modality": modality,
    "presentation": presentation,
    "body-part": body_part,
    "view": view,
    "age": age,
    "sex": sex,
    "human": human,
    "burned-in-text": burned_in_text,
    "quality": quality,
}

NAMES = tuple(_CHECKS)
"""The checks by name, in the order they are made: what ``--allow`` takes."""


def check(facts: Facts, asked: CallerFacts, stats: PixelStats | None = None) -> tuple[Check, ...]:
    """Make every check; without `stats` those of the header alone, which need no decoding."""
    made = (make(facts, asked, stats) for make in _CHECKS.values())
    return tuple(
        replace(one, allowed=True) if one.status == "block" and one.name in asked.allow else one for one in made
    )


def enforce(checks: Iterable[Check]) -> None:
    """Stop a film that must not be sent.

    Raises:
        BlockedFilm: if a check blocks that the caller did not allow; carries all of them.
    """
    checks = tuple(checks)
    if stopping := [one for one in checks if one.blocks]:
        reasons = "; ".join(f"{one.name}: {one.why}" for one in stopping)
        names = " ".join(f"--allow {one.name}" for one in stopping)
        raise BlockedFilm(f"the film is outside the intended use. {reasons}. To send it all the same: {names}", checks)


def is_adult(age: Age) -> bool:
    """Whether an age is 18 years or more."""
    return age.value >= _ADULT[age.unit]


def _no_header(name: str, advice: str) -> Check:
    return Check(name, "warn", f"a plain image has no header to tell; {advice}", from_header=False)
