"""Read the facts from a DICOM header.

Nothing that identifies a person is kept: no name, number, date, place or free text. A text is reduced to the keyword
that matched, and a code is kept only if it has the form of a code. Any element may be absent, damaged or malicious.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date, datetime
from hashlib import sha256
from typing import Any, Literal, NamedTuple

from pedcxr_client.films.age import Age
from pedcxr_client.films.header import views, vocabulary
from pedcxr_client.films.header.elements import (
    Fact,
    code_fact,
    code_or_hidden,
    first_item,
    first_items,
    fold,
    tag_of,
    text,
    text_or_meanings,
)
from pedcxr_client.types import Sex

_ANIMAL_TAGS = ("PatientBreedDescription", "PatientBreedCodeSequence", "BreedRegistrationSequence")
_UID = re.compile(r"(?=.{1,64}\Z)[0-9]+(\.[0-9]+)+")  # PS3.5 section 9.1
_AGE = re.compile(r"(\d{1,3}) *([DWMY])")  # PS3.5 section 6.2, VR AS, is \d{3}[DWMY]; devices also write 5Y and "5 Y"
_DATE = re.compile(r"\d{8}")
_BY_DATES = "StudyDate (0008,0020) minus PatientBirthDate (0010,0030)"
_NO_DATES = {date(1, 1, 1), date(1900, 1, 1)}  # what devices and de-identification write for an unknown date
_MAX_YEARS = 120
_DIRECTION = re.compile(r"[LRAPFH]{1,3}")  # PS3.3 C.7.6.1.1.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a header states about a film. For a plain image, which has no header, the defaults apply.

    Attributes:
        kind: ``"dicom"`` or ``"image"``.
        modality, sop_class, intent, view, burned_in, quality_control: the values of the header, in upper case. The
            value is ``""`` if the element is absent or empty, and ``"(not shown)"`` if it does not have the form of a
            code.
        body: ``"chest"``, the code or name of another part, or ``""`` if the header does not state a body part.
        body_too: another part that the header states besides ``body``, or None.
        view: also ``"AP"``, ``"PA"`` or another key of `views.VIEWS` if the value is a synonym.
        projection: ``"frontal"`` or ``"lateral"`` by the view or the orientation; ``""`` if it is neither, unknown or
            contradictory. ``view_conflict`` describes a contradiction, else it is ``""``.
        orientation: PatientOrientation, such as ``L\\F``. ``turned`` states how the image is turned or mirrored, ``""``
            if it is upright or the orientation is unknown. ``detector_turn`` is an element that says how the stored
            pixels were turned against the detector, or None. It does not state how they lie now.
        age: at the time of the film (StudyDate), or None. ``age_why`` states its source, or why it is unknown.
        age_by_dates: StudyDate minus PatientBirthDate, or None.
        age_conflict: describes a contradiction between PatientAge and the dates, else ``""``.
        sex: ``"M"``, ``"F"`` or None. ``sex_why`` states its source.
        not_human: the element that states an animal, or None.
        maybe_not_human: an element that is common for animals and possible for children, or None.
        study: a digest of StudyInstanceUID (0020,000D), equal for the films of one examination, or ``""``.
    """

    kind: Literal["dicom", "image"] = "image"
    modality: Fact | None = None
    sop_class: Fact | None = None
    intent: Fact | None = None
    body: Fact | None = None
    body_too: Fact | None = None
    view: Fact | None = None
    projection: Literal["frontal", "lateral", ""] = ""
    view_conflict: str = ""
    orientation: Fact | None = None
    turned: str = ""
    detector_turn: Fact | None = None
    age: Age | None = None
    age_why: str = "no header"
    age_by_dates: Age | None = None
    age_conflict: str = ""
    sex: Sex | None = None
    sex_why: str = "no header"
    not_human: Fact | None = None
    maybe_not_human: Fact | None = None
    burned_in: Fact | None = None
    quality_control: Fact | None = None
    study: str = ""


PLAIN = Facts()
"""The facts of a film without a header."""


def read_header(header: Any) -> Facts:
    """Return the facts of a ``pydicom.Dataset``. An absent, empty or malformed element counts as unknown."""
    age, age_why, by_dates, age_conflict = _age(header)
    orientation, plane, turned = _orientation(header)
    view, projection, view_conflict = _view(header, orientation, plane)
    sex = text(header, "PatientSex").upper()
    body, body_too = _body(header)
    not_human, maybe_not_human = _not_human(header)
    return Facts(
        kind="dicom",
        modality=code_fact(header, "Modality"),
        sop_class=_sop_class(header),
        intent=code_fact(header, "PresentationIntentType"),
        body=body,
        body_too=body_too,
        view=view,
        projection=projection,
        view_conflict=view_conflict,
        orientation=orientation,
        turned=turned,
        detector_turn=_detector_turn(header),
        age=age,
        age_why=age_why,
        age_by_dates=by_dates,
        age_conflict=age_conflict,
        sex="M" if sex == "M" else "F" if sex == "F" else None,
        sex_why=str(Fact(code_or_hidden(sex), tag_of("PatientSex"))),
        not_human=not_human,
        maybe_not_human=maybe_not_human,
        burned_in=code_fact(header, "BurnedInAnnotation"),
        quality_control=code_fact(header, "QualityControlImage"),
        study=study_digest(header),
    )


def study_digest(header: Any) -> str:
    """Return 32 hexadecimal digits that identify the examination, or ``""`` without a valid StudyInstanceUID.

    The UID itself identifies the patient to anyone with access to the archive, so it is never kept. The digest is
    the same in every run; what is written to a file must be salted again.
    """
    uid = text(header, "StudyInstanceUID")
    return sha256(b"pedcxr study\0" + uid.encode()).hexdigest()[:32] if _UID.fullmatch(uid) else ""


def overlay_note(header: Any) -> list[str]:
    """Return a note if the film has an overlay plane (PS3.3 C.9.2), which is stored in an even group 60xx."""
    has_overlay = any(tag >> 24 == 0x60 and not tag >> 16 & 1 for tag in header.keys())  # noqa: SIM118  # tags
    return ["overlays (60xx), which may hold side markers, are not drawn"] if has_overlay else []


def _sop_class(header: Any) -> Fact:
    """Return the SOP class of the data set, or that of the file meta information if the data set has none."""
    meta = getattr(header, "file_meta", None)
    for source, keyword in ((header, "SOPClassUID"), (meta, "MediaStorageSOPClassUID")):
        if uid := text(source, keyword):
            standard = uid.startswith("1.2.840.10008.") and len(uid) <= 64 and uid.replace(".", "").isdigit()
            return Fact(uid if standard else "(not shown)", tag_of(keyword))
    return Fact("", tag_of("SOPClassUID"))


class _Part(NamedTuple):
    """What an element states: whether it names the chest, and the name of another part or ``""``."""

    chest: bool
    other: str
    tag: str

    @property
    def ambiguous(self) -> bool:
        # A film of the chest cannot show a knee, so a text that names both does not tell which of them the film shows.
        return self.chest and self.other in vocabulary.OTHER_PARTS and self.other not in vocabulary.ADJOINING


def _part(value: str, tag: str) -> _Part:
    """Read a text. A part that the chest does not adjoin comes before other parts."""
    words = vocabulary.NOT_A_PART.sub(" ", vocabulary.THORACIC_SPINE.sub("spine", fold(value)))
    names = tuple(vocabulary.OTHER_PARTS)
    others = [names[(match.lastindex or 1) - 1] for match in vocabulary.OTHER_WORDS.finditer(words)]
    partial = vocabulary.PARTIAL_WORDS.search(words)
    if partial and not others:
        return _Part(True, tuple(vocabulary.PARTIAL)[(partial.lastindex or 1) - 1], tag)
    other = min(others, key=lambda name: name in vocabulary.ADJOINING, default="")
    return _Part(bool(partial or vocabulary.CHEST_WORDS.search(words)), other, tag)


def _region(header: Any) -> _Part:
    """Read AnatomicRegionSequence. A code counts before its meaning, which may be in any language."""
    tag = tag_of("AnatomicRegionSequence")
    codes = {text(item, "CodeValue").upper() for item in first_items(header, "AnatomicRegionSequence")} - {""}
    if wide := [other for code, other in vocabulary.WIDE_CODES.items() if code in codes]:
        return _Part(True, wide[0], tag)
    meanings = text_or_meanings(header, "AnatomicRegionSequence")
    part = _part(meanings, tag)
    if codes.intersection(vocabulary.CHEST_CODES):
        return _Part(True, part.other, tag)
    if part.chest or part.other:
        return part
    return _Part(False, "(another part)" if codes or meanings else "", tag)


def _examined(header: Any) -> _Part:
    """Read BodyPartExamined. A value without a known word is the code of another part."""
    value, tag = text(header, "BodyPartExamined").upper(), tag_of("BodyPartExamined")
    if value in vocabulary.NO_PART:
        return _Part(False, "", tag)
    part = _part(value, tag)
    return part if part.chest else _Part(False, code_or_hidden(value), tag)


def _body(header: Any) -> tuple[Fact, Fact | None]:
    """Return the body part, and another part that the header states besides it or in contradiction to it.

    The series decides over the study, since a study may hold films of several parts. An element of the series that
    names another part and no chest decides over elements that name the chest.
    """
    series = [_examined(header), _region(header)]
    series += [_part(text(header, keyword), tag_of(keyword)) for keyword in vocabulary.SERIES_ELEMENTS[2:]]
    study = [_part(text_or_meanings(header, keyword), tag_of(keyword)) for keyword in vocabulary.STUDY_ELEMENTS]
    chest, other = _first(series)
    if chest is None and other is None:
        chest, other = _first(study)
        if chest is not None and other is not None:
            return Fact("", tag_of("BodyPartExamined")), Fact(f"chest, and {Fact(other.other, other.tag)}", chest.tag)
    if other is not None:
        return Fact(other.other, other.tag), None if chest is None else Fact("chest", chest.tag)
    if chest is not None:
        if chest.other:
            return Fact("chest", chest.tag), Fact(chest.other, chest.tag)
        _, other = _first(study)
        return Fact("chest", chest.tag), None if other is None else Fact(other.other, other.tag)
    unclear = next((part for part in series + study if part.ambiguous), None)
    too = None if unclear is None else Fact(f"chest and {unclear.other}", unclear.tag)
    return Fact("", tag_of("BodyPartExamined")), too


def _first(parts: Iterable[_Part]) -> tuple[_Part | None, _Part | None]:
    """Return the first element that names the chest and the first that names another part only, if any."""
    clear = [part for part in parts if not part.ambiguous]
    chest = next((part for part in clear if part.chest), None)
    return chest, next((part for part in clear if part.other and not part.chest), None)


def _orientation(header: Any) -> tuple[Fact, views.Projection, str]:
    """Return PatientOrientation, its projection, and how the image is turned."""
    directions = text(header, "PatientOrientation").upper().split()
    if len(directions) != 2 or not all(_DIRECTION.fullmatch(direction) for direction in directions):
        return Fact("(not shown)" if directions else "", tag_of("PatientOrientation")), "", ""
    fact = Fact("\\".join(directions), tag_of("PatientOrientation"))
    # The first letter dominates: LA is left and, to a smaller degree, anterior.
    return (fact, *views.ORIENTATIONS.get("\\".join(one[0] for one in directions), ("", views.NO_FILM_PLANE)))


def _detector_turn(header: Any) -> Fact | None:
    # PS3.3 C.8.11.4: the flip and the rotation were applied to the stored pixels, relative to the detector. They do not
    # change the meaning of PatientOrientation, and a PA film that was flipped is as usual as one that was not.
    if (flip := code_fact(header, "FieldOfViewHorizontalFlip")).value == "YES":
        return flip
    rotation = Fact(text(header, "FieldOfViewRotation"), tag_of("FieldOfViewRotation"))
    return rotation if rotation.value in ("90", "180", "270") else None


def _view(header: Any, orientation: Fact, plane: views.Projection) -> tuple[Fact, views.Projection, str]:
    """Return the view, the projection, and a contradiction between the elements that state one."""
    position, item = text(header, "ViewPosition"), first_item(header, "ViewCodeSequence")
    stated = [Fact(name, tag_of("ViewPosition"))] if (name := _view_name(position)) else []
    if item is not None:
        meaning = text(item, "CodeMeaning")
        if name := views.VIEW_CODES.get(text(item, "CodeValue").upper()) or _view_name(meaning):
            stated.append(Fact(name, tag_of("ViewCodeSequence")))
        elif meaning and not position:
            return Fact("(not shown)", tag_of("ViewCodeSequence")), plane, ""
    if not stated:
        return Fact(code_or_hidden(position.upper()), tag_of("ViewPosition")), plane, ""
    projections = [views.VIEWS[fact.value][0] for fact in stated]
    if plane and "" not in projections:  # PatientOrientation does not describe an oblique view
        stated, projections = [*stated, orientation], [*projections, plane]
    if len({*projections}) > 1:
        return stated[0], "", ", but ".join(str(fact) for fact in stated)
    return stated[0], projections[0], ""


def _view_name(description: str) -> str:
    """Return the key of `views.VIEWS` that a text means, or ``""`` if it means none, or both projections."""
    words = re.sub(r"[^A-Z]+", " ", fold(description).upper()).strip()
    words = re.sub(r"\b(A P|P A)\b", lambda match: match[0].replace(" ", ""), words)
    words = re.sub(r"\b((?:ANT|POST)ER(?:O|IOR)) (?=(?:ANT|POST)ER)", r"\1", words)
    if words == "L":
        return "LATERAL"
    names = [name for name, (_, patterns) in views.VIEWS.items() if _has_word(words.split(), patterns)]
    projections = {views.VIEWS[name][0] for name in names}
    return names[0] if names and (names[0] in views.DECISIVE or len(projections) == 1) else ""


def _has_word(words: list[str], patterns: tuple[str, ...]) -> bool:
    return any(
        word.startswith(pattern[:-1]) if pattern.endswith("*") else word == pattern
        for word in words
        for pattern in patterns
    )


def _not_human(header: Any) -> tuple[Fact | None, Fact | None]:
    """Return the element that states an animal, and an element that is possible for a child too."""
    signs = [*_owner(header), *_neutered(header)]
    sure = next((sign for sign, is_sure in signs if is_sure), None) or _species(header) or _animal_word(header)
    possible = [sign for sign, _ in signs]
    if sure is None and len(possible) > 1:  # each alone is possible for a child, but not both
        return Fact(f"filled, as is {possible[1].tag}", possible[0].tag), None
    return sure, possible[0] if possible and sure is None else None


def _owner(header: Any) -> Iterator[tuple[Fact, bool]]:
    # PS3.3 C.7.1.1.1.3: animals have owners, and children have parents.
    role = text(header, "ResponsiblePersonRole").upper()
    for keyword in ("ResponsiblePerson", "ResponsibleOrganization"):
        if text(header, keyword) and role not in vocabulary.FAMILY_ROLES:
            yield Fact("filled", tag_of(keyword)), role in vocabulary.ANIMAL_ROLES
            return


def _neutered(header: Any) -> Iterator[tuple[Fact, bool]]:
    # PS3.3 C.7.1.1 requires the element for animals. Some software writes UNALTERED for every patient.
    if value := text(header, "PatientSexNeutered").upper():
        yield Fact("filled", tag_of("PatientSexNeutered")), value != "UNALTERED"


def _species(header: Any) -> Fact | None:
    if (species := fold(text(header, "PatientSpeciesDescription"))) and species not in vocabulary.HUMAN:
        return Fact("filled", tag_of("PatientSpeciesDescription"))
    for item in first_items(header, "PatientSpeciesCodeSequence"):
        code, meaning = text(item, "CodeValue").upper(), fold(text(item, "CodeMeaning"))
        if code not in vocabulary.HUMAN_CODES and meaning not in vocabulary.HUMAN and (code or meaning):
            return Fact("filled", tag_of("PatientSpeciesCodeSequence"))
    return next((Fact("filled", tag_of(keyword)) for keyword in _ANIMAL_TAGS if text(header, keyword)), None)


def _animal_word(header: Any) -> Fact | None:
    examination = vocabulary.EXAMINATION_ELEMENTS
    for keyword in (*vocabulary.SITE_ELEMENTS, *examination):
        words = vocabulary.NOT_AN_ANIMAL.sub(" ", fold(text_or_meanings(header, keyword)))
        match = vocabulary.VETERINARY_WORDS.search(words)
        if match is None and keyword in examination:
            match = vocabulary.ANIMAL_WORDS.search(words)
        if match is not None:
            return Fact(match[0], tag_of(keyword))
    return None


def _age(header: Any) -> tuple[Age | None, str, Age | None, str]:
    """Return the age, its source, the age by dates, and a contradiction between PatientAge and the dates."""
    age_string, (days, by_dates) = text(header, "PatientAge").upper(), _by_dates(header)
    fact = str(Fact(code_or_hidden(age_string), tag_of("PatientAge")))
    match = _AGE.fullmatch(age_string)
    if match and (match[2] == "D" or int(match[1])):  # 000W, 000M and 000Y: below one unit, the dates are exact
        age = Age.parse(age_string)
        why = fact if len(age_string) == 4 and " " not in age_string else f"{fact}, read as {age}"
        if days is None or not age.differs_from(days):
            return age, why, by_dates, ""
        dates = "a birth after the study" if by_dates is None else str(by_dates)
        return age, why, by_dates, f"{fact}, but {_BY_DATES} is {dates}"
    if by_dates is not None:
        return by_dates, f"{_BY_DATES} is {by_dates}", by_dates, ""
    return None, f"{fact}, and PatientBirthDate (0010,0030) or StudyDate (0008,0020) cannot be used", None, ""


def _by_dates(header: Any) -> tuple[int | None, Age | None]:
    """Return StudyDate minus PatientBirthDate in days, and as an Age unless it is negative.

    Return None twice if a date is absent, malformed or a placeholder.
    """
    study, birth = _date(header, "StudyDate"), _date(header, "PatientBirthDate")
    if study is None or birth is None or study.year - birth.year > _MAX_YEARS:
        return None, None
    days = (study - birth).days
    return days, None if days < 0 else Age.between(birth, study)


def _date(header: Any, keyword: str) -> date | None:
    digits = text(header, keyword).replace("-", "").replace(".", "")
    if not _DATE.fullmatch(digits):
        return None
    try:
        day = datetime.strptime(digits, "%Y%m%d").date()
    except ValueError:
        return None
    return None if day in _NO_DATES else day
