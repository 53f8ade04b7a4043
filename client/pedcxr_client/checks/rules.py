"""Check before sending whether a film is within the intended use of the model. Pure functions of facts.

Each check returns ``ok``, ``warn`` or ``block``, and a reason. For a film without a header, the checks of the header
only warn. The caller can allow a blocking check by name, which the report records.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from pedcxr_client.errors import BlockedFilm, ConfigurationError, InputError
from pedcxr_client.films.age import Age
from pedcxr_client.films.geometry import MIN_LEVELS, MIN_SPREAD, PixelStats
from pedcxr_client.films.header import Facts
from pedcxr_client.types import Check, Sex

SMALLEST_SIDE = 256
"""Minimum side of a film in pixels; a smaller image is a thumbnail."""

_CR = "1.2.840.10008.5.1.4.1.1.1"  # PS3.4 annex B.5
_DX = "1.2.840.10008.5.1.4.1.1.1.1"
_DX_FOR_PROCESSING = "1.2.840.10008.5.1.4.1.1.1.1.1"
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_LATERAL = {"LL", "RL", "LLD", "RLD", "LLO", "RLO", "LATERAL"}
_ADULT = {"D": 6575, "W": 940, "M": 216, "Y": 18}


@dataclass(frozen=True, slots=True, kw_only=True)
class CallerFacts:
    """The caller's statements about a film, which take precedence over the header; see `FilmRequest`."""

    age: Age | None = None
    sex: Sex | None = None
    assume_chest: bool = False
    allow: Iterable[str] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.age, Age | None):
            raise InputError("age: must be an Age, or a number and a unit such as '5y'")
        if self.sex not in ("M", "F", None):
            raise InputError("sex: must be 'M' or 'F'; omit it if it is unknown")
        names = (self.allow,) if isinstance(self.allow, str) else tuple(self.allow)
        if unknown := [name for name in names if name not in NAMES]:
            raise ConfigurationError(f"allow: {unknown[0]!r} is not a check; the checks are {', '.join(NAMES)}")
        object.__setattr__(self, "allow", names)

    def age_of(self, facts: Facts) -> Age | None:
        """Return the age for the prompt."""
        return self.age or facts.age

    def sex_of(self, facts: Facts) -> Sex | None:
        """Return the sex for the prompt."""
        return self.sex or facts.sex


def modality(facts: Facts, caller: CallerFacts, stats: PixelStats | None) -> Check:
    """Block every modality except CR and DX, and every object of another SOP class that states CR or DX."""
    if facts.modality is None or facts.sop_class is None:
        return _no_header("modality", "make sure that it is a radiograph")
    if facts.modality.value not in ("CR", "DX"):
        return Check("modality", "block", f"{facts.modality}; only CR and DX are chest films")
    if facts.sop_class.value not in (_CR, _DX, _DX_FOR_PROCESSING):
        return Check("modality", "block", f"{facts.sop_class}, which is not a CR or DX image")
    return Check("modality", "ok", str(facts.modality))


def presentation(facts: Facts, caller: CallerFacts, stats: PixelStats | None) -> Check:
    """Block FOR PROCESSING images: raw detector values are not what a radiologist reads."""
    if facts.intent is None or facts.sop_class is None:
        return _no_header("presentation", "make sure that it was processed for viewing")
    if facts.intent.value == "FOR PROCESSING":
        return Check("presentation", "block", f"{facts.intent}; send the FOR PRESENTATION film of the same exposure")
    if facts.sop_class.value == _DX_FOR_PROCESSING:
        return Check("presentation", "block", f"{facts.sop_class}, which is FOR PROCESSING; send the other film")
    return Check("presentation", "ok", str(facts.intent))


def body_part(facts: Facts, caller: CallerFacts, stats: PixelStats | None) -> Check:
    """Block a film unless the header states a chest, or states no body part and the caller assumes a chest."""
    if facts.body is not None and facts.body.value:
        if facts.body.value == "chest":
            return Check("body-part", "ok", str(facts.body))
        return Check("body-part", "block", f"{facts.body}, not a chest")
    if caller.assume_chest:
        return Check("body-part", "ok", "assumed to be a chest by the caller (--assume-chest)")
    if facts.body is None:
        return _no_header("body-part", "make sure that it shows a chest")
    return Check(
        "body-part", "block", f"{facts.body} and no description mentions a chest; if it is one: --assume-chest"
    )


def view(facts: Facts, caller: CallerFacts, stats: PixelStats | None) -> Check:
    """Warn about every view that is not frontal: the model was fine-tuned on frontal films."""
    if facts.view is None:
        return _no_header("view", "make sure that it is a frontal film")
    if facts.view.value in ("AP", "PA"):
        return Check("view", "ok", str(facts.view))
    return Check("view", "warn", f"{facts.view}, {'lateral' if facts.view.value in _LATERAL else 'not AP or PA'}")


def age(facts: Facts, caller: CallerFacts, stats: PixelStats | None) -> Check:
    """Block 18 years or more, and a DICOM film of unknown age: the wording of the prompt depends on the age."""
    if caller.age is not None:
        return _caller_age(facts, caller.age)
    if facts.age is None:
        if facts.kind == "image":
            return _no_header("age", "add --age")
        return Check("age", "block", f"{facts.age_why}; add --age")
    if is_adult(facts.age):
        return Check("age", "block", f"{facts.age_why}: 18 years or more; the model is for children only")
    if facts.age_by_dates is not None and is_adult(facts.age_by_dates):
        return Check("age", "block", f"{facts.age_why}, but its dates result in 18 years or more; add --age")
    return Check("age", "ok", facts.age_why)


def _caller_age(facts: Facts, caller_age: Age) -> Check:
    if is_adult(caller_age):
        return Check("age", "block", "18 years or more, stated by the caller; the model is for children only")
    if facts.age is not None and is_adult(facts.age):
        return Check("age", "block", f"the caller states a child, but {facts.age_why}: 18 years or more")
    return Check("age", "ok", "stated by the caller")


def sex(facts: Facts, caller: CallerFacts, stats: PixelStats | None) -> Check:
    """Never block: a sex other than M or F is omitted from the prompt."""
    if caller.sex is not None:
        return Check("sex", "ok", "stated by the caller")
    if facts.sex is not None:
        return Check("sex", "ok", facts.sex_why)
    if facts.kind == "image":
        return _no_header("sex", "add --sex")
    return Check("sex", "ok", f"{facts.sex_why}; omitted from the prompt")


def human(facts: Facts, caller: CallerFacts, stats: PixelStats | None) -> Check:
    """Block a film with any sign of an animal: headers of animals resemble those of children."""
    if facts.kind == "image":
        return _no_header("human", "make sure that it is the film of a child")
    if facts.not_human is not None:
        return Check("human", "block", f"{facts.not_human}; the model is for human children only")
    return Check("human", "ok", "no species, breed, owner or veterinary word")


def burned_in_text(facts: Facts, caller: CallerFacts, stats: PixelStats | None) -> Check:
    """Block burned-in text, which may name the patient, and secondary captures, which are screenshots."""
    if facts.burned_in is None or facts.sop_class is None:
        return _no_header("burned-in-text", "make sure that no name is in the image")
    if facts.burned_in.value == "YES":
        return Check("burned-in-text", "block", f"{facts.burned_in}; the pixels may name the patient")
    if facts.sop_class.value == _SECONDARY_CAPTURE or facts.sop_class.value.startswith(_SECONDARY_CAPTURE + "."):
        return Check("burned-in-text", "block", f"{facts.sop_class}, a secondary capture; send the original film")
    return Check("burned-in-text", "ok", str(facts.burned_in))


def quality(facts: Facts, caller: CallerFacts, stats: PixelStats | None) -> Check:
    """Block quality-control images, thumbnails and images of too few grey levels, with the steps that left so few.

    Warn about an image that appears rotated or inverted.
    """
    if facts.quality_control is not None and facts.quality_control.value == "YES":
        return Check("quality", "block", f"{facts.quality_control}; it is a test image of the device")
    if stats is None:
        return Check("quality", "warn", "the pixels were not measured")
    if min(stats.width, stats.height) < SMALLEST_SIDE:
        return Check(
            "quality", "block", f"{stats.width} x {stats.height} pixels; each side must be at least {SMALLEST_SIDE}"
        )
    if stats.spread < MIN_SPREAD or stats.levels < MIN_LEVELS:
        after = f" after {stats.steps}" if stats.steps else ""
        return Check(
            "quality",
            "block",
            f"too few grey levels: {stats.levels} with a spread of {stats.spread}{after}; a film has at least "
            f"{MIN_LEVELS} with a spread of {MIN_SPREAD}; export it again",
        )
    if stats.turned:
        return Check("quality", "warn", f"the film appears rotated by {stats.turned} degrees clockwise")
    if stats.dark_middle:
        return Check("quality", "warn", "the middle is darker than the lungs: the film appears inverted")
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
"""The names of the checks in their order, which ``--allow`` accepts."""


def check(facts: Facts, caller: CallerFacts, stats: PixelStats | None = None) -> tuple[Check, ...]:
    """Run every check. Without ``stats``, the checks of the header alone decide, which needs no decoding."""
    results = (run(facts, caller, stats) for run in _CHECKS.values())
    return tuple(
        replace(result, allowed=True) if result.status == "block" and result.name in caller.allow else result
        for result in results
    )


def enforce(checks: Iterable[Check]) -> None:
    """Raise BlockedFilm, which holds all checks, if one blocks and the caller did not allow it."""
    checks = tuple(checks)
    if blocking := [result for result in checks if result.blocks]:
        reasons = "; ".join(f"{result.name}: {result.why}" for result in blocking)
        names = " ".join(f"--allow {result.name}" for result in blocking)
        raise BlockedFilm(f"the film is outside the intended use. {reasons}. To send it anyway: {names}", checks)


def is_adult(age: Age) -> bool:
    """Return whether an age is 18 years or more."""
    return age.value >= _ADULT[age.unit]


def _no_header(name: str, advice: str) -> Check:
    return Check(name, "warn", f"a plain image has no header; {advice}", from_header=False)
