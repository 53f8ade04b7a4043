"""What is known of a film beside its pixels.

Nothing that identifies a person is kept: no name, number, date, place or free text. Of a text only the word that was
looked for is kept, of a code only what has a code's form.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from pedcxr_client.films.age import Age
from pedcxr_client.types import Sex


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
