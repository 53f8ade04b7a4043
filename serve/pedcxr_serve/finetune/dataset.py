"""Prepare the films of a training exactly as the client prepares films for a server, and split them by patient.

Pixels, checks and prompts come from `pedcxr_client`, so that the model is trained on what it will be sent. Films are
stored under the digest of their bytes.
"""

from __future__ import annotations

import hashlib
import os
from base64 import b64decode
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from pedcxr_client.checks import inspection
from pedcxr_client.films.header.elements import attempt, silence_pydicom, text
from pedcxr_client.request.film_request import FilmRequest
from pedcxr_serve.errors import DataError
from pedcxr_serve.finetune import table
from pedcxr_serve.finetune.table import Row, Split

IDENTIFYING = (
    "PatientName", "PatientID", "PatientBirthDate", "OtherPatientIDs", "OtherPatientNames", "PatientAddress",
    "PatientTelephoneNumbers", "PatientMotherBirthName", "MilitaryRank", "MedicalRecordLocator",
)  # fmt: skip
"""Elements of DICOM PS3.15 table E.1-1 that identify a patient; they must be empty or PatientIdentityRemoved YES."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Example:
    """One prepared film with its prompt and report.

    Attributes:
        film: Name of the image file: its sha256 and its type.
        pixels: sha256 of the size and the grey values, equal for copies of a film in other formats.
        patient: What is the same for all films of a patient, or "".
    """

    where: str
    film: str
    pixels: str
    system: str | None
    prompt: str
    report: str
    patient: str
    split: Split | None


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Dataset:
    """The examples of a training.

    Attributes:
        test: Number of examples with the split ``test``, which are checked but not used.
        skipped: Number of films that each check blocked, if such films are skipped.
        notes: What a person should know of the data.
        sha256: Digest of the images, prompts, reports and splits; the order and the file names have no influence.
    """

    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: int
    patients: int
    skipped: dict[str, int]
    notes: tuple[str, ...]
    prompt_profile: str
    preparation: str
    sha256: str


@dataclass(frozen=True, slots=True)
class _Refusal:
    text: str
    checks: tuple[str, ...] = ()


def prepare(
    path: Path,
    rows: Sequence[Row],
    request: Callable[[Row], FilmRequest],
    films: Path,
    *,
    validation: float,
    seed: int,
    skip_blocked: bool = False,
    allow_identifiers: bool = False,
    on_film: Callable[[], object] = lambda: None,
) -> Dataset:
    """Check and prepare every film, write the images into the folder ``films``, and split the examples.

    Args:
        path: The data set, for messages.
        request: Returns the client's request for a row.
        validation: Share of the patients for validation if no row states a split.
        skip_blocked: Leave out films that the intended-use checks block, instead of raising.
        allow_identifiers: Accept DICOM headers that identify a patient. Nothing of a header is stored.

    Raises:
        DataError: Lists the first ten problems.
    """

    def prepare_row(row: Row) -> Example | _Refusal:
        result = _prepare(row, request(row), films, allow_identifiers=allow_identifiers)
        on_film()
        return result

    films.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(prepare_row, rows))
    examples = [result for result in results if isinstance(result, Example)]
    refusals = [result for result in results if isinstance(result, _Refusal)]
    problems = [refusal.text for refusal in refusals if not (skip_blocked and refusal.checks)]
    table.raise_problems(path, [*problems, *_split_problems(examples)])
    notes = list(_notes(examples))
    if any(example.split is None for example in examples):
        examples = _assign(examples, validation, seed)
    train = tuple(example for example in examples if example.split == "train")
    validation_examples = tuple(example for example in examples if example.split == "validation")
    if not train:
        raise DataError(f"{path}: no film is left for training")
    if not validation_examples:
        notes.append("no film is left for validation: the loss on unseen patients is not measured")
    sample = request(rows[0])
    return Dataset(
        train=train,
        validation=validation_examples,
        test=len(examples) - len(train) - len(validation_examples),
        patients=len({_group(example) for example in examples}),
        skipped=dict(Counter(name for refusal in refusals for name in refusal.checks)),
        notes=tuple(notes),
        prompt_profile=sample.prompt_profile.tag,
        preparation=sample.preparation.tag,
        sha256=_digest(examples),
    )


def _prepare(row: Row, request: FilmRequest, films: Path, *, allow_identifiers: bool) -> Example | _Refusal:
    result = inspection.inspect_request(request)
    blocking = tuple(check.name for check in result.checks if check.blocks)
    if blocking:
        reasons = "; ".join(f"{check.name}: {check.why}" for check in result.checks if check.blocks)
        remedy = "remove the line, or use --skip-blocked"
        return _Refusal(f"{row.where}: the film is outside the intended use. {reasons}; {remedy}", blocking)
    if result.error is not None or result.image is None or result.prompt is None or result.pixels is None:
        return _Refusal(f"{row.where}: {result.error}")
    patient = row.patient
    if result.facts is not None and result.facts.kind != "image":
        elements = _identity(row.entry.path)
        if elements and "removed" not in elements and not allow_identifiers:
            return _Refusal(
                f"{row.where}: the header identifies a patient ({', '.join(elements)}); de-identify the film "
                "(PatientIdentityRemoved YES), or use --allow-identifiers"
            )
        if _names_patient(row.report, elements.get("PatientName", "")):
            return _Refusal(f"{row.where}: the report contains the PatientName of the film; remove it")
        patient = patient or elements.get("PatientID", "")
    data = b64decode(result.image.base64)
    name = result.image.sha256 + (".png" if result.image.mime == "image/png" else ".jpg")
    _write(films / name, data)
    grey = result.pixels.convert("L")
    pixels = hashlib.sha256(f"{grey.size}".encode() + grey.tobytes()).hexdigest()
    return Example(
        where=row.where,
        film=name,
        pixels=pixels,
        system=request.prompt_profile.system,
        prompt=result.prompt.user,
        report=row.report,
        patient=patient,
        split=row.split,
    )


def _identity(path: str) -> dict[str, str]:
    """Return the elements of a DICOM header that identify a patient, and ``removed`` if it says that they do not."""
    from pydicom import dcmread

    with silence_pydicom():
        dataset = dcmread(path, force=True, stop_before_pixels=True)
        elements = {name: text(dataset, name) for name in IDENTIFYING}
        elements["PatientName"] = attempt(lambda: str(dataset.get("PatientName") or ""), "PatientName: damaged")
        if text(dataset, "PatientIdentityRemoved").upper() == "YES":
            elements["removed"] = "YES"
    return {name: value for name, value in elements.items() if value}


def _names_patient(report: str, name: str) -> bool:
    parts = {part for part in name.replace("^", " ").lower().split() if len(part) > 2}
    return bool(parts & set("".join(c if c.isalnum() else " " for c in report.lower()).split()))


def _write(path: Path, data: bytes) -> None:
    if path.exists() and path.stat().st_size == len(data):
        return
    temporary = path.with_name(f"{path.name}.{hashlib.sha256(os.urandom(8)).hexdigest()[:8]}")
    temporary.write_bytes(data)
    temporary.replace(path)


def _split_problems(examples: Iterable[Example]) -> Iterator[str]:
    """Describe every patient and every film that is in more than one split."""
    examples = [example for example in examples if example.split is not None]
    for what, keys in (
        ("patient", [example.patient for example in examples]),
        ("film (equal pixels)", [example.pixels for example in examples]),
    ):
        first: dict[str, Example] = {}
        for key, example in zip(keys, examples, strict=True):
            other = first.setdefault(key, example) if key else example
            if other.split != example.split:
                yield (
                    f"{example.where}: the same {what} is in {example.split} and, on {other.where}, in {other.split}; "
                    "keep all films of a patient in one split"
                )


def _notes(examples: Sequence[Example]) -> Iterator[str]:
    by_pixels: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        by_pixels[example.pixels].append(example)
    copies = [group for group in by_pixels.values() if len(group) > 1]
    if copies:
        yield f"{sum(map(len, copies))} lines repeat {len(copies)} films"
    if differing := sum(len({example.report for example in group}) > 1 for group in copies):
        yield f"{differing} of the repeated films have reports that differ"
    if unknown := sum(not example.patient for example in examples):
        yield f"the patient of {unknown} films is not stated: films of one patient may be in two splits"


def _group(example: Example) -> str:
    return example.patient or example.pixels


def _assign(examples: list[Example], share: float, seed: int) -> list[Example]:
    """Split by patient, with equal films in one split. The order of the examples has no influence.

    At least one patient is left for training, and one for validation if there are two and the share is not zero.
    """
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    for example in examples:
        parent[root(_group(example))] = root(example.pixels)
    groups: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        groups[root(_group(example))].append(example)
    order = sorted(
        groups.values(), key=lambda group: hashlib.sha256(f"{seed}\0{min(map(_group, group))}".encode()).digest()
    )
    count = min(max(round(share * len(order)), share > 0), len(order) - 1)
    validation_ids = {id(example) for group in order[:count] for example in group}
    return [replace(example, split="validation" if id(example) in validation_ids else "train") for example in examples]


def _digest(examples: Iterable[Example]) -> str:
    lines = sorted(
        "\0".join((example.film, example.system or "", example.prompt, example.report, example.split or ""))
        for example in examples
    )
    return hashlib.sha256("\1".join(lines).encode()).hexdigest()
