"""From a DICOM header to the facts. Pure: reads elements one by one, trusts none, and keeps what facts.py may hold."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Literal, NamedTuple

from pedcxr_client.errors import InputError
from pedcxr_client.films.age import Age
from pedcxr_client.types import Sex

# PS3.6 section 6: the elements read here, with the numbers that people look up.
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
_KIN = {"PARENT", "GUARDIAN", "SIBLING", "RELATIVE", "SPOUSE", "CHILD", "CUSTODIAN"}  # PS3.3 C.7.1.1.1.3
_CODE = re.compile(r"[A-Z0-9_ ]{1,16}")  # PS3.5 section 6.2, VR CS
_AGE = re.compile(r"(\d{3})([DWMY])")  # PS3.5 section 6.2, VR AS
_DATE = re.compile(r"\d{8}")


class Fact(NamedTuple):
    """A value and the element it was read from, such as ``Fact("DX", "Modality (0008,0060)")``."""

    value: str
    tag: str

    def __str__(self) -> str:
        return f"{self.tag} is {self.value or 'empty'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known of a film beside its pixels. A plain image has no header: everything is None.

    Attributes:
        kind: ``"dicom"`` or ``"image"``.
        modality, sop_class, intent, view, burned_in, quality_control: as the header has them, upper case; the value is
            ``""`` where the element is absent or empty, and ``"(not shown)"`` where it has no code's form.
        body: ``"chest"``, the code of another part, or ``""`` where nothing tells.
        age: at the time of the film (StudyDate), or None; ``age_why`` says where it comes from or why it is not known.
        age_by_dates: StudyDate less PatientBirthDate, or None.
        sex: ``"M"``, ``"F"`` or None; ``sex_why`` likewise.
        not_human: what says that this is no human being, None if nothing does.
    """

    kind: Literal["dicom", "image"] = "image"
    modality: Fact | None = None
    sop_class: Fact | None = None
    intent: Fact | None = None
    body: Fact | None = None
    view: Fact | None = None
    age: Age | None = None
    age_why: str = "no header"
    age_by_dates: Age | None = None
    sex: Sex | None = None
    sex_why: str = "no header"
    not_human: Fact | None = None
    burned_in: Fact | None = None
    quality_control: Fact | None = None


PLAIN = Facts()
"""The facts of a film without a header."""


def read(header: Any) -> Facts:
    """Read the facts from a ``pydicom.Dataset``; elements that are absent, empty or malformed count as unknown."""
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
        sex_why=str(Fact(_shown(sex), _tag("PatientSex"))),
        not_human=_not_human(header),
        burned_in=_code(header, "BurnedInAnnotation"),
        quality_control=_code(header, "QualityControlImage"),
    )


def _tag(keyword: str) -> str:
    return f"{keyword} ({_TAGS[keyword]})"


def text(header: Any, keyword: str) -> str:
    """An element's text, its items joined by spaces, "" where there is none that can be read."""
    try:
        value = header.get(keyword)
        if value is None or isinstance(value, bytes):  # bytes: of an unknown VR
            return ""
        items = [value] if isinstance(value, str) or not hasattr(value, "__iter__") else [*value]
        return " ".join(str(item) for item in items).strip("\0 ")
    except Exception:  # pydicom converts values when they are asked for, and may fail in many ways
        return ""


def _meaning(header: Any, keyword: str) -> str | None:
    """The words of a code sequence's first item; None where the sequence is absent or empty."""
    item = first_item(header, keyword)
    return None if item is None else text(item, "CodeMeaning")


def first_item(header: Any, keyword: str) -> Any:
    """The first item of a sequence, None where there is none that can be read."""
    try:
        items = header.get(keyword)
        return items[0] if items else None
    except Exception:  # as in text
        return None


def _shown(value: str) -> str:
    return value if not value or _CODE.fullmatch(value) else "(not shown)"


def _code(header: Any, keyword: str) -> Fact:
    return Fact(_shown(text(header, keyword).upper()), _tag(keyword))


def _uid(header: Any) -> str:
    uid = text(header, "SOPClassUID")
    return uid if uid.startswith("1.2.840.10008.") and len(uid) <= 64 and uid.replace(".", "").isdigit() else ""


def _chest_word(words: str) -> str | None:
    words = words.replace("_", " ")
    found = _CHEST.search(words)
    return found[1].lower() if found and not _SPINE.search(words) else None


def _body(header: Any) -> Fact:
    part = text(header, "BodyPartExamined")
    if part and part.upper() not in ("UNKNOWN", "OTHER", "NONE"):
        return Fact("chest" if _chest_word(part) else _shown(part.upper()), _tag("BodyPartExamined"))
    if region := _meaning(header, "AnatomicRegionSequence"):
        return Fact("chest" if _chest_word(region) else "(another part)", _tag("AnatomicRegionSequence"))
    for keyword in ("StudyDescription", "SeriesDescription", "ProtocolName"):
        if _chest_word(text(header, keyword)):
            return Fact("chest", _tag(keyword))
    return Fact("", _tag("BodyPartExamined"))


def _view(header: Any) -> Fact:
    view = _code(header, "ViewPosition")
    words = (_meaning(header, "ViewCodeSequence") or "").lower().replace("-", "")
    if view.value or not words:
        return view
    for word, code in (("anteroposterior", "AP"), ("posteroanterior", "PA"), ("lateral", "LATERAL")):
        if word in words:
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
        if text(header, keyword) and role not in _KIN:
            return Fact("filled", _tag(keyword))
    for keyword in _ANIMAL_TEXTS:
        if found := _ANIMAL.search(text(header, keyword)):
            return Fact(found[0].lower(), _tag(keyword))
    return None


def _age(header: Any) -> tuple[Age | None, str, Age | None]:
    given, by_dates = text(header, "PatientAge").upper(), _age_by_dates(header)
    fact = str(Fact(_shown(given), _tag("PatientAge")))
    if (match := _AGE.fullmatch(given)) and not (match[2] == "Y" and int(match[1]) == 0):
        return Age.parse(given), fact, by_dates
    if by_dates is not None:
        return by_dates, "StudyDate (0008,0020) less PatientBirthDate (0010,0030)", by_dates
    return None, f"{fact}, PatientBirthDate (0010,0030) or StudyDate (0008,0020) is of no use", None


def _age_by_dates(header: Any) -> Age | None:
    study, birth = _date(header, "StudyDate"), _date(header, "PatientBirthDate")
    if study is None or birth is None:
        return None
    try:
        return between(birth, study)
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


def between(birth: date, study: date) -> Age:
    """The age at the time of a study: whole days below 8 weeks, then whole months, from 2 years on whole years.

    Raises:
        InputError: if the study comes before the birth.
    """
    days = (study - birth).days
    if days < 56:
        return Age(days, "D")
    months = (study.year - birth.year) * 12 + study.month - birth.month - (study.day < birth.day)
    return Age(months, "M") if months < 24 else Age(months // 12, "Y")
