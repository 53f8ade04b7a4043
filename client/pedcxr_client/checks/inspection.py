"""Inspect a film without sending it: its facts, the checks, and what would be sent. No connection is opened."""

from __future__ import annotations

import io
import os
from base64 import b64decode
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from pedcxr_client.checks import rules
from pedcxr_client.errors import ConfigurationError, InputError
from pedcxr_client.films.film import EncodedImage, FilmSource, encode, read
from pedcxr_client.films.header.elements import Fact
from pedcxr_client.films.header.facts import Facts
from pedcxr_client.request import payload
from pedcxr_client.request.film_request import FilmOptions, FilmRequest
from pedcxr_client.request.prompts import Prompt
from pedcxr_client.types import Check

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Inspection:
    """What is known about one film without contacting a server: what would be sent, or the error that prevents it.

    Attributes:
        file: the path of the film, or None if it was not given as a path.
        facts: the facts of the header, or None if the film cannot be read.
        checks: the result of each check.
        image: the image file that would be sent, also if a check blocks it. None if the film cannot be decoded.
        prompt: the prompt that would be sent, or None if it cannot be written.
        error: why the film cannot be read, decoded or described in a prompt, or None.
    """

    file: str | None = None
    facts: Facts | None = None
    checks: tuple[Check, ...] = ()
    image: EncodedImage | None = None
    prompt: Prompt | None = None
    error: str | None = None

    @property
    def pixels(self) -> Image | None:
        """The pixels of ``image``, decoded as a server decodes them, or None."""
        from PIL import Image

        return None if self.image is None else Image.open(io.BytesIO(image_file(self.image)))

    @property
    def blocked(self) -> bool:
        """Whether `Client.report` would refuse the film."""
        return self.error is not None or any(check.blocks for check in self.checks)

    @property
    def verdict(self) -> str:
        """``"would be sent"``, ``"cannot be sent"``, or the names of the checks that block."""
        names = [check.name for check in self.checks if check.blocks]
        if names:
            return f"blocked by {', '.join(names)}"
        return "cannot be sent" if self.error is not None else "would be sent"

    def as_dict(self) -> dict[str, object]:
        """Return all fields for ``json.dumps``. Only the file name may identify a person."""
        return {
            "file": self.file,
            "verdict": self.verdict,
            "blocked": self.blocked,
            "error": self.error,
            "facts": None if self.facts is None else _facts_dict(self.facts),
            "checks": [asdict(check) for check in self.checks],
            "image": None if self.image is None else _image_dict(self.image),
            "prompt": None if self.prompt is None else _prompt_dict(self.prompt),
        }


def inspect(film: FilmSource, **options: Unpack[FilmOptions]) -> Inspection:
    """Return what `Client.report` would send for a film, without a server. Nothing is sent.

    The film is decoded even if its header blocks it, so that all reasons are known at once. The error of a film is in
    `Inspection.error` and is not raised. ``resize="model"`` uses the size of `Preparation`, because the server, which
    may state another, is not asked.

    Args:
        film: as for `Client.report`.
        **options: as for `Client.report`.

    Raises:
        InputError: if ``age`` or ``sex`` is invalid.
        ConfigurationError: if another option is invalid.
    """
    return inspect_request(FilmRequest(film, **options))


def inspect_request(request: FilmRequest) -> Inspection:
    """Return what would be sent for a request; see `inspect`."""
    film, caller = request.film, request.caller_facts()
    file = os.fsdecode(film) if isinstance(film, str | os.PathLike) else None
    if isinstance(film, EncodedImage):
        prompt, error = _prompt(film.facts, request)
        checks = rules.check(film.facts, caller, film.stats)
        return Inspection(facts=film.facts, checks=checks, image=film, prompt=prompt, error=error)
    try:
        undecoded = read(film)
    except InputError as error:
        return Inspection(file=file, error=str(error))
    prompt, prompt_error = _prompt(undecoded.facts, request)
    try:
        rendered = undecoded.render(request.preparation)
    except InputError as error:
        if undecoded.facts.kind == "image":  # without a header and pixels, no check applies
            return Inspection(file=file, error=str(error))
        checks = rules.check(undecoded.facts, caller)
        return Inspection(file=file, facts=undecoded.facts, checks=checks, prompt=prompt, error=str(error))
    return Inspection(
        file=file,
        facts=rendered.facts,
        checks=rules.check(rendered.facts, caller, rendered.stats),
        image=encode(rendered),
        prompt=prompt,
        error=prompt_error,
    )


def sheet(inspection: Inspection) -> str:
    """Return one inspection in full, as text for a terminal."""
    lines = [_name(inspection)]
    if inspection.facts is not None:
        lines.append(f"  facts    {_describe_facts(inspection.facts)}")
    for number, check in enumerate(inspection.checks):
        status = "allow" if check.allowed else check.status
        lines.append(f"  {'checks' if number == 0 else '':8} {status:5}  {check.name:14}  {check.why}")
    if inspection.image is not None:
        fields = _image_dict(inspection.image)
        lines.append(f"  image    {fields['mime']}, {fields['width']} x {fields['height']}, {fields['bytes']} bytes")
        lines += [f"           {note}" for note in inspection.image.how]
    if inspection.prompt is not None:
        lines.append(f"  prompt   {inspection.prompt.recorded}")
    if inspection.error is not None:
        lines.append(f"  error    {inspection.error}")
    return "\n".join([*lines, f"  verdict  {inspection.verdict}"])


def table(films: Sequence[Inspection]) -> str:
    """Return a text table with one line per film."""
    rows = [
        ("FILE", "VERDICT", "KIND", "AGE", "SEX", "VIEW", "SIZE", "WHY"),
        *(_row(inspection) for inspection in films),
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def image_file(encoded: EncodedImage) -> bytes:
    """Return the image file that would be sent."""
    return b64decode(encoded.base64)


def save(inspection: Inspection, path: str) -> None:
    """Write the image file that would be sent, but never over the film itself."""
    if inspection.image is None:
        raise InputError(f"--preview: the film has no image to write; {inspection.error}")
    try:
        film = inspection.file
        if film is not None and os.path.exists(path) and os.path.samefile(path, film):
            raise ConfigurationError("--preview: is the film itself; give another path")
        Path(path).write_bytes(image_file(inspection.image))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "is not a path"
        raise ConfigurationError(f"--preview: cannot be written: {reason}") from error


def _prompt(facts: Facts, request: FilmRequest) -> tuple[Prompt | None, str | None]:
    try:
        return payload.write_prompt(facts, request), None
    except InputError as error:
        return None, str(error)


def _row(inspection: Inspection) -> tuple[str, ...]:
    if inspection.facts is None:
        return _name(inspection), inspection.verdict, "-", "-", "-", "-", "-", _first_reason(inspection)
    facts = inspection.facts
    size = "-" if inspection.image is None else f"{inspection.image.width}x{inspection.image.height}"
    return (
        _name(inspection), inspection.verdict, _value(facts.modality) if facts.modality else "image",
        _age(facts), facts.sex or "-", _value(facts.view), size, _first_reason(inspection),
    )  # fmt: skip


def _first_reason(inspection: Inspection) -> str:
    reasons = [check.why for check in inspection.checks if check.blocks]
    reasons.append((inspection.error or "").removeprefix("the film: "))
    return reasons[0]


def _name(inspection: Inspection) -> str:
    return "the film" if inspection.file is None else inspection.file


def _value(fact: Fact | None) -> str:
    return (fact.value if fact is not None else "") or "-"


def _age(facts: Facts) -> str:
    return "-" if facts.age is None else str(facts.age)


def _describe_facts(facts: Facts) -> str:
    if facts.kind == "image":
        return "plain image without a header"
    values = [_value(facts.modality), _value(facts.body), _value(facts.view), _age(facts), facts.sex or "-"]
    return "DICOM: " + ", ".join(
        f"{name} {value}" for name, value in zip(("modality", "body part", "view", "age", "sex"), values, strict=True)
    )


def _facts_dict(facts: Facts) -> dict[str, object]:
    names = (
        "modality", "sop_class", "intent", "body", "view", "orientation", "burned_in", "quality_control", "not_human"
    )  # fmt: skip
    coded = {name: fact.value if (fact := getattr(facts, name)) is not None else None for name in names}
    coded["projection"] = facts.projection
    return {"kind": facts.kind, **coded, "age": None if facts.age is None else _age(facts), "sex": facts.sex}


def _prompt_dict(prompt: Prompt) -> dict[str, object]:
    profile = prompt.profile
    return {"profile": profile.name, "version": profile.version, "sha256": profile.sha256, "text": prompt.recorded}


def _image_dict(encoded: EncodedImage) -> dict[str, object]:
    return {
        "mime": encoded.mime,
        "width": encoded.width,
        "height": encoded.height,
        "bytes": len(image_file(encoded)),
        "sha256": encoded.sha256,
        "how": list(encoded.how),
    }
