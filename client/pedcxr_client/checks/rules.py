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
from pedcxr_client.films.header import views
from pedcxr_client.films.header.facts import Facts
from pedcxr_client.types import Check, Sex, Views, __version__

VERSION = f"{__version__}+1"
"""The version of the rules. `pedcxr batch` looks again at a film that another version refused.

Each release has another one. Raise the last number when a check or the reading of films decides differently.
"""

SMALLEST_SIDE = 256
"""Minimum side of a film in pixels; a smaller image is a thumbnail."""

_CR = "1.2.840.10008.5.1.4.1.1.1"  # PS3.4 annex B.5
_DX = "1.2.840.10008.5.1.4.1.1.1.1"
_DX_FOR_PROCESSING = "1.2.840.10008.5.1.4.1.1.1.1.1"
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_LIKE_CR = ("", "DR", "RG", "XR")
_ADULT = {"D": 6575, "W": 940, "M": 216, "Y": 18}


@dataclass(frozen=True, slots=True, kw_only=True)
class CallerFacts:
    """The caller's statements about a film; see `FilmRequest`.

    ``age`` and ``sex`` take precedence over the header and must agree with it. ``default_age`` and ``default_sex`` are
    used only if the header states none.
    """

    age: Age | None = None
    sex: Sex | None = None
    default_age: Age | None = None
    default_sex: Sex | None = None
    views: Views = "any"
    assume_chest: bool = False
    allow: Iterable[str] = ()

    def __post_init__(self) -> None:
        if not (isinstance(self.age, Age | None) and isinstance(self.default_age, Age | None)):
            raise InputError("age: must be an Age, or a number and a unit such as '5y'")
        if not {self.sex, self.default_sex} <= {"M", "F", None}:
            raise InputError("sex: must be 'M' or 'F'; omit it if it is unknown")
        if self.views not in ("any", "frontal"):
            raise ConfigurationError("views: must be 'any' or 'frontal'")
        names = (self.allow,) if isinstance(self.allow, str) else tuple(self.allow)
        if unknown := [name for name in names if name not in NAMES]:
            raise ConfigurationError(f"allow: {unknown[0]!r} is not a check; the checks are {', '.join(NAMES)}")
        object.__setattr__(self, "allow", names)

    def age_of(self, facts: Facts) -> Age | None:
        """Return the age for the prompt, or None if it is contradictory and the caller did not allow that."""
        if self.age_conflict(facts) and "age" not in self.allow:
            return None
        return self.age or facts.age or self.default_age

    def sex_of(self, facts: Facts) -> Sex | None:
        """Return the sex for the prompt, or None if it is contradictory and the caller did not allow that."""
        if self.sex_conflict(facts) and "sex" not in self.allow:
            return None
        return self.sex or facts.sex or self.default_sex

    def age_conflict(self, facts: Facts) -> str:
        """Describe a contradiction between PatientAge, the dates and the caller's age, or return ``""``."""
        if self.age is not None and not facts.age_conflict:
            if facts.age is not None and self.age.contradicts(facts.age):
                return f"the caller states {self.age}, but {facts.age_why}"
            if facts.age_by_dates is not None and self.age.contradicts(facts.age_by_dates):
                return f"the caller states {self.age}, but the header's dates result in {facts.age_by_dates}"
        return facts.age_conflict

    def sex_conflict(self, facts: Facts) -> str:
        """Describe a contradiction between PatientSex and the caller's sex, or return ``""``."""
        if self.sex is None or facts.sex in (self.sex, None):
            return ""
        return f"the caller states {self.sex}, but {facts.sex_why}"


def modality(facts: Facts, caller: CallerFacts, stats: PixelStats | None) -> Check:
    """Block every modality except CR and DX, and every object of another SOP class that states CR or DX.

    An absent Modality, or one of the words that some devices write for CR and DX, warns if the SOP class is CR or DX.
    """
    if facts.modality is None or facts.sop_class is None:
        return _no_header("modality", "make sure that it is a radiograph")
    if facts.modality.value not in ("CR", "DX", *_LIKE_CR):
        return Check("modality", "block", f"{facts.modality}; only CR and DX are chest films")
    if facts.sop_class.value not in (_CR, _DX, _DX_FOR_PROCESSING):
        return Check("modality", "block", f"{facts.modality}, and {facts.sop_class}, which is not a CR or DX image")
    if facts.modality.value in _LIKE_CR:
        return Check("modality", "warn", f"{facts.modality}, but {facts.sop_class}, a CR or DX image")
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
    """Block a film unless the header states a chest, or states no body part and the caller assumes a chest.

    A chest together with another part warns, such as the chest and abdomen of a newborn.
    """
    body, too = facts.body, facts.body_too
    if body is not None and body.value == "chest":
        if too is None:
            return Check("body-part", "ok", str(body))
        both = f"{body} and {too.value}" if too.tag == body.tag else f"{body}, and {too}"
        return Check("body-part", "warn", f"{both}; make sure that the film shows the chest")
    if body is not None and body.value:
        return Check("body-part", "block", f"{body}, not a chest" + (f", although {too}" if too is not None else ""))
    if caller.assume_chest:
        return Check("body-part", "ok", "assumed to be a chest by the caller (--assume-chest)")
    if body is None:
        return _no_header("body-part", "make sure that it shows a chest")
    if too is not None:
        return Check("body-part", "block", f"{too}; if the film shows the chest: --assume-chest")
    return Check("body-part", "block", f"{body} and no description names a body part; if it is a chest: --assume-chest")


def view(facts: Facts, caller: CallerFacts, stats: PixelStats | None) -> Check:
    """Warn about a view that is not frontal, and block it if the caller requires frontal views.

    The model was fine-tuned on frontal films. Without a header nothing is known, so ``views="frontal"`` only warns: to
    block would refuse every plain image.
    """
    if facts.view is None:
        return _no_header("view", "make sure that it is a frontal film")
    if facts.projection == "frontal":
        if facts.view.value in views.VIEWS:
            return Check("view", "ok", str(facts.view))
        return Check("view", "warn", f"{facts.view}, not AP or PA; {facts.orientation}, frontal")
    reason = f"{facts.view}, not AP or PA"
    if facts.view_conflict:
        reason = f"{facts.view_conflict}, a contradiction"
    elif facts.projection == "lateral":
        stated = facts.view.value in views.VIEWS
        reason = f"{facts.view}, lateral" if stated else f"{facts.view}; {facts.orientation}, lateral"
    if caller.views == "frontal":
        return Check("view", "block", f"{reason}; only frontal views were requested")
    return Check("view", "warn", reason)


def orientation(facts: Facts, caller: CallerFacts, stats: PixelStats | None) -> Check:
    """Block a film that is mirrored, upside down or turned: its report would name the wrong side.

    The pixels are never turned here. An orientation that the header does not state is a warning.
    """
    if facts.orientation is None:
        return _no_header("orientation", "make sure that it is upright and not mirrored")
    if facts.turned:
        return Check(
            "orientation", "block", f"{facts.orientation}, {facts.turned}; export the film upright and not mirrored"
        )
    if facts.orientation.value in ("", "(not shown)"):
        turn = f", and {facts.detector_turn}" if facts.detector_turn is not None else ""
        return Check("orientation", "warn", f"{facts.orientation}{turn}; compare the side marker with the image")
    return Check("orientation", "ok", str(facts.orientation))


def age(facts: Facts, caller: CallerFacts, stats: PixelStats | None) -> Check:
    """Block 18 years or more, contradictory ages, and a DICOM film of unknown age: the prompt depends on the age."""
    stated = caller.age or (caller.default_age if facts.age is None else None)
    if stated is not None and is_adult(stated):
        return Check("age", "block", "18 years or more, stated by the caller; the model is for children only")
    if facts.age is not None and is_adult(facts.age):
        child = "" if stated is None else "the caller states a child, but "
        return Check("age", "block", f"{child}{facts.age_why}: 18 years or more; the model is for children only")
    if conflict := caller.age_conflict(facts):
        return Check("age", "block", f"{conflict}; make sure that it is the film of this child")
    if facts.age_by_dates is not None and is_adult(facts.age_by_dates):
        return Check("age", "block", f"{facts.age_why}, but its dates result in 18 years or more")
    if stated is not None:
        return Check("age", "ok", "stated by the caller")
    if facts.age is None:
        if facts.kind == "image":
            return _no_header("age", "add --age")
        return Check("age", "block", f"{facts.age_why}; add --age")
    return Check("age", "ok", facts.age_why)


def sex(facts: Facts, caller: CallerFacts, stats: PixelStats | None) -> Check:
    """Block a sex that contradicts the header. A sex other than M or F is omitted from the prompt."""
    if conflict := caller.sex_conflict(facts):
        return Check("sex", "block", f"{conflict}; make sure that it is the film of this child")
    if caller.sex is not None or (facts.sex is None and caller.default_sex is not None):
        return Check("sex", "ok", "stated by the caller")
    if facts.sex is not None:
        return Check("sex", "ok", facts.sex_why)
    if facts.kind == "image":
        return _no_header("sex", "add --sex")
    return Check("sex", "ok", f"{facts.sex_why}; omitted from the prompt")


def human(facts: Facts, caller: CallerFacts, stats: PixelStats | None) -> Check:
    """Block a film whose header states an animal: headers of animals resemble those of children.

    A responsible person without a role warns, since it may be a parent. So does PatientSexNeutered UNALTERED.
    """
    if facts.kind == "image":
        return _no_header("human", "make sure that it is the film of a child")
    if facts.not_human is not None:
        return Check("human", "block", f"{facts.not_human}; the model is for human children only")
    if facts.maybe_not_human is not None:
        return Check(
            "human", "warn", f"{facts.maybe_not_human}, as for animals; make sure that it is the film of a child"
        )
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
    "orientation": orientation,
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
    if blocking := [result for result in checks if result.status == "block" and not result.allowed]:
        reasons = "; ".join(f"{result.name}: {result.why}" for result in blocking)
        names = " ".join(f"--allow {result.name}" for result in blocking)
        raise BlockedFilm(f"the film is outside the intended use. {reasons}. To send it anyway: {names}", checks)


def is_adult(age: Age) -> bool:
    """Return whether an age is 18 years or more."""
    return age.value >= _ADULT[age.unit]


def _no_header(name: str, advice: str) -> Check:
    return Check(name, "warn", f"a plain image has no header; {advice}", from_header=False)
