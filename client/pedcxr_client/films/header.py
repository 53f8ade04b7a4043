"""Read the facts from a DICOM header, and suppress what pydicom prints about it.

Nothing that identifies a person is kept: no name, number, date, place or free text. A text is reduced to the keyword
that matched, and a code is kept only if it has the form of a code. Any element may be absent, damaged or malicious.
"""

from __future__ import annotations

import logging
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime
from hashlib import sha256
from typing import Any, Literal, NamedTuple, TypeVar

from pedcxr_client.errors import InputError
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
_UID = re.compile(r"(?=.{1,64}\Z)[0-9]+(\.[0-9]+)+")  # PS3.5 section 9.1
_CODE = re.compile(r"[A-Z0-9_ ]{1,16}")  # PS3.5 section 6.2, VR CS
_AGE = re.compile(r"(\d{3})([DWMY])")  # PS3.5 section 6.2, VR AS
_DATE = re.compile(r"\d{8}")
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
        age: at the time of the film (StudyDate), or None. ``age_why`` states its source, or why it is unknown.
        age_by_dates: StudyDate minus PatientBirthDate, or None.
        sex: ``"M"``, ``"F"`` or None. ``sex_why`` states its source.
        projection: ``"frontal"``, ``"lateral"``, or ``""`` if the header does not state it.
        not_human: the element that indicates an animal, or None.
        study: a digest of StudyInstanceUID (0020,000D), equal for the films of one examination, or ``""``.
    """

    kind: Literal["dicom", "image"] = "image"
    modality: Fact | None = None
    sop_class: Fact | None = None
    intent: Fact | None = None
    body: Fact | None = None
    view: Fact | None = None
    projection: Literal["frontal", "lateral", ""] = ""
    age: Age | None = None
    age_why: str = "no header"
    age_by_dates: Age | None = None
    sex: Sex | None = None
    sex_why: str = "no header"
    not_human: Fact | None = None
    burned_in: Fact | None = None
    quality_control: Fact | None = None
    study: str = ""


PLAIN = Facts()
"""The facts of a film without a header."""


def read(header: Any) -> Facts:
    """Return the facts of a ``pydicom.Dataset``. An absent, empty or malformed element counts as unknown."""
    age, age_why, by_dates = _age(header)
    sex = text(header, "PatientSex").upper()
    return Facts(
        kind="dicom",
        modality=_code(header, "Modality"),
        sop_class=Fact(_uid(header), _tag("SOPClassUID")),
        intent=_code(header, "PresentationIntentType"),
        body=_body(header),
        view=_view(header),
        age=age,
        age_why=age_why,
        age_by_dates=by_dates,
        sex="M" if sex == "M" else "F" if sex == "F" else None,
        sex_why=str(Fact(_code_or_hidden(sex), _tag("PatientSex"))),
        not_human=_not_human(header),
        burned_in=_code(header, "BurnedInAnnotation"),
        quality_control=_code(header, "QualityControlImage"),
        study=study_digest(header),
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


def study_digest(header: Any) -> str:
    """Return 32 hexadecimal digits that identify the examination, or ``""`` without a valid StudyInstanceUID.

    The UID itself identifies the patient to anyone with access to the archive, so it is never kept. The digest is
    the same in every run; what is written to a file must be salted again.
    """
    uid = text(header, "StudyInstanceUID")
    return sha256(b"pedcxr study\0" + uid.encode()).hexdigest()[:32] if _UID.fullmatch(uid) else ""


def first_item(header: Any, keyword: str) -> Any:
    """Return the first item of a sequence, or None if the sequence is empty or cannot be read."""
    try:
        items = header.get(keyword)
        return items[0] if items else None
    except Exception:  # pydicom converts a value on access, which raises many exception types
        return None


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


def _view(header: Any) -> Fact:
    view = _code(header, "ViewPosition")
    meaning = (_meaning(header, "ViewCodeSequence") or "").lower().replace("-", "")
    if view.value or not meaning:
        return view
    for word, code in (("anteroposterior", "AP"), ("posteroanterior", "PA"), ("lateral", "LATERAL")):
        if word in meaning:
            return Fact(code, _tag("ViewCodeSequence"))
    return Fact("(not shown)", _tag("ViewCodeSequence"))


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


def _age(header: Any) -> tuple[Age | None, str, Age | None]:
    age_string, by_dates = text(header, "PatientAge").upper(), _age_by_dates(header)
    fact = str(Fact(_code_or_hidden(age_string), _tag("PatientAge")))
    if (match := _AGE.fullmatch(age_string)) and not (match[2] == "Y" and int(match[1]) == 0):
        return Age.parse(age_string), fact, by_dates
    if by_dates is not None:
        return by_dates, "StudyDate (0008,0020) minus PatientBirthDate (0010,0030)", by_dates
    return None, f"{fact}, and PatientBirthDate (0010,0030) or StudyDate (0008,0020) cannot be used", None


def _age_by_dates(header: Any) -> Age | None:
    study, birth = _date(header, "StudyDate"), _date(header, "PatientBirthDate")
    if study is None or birth is None:
        return None
    try:
        return _age_between(birth, study)
    except InputError:
        return None


def _date(header: Any, keyword: str) -> date | None:
    digits = text(header, keyword).replace("-", "").replace(".", "")
    if not _DATE.fullmatch(digits):
        return None
    try:
        return datetime.strptime(digits, "%Y%m%d").date()
    except ValueError:
        return None


def _age_between(birth: date, study: date) -> Age:
    """Return whole days below 8 weeks, whole months below 2 years, else whole years."""
    days = (study - birth).days
    if days < 56:
        return Age(days, "D")
    months = (study.year - birth.year) * 12 + study.month - birth.month - (study.day < birth.day)
    return Age(months, "M") if months < 24 else Age(months // 12, "Y")
