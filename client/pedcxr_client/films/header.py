"""Read the facts from a DICOM header, and suppress what pydicom prints about it.

Nothing that identifies a person is kept: no name, number, date, place or free text. A text is reduced to the keyword
that matched, and a code is kept only if it has the form of a code. Any element may be absent, damaged or malicious.
"""

from __future__ import annotations

import logging
import re
import threading
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Literal, NamedTuple, TypeVar

from pedcxr_client.errors import InputError
from pedcxr_client.films import views
from pedcxr_client.films.age import Age
from pedcxr_client.types import Sex

# PS3.6 section 6: the elements that are read, with the tags that messages quote.
_TAGS = {
    "SOPClassUID": "0008,0016",
    "Modality": "0008,0060",
    "PresentationIntentType": "0008,0068",
    "BodyPartExamined": "0018,0015",
    "AnatomicRegionSequence": "0008,2218",
    "StudyDescription": "0008,1030",
    "SeriesDescription": "0008,103E",
    "ProtocolName": "0018,1030",
    "ViewPosition": "0018,5101",
    "ViewCodeSequence": "0054,0220",
    "PatientOrientation": "0020,0020",
    "FieldOfViewHorizontalFlip": "0018,7034",
    "FieldOfViewRotation": "0018,7032",
    "PatientAge": "0010,1010",
    "PatientSex": "0010,0040",
    "BurnedInAnnotation": "0028,0301",
    "QualityControlImage": "0028,0300",
    "InstitutionName": "0008,0080",
    "InstitutionalDepartmentName": "0008,1040",
    "StationName": "0008,1010",
    "Manufacturer": "0008,0070",
    "ManufacturerModelName": "0008,1090",
    "DetectorDescription": "0018,7006",
    "AcquisitionDeviceProcessingDescription": "0018,1400",
    "PerformedProcedureStepDescription": "0040,0254",
    "RequestedProcedureDescription": "0032,1060",
    "PatientSpeciesDescription": "0010,2201",
    "PatientSpeciesCodeSequence": "0010,2202",
    "PatientSexNeutered": "0010,2203",
    "PatientBreedDescription": "0010,2292",
    "PatientBreedCodeSequence": "0010,2293",
    "BreedRegistrationSequence": "0010,2294",
    "ResponsiblePerson": "0010,2297",
    "ResponsiblePersonRole": "0010,2298",
    "ResponsibleOrganization": "0010,2299",
}
_CHEST = re.compile(r"\b(chest|thorax|thorace|torace|torax|lungs?|pulm\w*|poumons?|plaman\w*|lunge\w*)\b", re.I)
_SPINE = re.compile(r"\b(spine|vertebr\w*|column\w*|coloan\w*)\b", re.I)
_ANIMAL = re.compile(r"\b(canine|feline|equine)|(veterin)", re.I)
_ANIMAL_TEXTS = (
    "InstitutionName", "InstitutionalDepartmentName", "StationName", "Manufacturer", "ManufacturerModelName",
    "DetectorDescription", "AcquisitionDeviceProcessingDescription", "StudyDescription", "SeriesDescription",
    "ProtocolName", "PerformedProcedureStepDescription", "RequestedProcedureDescription", "BodyPartExamined",
)  # fmt: skip
_ANIMAL_TAGS = (
    "PatientSexNeutered", "PatientBreedDescription", "PatientBreedCodeSequence", "BreedRegistrationSequence",
)  # fmt: skip
_FAMILY_ROLES = {"PARENT", "GUARDIAN", "SIBLING", "RELATIVE", "SPOUSE", "CHILD", "CUSTODIAN"}  # PS3.3 C.7.1.1.1.3
_CODE = re.compile(r"[A-Z0-9_ ]{1,16}")  # PS3.5 section 6.2, VR CS
_AGE = re.compile(r"(\d{1,3}) *([DWMY])")  # PS3.5 section 6.2, VR AS, is \d{3}[DWMY]; devices also write 5Y and "5 Y"
_DATE = re.compile(r"\d{8}")
_BY_DATES = "StudyDate (0008,0020) minus PatientBirthDate (0010,0030)"
_NO_DATES = {date(1, 1, 1), date(1900, 1, 1)}  # what devices and de-identification write for an unknown date
_MAX_YEARS = 120
_DIRECTION = re.compile(r"[LRAPFH]{1,3}")  # PS3.3 C.7.6.1.1.1
_LOGGERS = ("pydicom", "pylibjpeg", "openjpeg")

_T = TypeVar("_T")


class Fact(NamedTuple):
    """A value and the element that it was read from, such as ``Fact("DX", "Modality (0008,0060)")``."""

    value: str
    tag: str

    def __str__(self) -> str:
        return f"{self.tag} is {self.value or 'empty'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a header states about a film. For a plain image, which has no header, the defaults apply.

    Attributes:
        kind: ``"dicom"`` or ``"image"``.
        modality, sop_class, intent, view, burned_in, quality_control: the values of the header, in upper case. The
            value is ``""`` if the element is absent or empty, and ``"(not shown)"`` if it does not have the form of a
            code.
        body: ``"chest"``, the code of another part, or ``""`` if the header does not state a body part.
        view: also ``"AP"``, ``"PA"`` or another key of `pedcxr_client.films.views.VIEWS` if the value is a synonym.
        projection: ``"frontal"`` or ``"lateral"`` by the view or the orientation; ``""`` if it is neither, unknown or
            contradictory. ``view_conflict`` describes a contradiction, else it is ``""``.
        orientation: PatientOrientation, such as ``L\\F``. ``turned`` states how the image is turned or mirrored, ``""``
            if it is upright or the orientation is unknown. ``detector_turn`` is an element that says how the stored
            pixels were turned against the detector, or None. It does not state how they lie now.
        age: at the time of the film (StudyDate), or None. ``age_why`` states its source, or why it is unknown.
        age_by_dates: StudyDate minus PatientBirthDate, or None.
        age_conflict: describes a contradiction between PatientAge and the dates, else ``""``.
        sex: ``"M"``, ``"F"`` or None. ``sex_why`` states its source.
        not_human: the element that indicates an animal, or None.
    """

    kind: Literal["dicom", "image"] = "image"
    modality: Fact | None = None
    sop_class: Fact | None = None
    intent: Fact | None = None
    body: Fact | None = None
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
    burned_in: Fact | None = None
    quality_control: Fact | None = None


PLAIN = Facts()
"""The facts of a film without a header."""


def read(header: Any) -> Facts:
    """Return the facts of a ``pydicom.Dataset``. An absent, empty or malformed element counts as unknown."""
    age, age_why, by_dates, age_conflict = _age(header)
    orientation, plane, turned = _orientation(header)
    view, projection, view_conflict = _view(header, orientation, plane)
    sex = text(header, "PatientSex").upper()
    return Facts(
        kind="dicom",
        modality=_code(header, "Modality"),
        sop_class=Fact(_uid(header), _tag("SOPClassUID")),
        intent=_code(header, "PresentationIntentType"),
        body=_body(header),
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
        sex_why=str(Fact(_code_or_hidden(sex), _tag("PatientSex"))),
        not_human=_not_human(header),
        burned_in=_code(header, "BurnedInAnnotation"),
        quality_control=_code(header, "QualityControlImage"),
    )


def text(header: Any, keyword: str) -> str:
    """Return an element's text, its items joined by spaces, or ``""`` if the element cannot be read."""
    try:
        value = header.get(keyword)
        if value is None or isinstance(value, bytes):  # pydicom returns bytes for an unknown VR
            return ""
        items = [value] if isinstance(value, str) or not hasattr(value, "__iter__") else [*value]
        return " ".join(str(item) for item in items).strip("\0 ")
    except Exception:  # pydicom converts a value on access, which raises many exception types
        return ""


def first_item(header: Any, keyword: str) -> Any:
    """Return the first item of a sequence, or None if the sequence is empty or cannot be read."""
    try:
        items = header.get(keyword)
        return items[0] if items else None
    except Exception:  # pydicom converts a value on access, which raises many exception types
        return None


def overlay_note(header: Any) -> list[str]:
    """Return a note if the film has an overlay plane (PS3.3 C.9.2), which is stored in an even group 60xx."""
    has_overlay = any(tag >> 24 == 0x60 and not tag >> 16 & 1 for tag in header.keys())  # noqa: SIM118  # tags
    return ["overlays (60xx), which may hold side markers, are not drawn"] if has_overlay else []


@contextmanager
def silence_pydicom() -> Iterator[None]:
    """Suppress all warnings, and the log records of pydicom and its decoders that this thread emits.

    Both quote values of the header, patient names among them. Threads may overlap.
    """
    # A filter on a logger does not apply to its child loggers, so each of them gets one. Adding one twice is a no-op.
    for name in [*logging.root.manager.loggerDict]:
        if name.startswith(_LOGGERS):
            logging.getLogger(name).addFilter(_log_filter)
    _ignore_warnings()
    _silence.depth += 1
    try:
        yield
    finally:
        _silence.depth -= 1
        _restore_warnings()


def attempt(step: Callable[[], _T], message: str) -> _T:
    """Call pydicom. Convert any exception except ``MemoryError`` to an ``InputError`` with this message.

    The original exception may quote the header, so it is not chained.
    """
    try:
        return step()
    except MemoryError:
        raise
    except Exception:
        failed = True
    assert failed
    raise InputError(message)


class _Silence(threading.local):
    depth = 0


class _LogFilter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return _silence.depth == 0


_silence, _log_filter = _Silence(), _LogFilter()
_lock = threading.Lock()
_active = 0
_warning_filters: warnings.catch_warnings[None] | None = None


def _ignore_warnings() -> None:
    # Warning filters are global to the process. The first thread saves them and the last thread restores them, since
    # two overlapping threads would otherwise restore each other's filters.
    global _active, _warning_filters
    with _lock:
        _active += 1
        if _active == 1:
            _warning_filters = warnings.catch_warnings()
            _warning_filters.__enter__()
            warnings.simplefilter("ignore")


def _restore_warnings() -> None:
    global _active, _warning_filters
    with _lock:
        _active -= 1
        if _active == 0 and _warning_filters is not None:
            _warning_filters.__exit__(None, None, None)
            _warning_filters = None


def _tag(keyword: str) -> str:
    return f"{keyword} ({_TAGS[keyword]})"


def _meaning(header: Any, keyword: str) -> str | None:
    """Return the CodeMeaning of a code sequence's first item, or None if the sequence is absent or empty."""
    item = first_item(header, keyword)
    return None if item is None else text(item, "CodeMeaning")


def _code_or_hidden(value: str) -> str:
    return value if not value or _CODE.fullmatch(value) else "(not shown)"


def _code(header: Any, keyword: str) -> Fact:
    return Fact(_code_or_hidden(text(header, keyword).upper()), _tag(keyword))


def _uid(header: Any) -> str:
    uid = text(header, "SOPClassUID")
    return uid if uid.startswith("1.2.840.10008.") and len(uid) <= 64 and uid.replace(".", "").isdigit() else ""


def _mentions_chest(description: str) -> bool:
    description = description.replace("_", " ")
    return bool(_CHEST.search(description)) and not _SPINE.search(description)


def _body(header: Any) -> Fact:
    part = text(header, "BodyPartExamined")
    if part and part.upper() not in ("UNKNOWN", "OTHER", "NONE"):
        return Fact("chest" if _mentions_chest(part) else _code_or_hidden(part.upper()), _tag("BodyPartExamined"))
    if region := _meaning(header, "AnatomicRegionSequence"):
        return Fact("chest" if _mentions_chest(region) else "(another part)", _tag("AnatomicRegionSequence"))
    for keyword in ("StudyDescription", "SeriesDescription", "ProtocolName"):
        if _mentions_chest(text(header, keyword)):
            return Fact("chest", _tag(keyword))
    return Fact("", _tag("BodyPartExamined"))


def _orientation(header: Any) -> tuple[Fact, views.Projection, str]:
    """Return PatientOrientation, its projection, and how the image is turned."""
    directions = text(header, "PatientOrientation").upper().split()
    if len(directions) != 2 or not all(_DIRECTION.fullmatch(direction) for direction in directions):
        return Fact("(not shown)" if directions else "", _tag("PatientOrientation")), "", ""
    fact = Fact("\\".join(directions), _tag("PatientOrientation"))
    # The first letter dominates: LA is left and, to a smaller degree, anterior.
    return (fact, *views.ORIENTATIONS.get("\\".join(one[0] for one in directions), ("", views.NO_FILM_PLANE)))


def _detector_turn(header: Any) -> Fact | None:
    # PS3.3 C.8.11.4: the flip and the rotation were applied to the stored pixels, relative to the detector. They do not
    # change the meaning of PatientOrientation, and a PA film that was flipped is as usual as one that was not.
    if (flip := _code(header, "FieldOfViewHorizontalFlip")).value == "YES":
        return flip
    rotation = Fact(text(header, "FieldOfViewRotation"), _tag("FieldOfViewRotation"))
    return rotation if rotation.value in ("90", "180", "270") else None


def _view(header: Any, orientation: Fact, plane: views.Projection) -> tuple[Fact, views.Projection, str]:
    """Return the view, the projection, and a contradiction between the elements that state one."""
    position, item = text(header, "ViewPosition"), first_item(header, "ViewCodeSequence")
    stated = [Fact(name, _tag("ViewPosition"))] if (name := _view_name(position)) else []
    if item is not None:
        meaning = text(item, "CodeMeaning")
        if name := views.VIEW_CODES.get(text(item, "CodeValue").upper()) or _view_name(meaning):
            stated.append(Fact(name, _tag("ViewCodeSequence")))
        elif meaning and not position:
            return Fact("(not shown)", _tag("ViewCodeSequence")), plane, ""
    if not stated:
        return Fact(_code_or_hidden(position.upper()), _tag("ViewPosition")), plane, ""
    projections = [views.VIEWS[fact.value][0] for fact in stated]
    if plane and "" not in projections:  # PatientOrientation does not describe an oblique view
        stated, projections = [*stated, orientation], [*projections, plane]
    if len({*projections}) > 1:
        return stated[0], "", ", but ".join(str(fact) for fact in stated)
    return stated[0], projections[0], ""


def _view_name(description: str) -> str:
    """Return the key of `views.VIEWS` that a text means, or ``""`` if it means none, or both projections."""
    letters = "".join(
        one for one in unicodedata.normalize("NFKD", description.upper()) if not unicodedata.combining(one)
    )
    words = re.sub(r"[^A-Z]+", " ", letters).strip()
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


def _not_human(header: Any) -> Fact | None:
    species = text(header, "PatientSpeciesDescription") or _meaning(header, "PatientSpeciesCodeSequence")
    if species and species.lower() not in ("homo sapiens", "human"):
        return Fact("filled", _tag("PatientSpeciesDescription"))
    for keyword in _ANIMAL_TAGS:
        if text(header, keyword):
            return Fact("filled", _tag(keyword))
    role = text(header, "ResponsiblePersonRole").upper()
    for keyword in ("ResponsiblePerson", "ResponsibleOrganization"):  # animals have owners, children have parents
        if text(header, keyword) and role not in _FAMILY_ROLES:
            return Fact("filled", _tag(keyword))
    for keyword in _ANIMAL_TEXTS:
        if match := _ANIMAL.search(text(header, keyword)):
            return Fact(match[0].lower(), _tag(keyword))
    return None


def _age(header: Any) -> tuple[Age | None, str, Age | None, str]:
    """Return the age, its source, the age by dates, and a contradiction between PatientAge and the dates."""
    age_string, (days, by_dates) = text(header, "PatientAge").upper(), _by_dates(header)
    fact = str(Fact(_code_or_hidden(age_string), _tag("PatientAge")))
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
