"""``pedcxr inspect``: what a film is, what the gate says, what would be sent. Nothing is."""

from __future__ import annotations

import os
from base64 import b64decode
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pedcxr_client.checks import rules
from pedcxr_client.errors import ConfigurationError, InputError
from pedcxr_client.films import film as image
from pedcxr_client.films.facts import Fact, Facts
from pedcxr_client.films.film import EncodedImage
from pedcxr_client.request import payload
from pedcxr_client.request.film_request import FilmRequest
from pedcxr_client.request.prompts import Prompt
from pedcxr_client.types import Check


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Inspection:
    """All that is known of one film without asking a server.

    Attributes:
        file: the path as the caller gave it.
        facts: None where the file could not be read at all.
        checks: () likewise.
        image: what would be sent, None where the pixels could not be decoded.
        prompt: the words that would be sent.
        error: what stood in the way of reading or decoding, else None.
    """

    file: str
    facts: Facts | None = None
    checks: tuple[Check, ...] = ()
    image: EncodedImage | None = None
    prompt: Prompt | None = None
    error: str | None = None

    @property
    def blocked(self) -> bool:
        """Whether ``pedcxr report`` would refuse it."""
        return self.error is not None or any(check.blocks for check in self.checks)

    @property
    def verdict(self) -> str:
        """``"would be sent"``, or what stands in the way."""
        names = [check.name for check in self.checks if check.blocks]
        if names:
            return f"blocked by {', '.join(names)}"
        return "cannot be sent" if self.error is not None else "would be sent"

    def as_dict(self) -> dict[str, object]:
        """Everything, ready for ``json.dumps``; nothing that identifies a person is in it, the file's name aside."""
        return {
            "file": self.file,
            "verdict": self.verdict,
            "blocked": self.blocked,
            "error": self.error,
            "facts": None if self.facts is None else _plain(self.facts),
            "checks": [asdict(check) for check in self.checks],
            "image": None if self.image is None else _described(self.image),
            "prompt": None if self.prompt is None else _worded(self.prompt),
        }


def inspect(file: str, request: FilmRequest) -> Inspection:
    """PixelStats at one film; it is decoded even where its header blocks, so that all reasons come at once."""
    asked = request.caller_facts()
    try:
        film = image.read(file)
    except InputError as error:
        return Inspection(file=file, error=str(error))
    words, unworded = _words(film.facts, request)
    try:
        radiograph = film.develop(request.preparation)
    except InputError as error:
        if film.facts.kind == "image":  # what cannot be decoded and has no header is nothing we know of
            return Inspection(file=file, error=str(error))
        checks = rules.check(film.facts, asked)
        return Inspection(file=file, facts=film.facts, checks=checks, prompt=words, error=str(error))
    return Inspection(
        file=file,
        facts=film.facts,
        checks=rules.check(film.facts, asked, radiograph.stats),
        image=image.encode(radiograph),
        prompt=words,
        error=unworded,
    )


def sheet(one: Inspection) -> str:
    """One film in full, for a terminal."""
    lines = [one.file]
    if one.facts is not None:
        lines.append(f"  facts    {_in_words(one.facts)}")
    for number, check in enumerate(one.checks):
        status = "allow" if check.allowed else check.status
        lines.append(f"  {'checks' if number == 0 else '':8} {status:5}  {check.name:14}  {check.why}")
    if one.image is not None:
        about = _described(one.image)
        lines.append(f"  image    {about['mime']}, {about['width']} x {about['height']}, {about['bytes']} bytes")
        lines += [f"           {note}" for note in one.image.how]
    if one.prompt is not None:
        lines.append(f"  prompt   {one.prompt.recorded}")
    if one.error is not None:
        lines.append(f"  error    {one.error}")
    return "\n".join([*lines, f"  verdict  {one.verdict}"])


def table(films: Sequence[Inspection]) -> str:
    """HookChain films, one a line."""
    rows = [("FILE", "VERDICT", "KIND", "AGE", "SEX", "VIEW", "SIZE", "WHY"), *(_row(one) for one in films)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def png(encoded: EncodedImage) -> bytes:
    """The image file as it would be sent."""
    return b64decode(encoded.base64)


def save(one: Inspection, path: str) -> None:
    """Write the image file as it would be sent.

    Raises:
        ConfigurationError: if it cannot be written there, or would replace the film itself.
        InputError: if the film could not be decoded.
    """
    if one.image is None:
        raise InputError(f"--preview: there is nothing to show of it; {one.error}")
    try:
        if os.path.exists(path) and os.path.samefile(path, one.file):
            raise ConfigurationError("--preview: is the film itself; give another name")
        Path(path).write_bytes(png(one.image))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "is no path"
        raise ConfigurationError(f"--preview: cannot be written: {reason}") from error


def _words(facts: Facts, request: FilmRequest) -> tuple[Prompt | None, str | None]:
    try:
        return payload.write_prompt(facts, request), None
    except InputError as error:
        return None, str(error)


def _row(one: Inspection) -> tuple[str, ...]:
    if one.facts is None:
        return one.file, one.verdict, "-", "-", "-", "-", "-", _why(one)
    facts = one.facts
    size = "-" if one.image is None else f"{one.image.width}x{one.image.height}"
    return (
        one.file, one.verdict, _value(facts.modality) if facts.modality else "image",
        _age(facts), facts.sex or "-", _value(facts.view), size, _why(one),
    )  # fmt: skip


def _why(one: Inspection) -> str:
    """The first reason that stands in the way, "" if none does."""
    reasons = [check.why for check in one.checks if check.blocks]
    if one.error is not None:
        reasons.append(one.error.removeprefix(f"{one.file}: "))
    return reasons[0] if reasons else ""


def _value(fact: Fact | None) -> str:
    return (fact.value if fact is not None else "") or "-"


def _age(facts: Facts) -> str:
    return "-" if facts.age is None else str(facts.age)


def _in_words(facts: Facts) -> str:
    if facts.kind == "image":
        return "a plain image, without a header"
    known = [_value(facts.modality), _value(facts.body), _value(facts.view), _age(facts), facts.sex or "-"]
    return "DICOM: " + ", ".join(
        f"{name} {value}" for name, value in zip(("modality", "body part", "view", "age", "sex"), known, strict=True)
    )


def _plain(facts: Facts) -> dict[str, object]:
    names = ("modality", "sop_class", "intent", "body", "view", "burned_in", "quality_control", "not_human")
    coded = {name: fact.value if (fact := getattr(facts, name)) is not None else None for name in names}
    return {"kind": facts.kind, **coded, "age": None if facts.age is None else _age(facts), "sex": facts.sex}


def _worded(prompt: Prompt) -> dict[str, object]:
    profile = prompt.profile
    return {"profile": profile.name, "version": profile.version, "sha256": profile.sha256, "text": prompt.recorded}


def _described(encoded: EncodedImage) -> dict[str, object]:
    return {
        "mime": encoded.mime,
        "width": encoded.width,
        "height": encoded.height,
        "bytes": len(png(encoded)),
        "sha256": encoded.sha256,
        "how": list(encoded.how),
    }
