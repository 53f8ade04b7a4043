"""Read the body part from a DICOM header."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from pedcxr_client.films.header import vocabulary
from pedcxr_client.films.header.elements import Fact, code_or_hidden, first_items, fold, tag_of, text, text_or_meanings


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


def read(header: Any) -> tuple[Fact, Fact | None]:
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
