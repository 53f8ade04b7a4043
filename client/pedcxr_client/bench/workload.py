"""What is sent: a TOML file with films, prompts, tenants, the load and the objectives. Unknown keys are errors."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from pedcxr_client import errors
from pedcxr_client.errors import ConfigurationError
from pedcxr_client.request.film_request import FilmRequest
from pedcxr_client.request.settings import check_api_key

Source = Literal["phantoms", "folder", "manifest"]
LoadKind = Literal["closed", "sweep", "poisson", "ramp", "steps", "trace"]

ALLOWABLE = tuple(
    error.outcome
    for error in (
        errors.TruncatedReport, errors.LoopingReport, errors.PromptEcho, errors.NotText, errors.NotEnglish,
        errors.NotReport,
    )
)  # fmt: skip
"""Outcomes of the text check that a run may allow: of texts that the model wrote and ended."""

T = TypeVar("T")
_SIDES = range(32, 10_001)  # pixels of a phantom; a larger one would fill the memory
_RANGE = f"must be {_SIDES[0]} to {_SIDES[-1]} pixels"
_LARGEST = 1e18  # of a number; sums of such numbers are finite
_ITEMS: Mapping[str, tuple[tuple[type, ...], str]] = {
    "load.loads": ((int,), "integers"),
    "load.rates": ((int, float), "numbers"),
}


@dataclass(frozen=True, slots=True)
class Films:
    """The films of a run.

    Attributes:
        source: ``"phantoms"`` draws chest films (needs numpy), ``"folder"`` and ``"manifest"`` read ``path``.
        path: folder of films, or manifest of ``pedcxr batch``; relative to the workload file.
        count: number of phantoms, or maximum number of films read from ``path``; 0 reads all.
        seed: of the phantoms, the prompts and the arrivals.
        width, height: of phantoms in pixels; 0 uses the size of the drawings, on which the demo model was trained.
        large_share, large_width, large_height: share of the phantoms that have another size.
        jpeg: share of the phantoms that are sent as JPEG, from 0 to 1.
        unique: how no request finds its film in a cache. ``"comment"`` gives each request's image file a comment of
            its own, so that a film may be sent many times. ``"film"`` sends each film once and refuses to start with
            fewer films than requests.
        reuse: share of the requests that repeat the very bytes of an earlier request, from 0 to 1.
        resize: ``"model"`` resizes films to the model's input on the client; ``""`` sends them as they are.
    """

    source: Source = "phantoms"
    path: str = ""
    count: int = 64
    seed: int = 1
    width: int = 0
    height: int = 0
    large_share: float = 0.0
    large_width: int = 2048
    large_height: int = 2500
    jpeg: float = 0.0
    unique: Literal["comment", "film"] = "comment"
    reuse: float = 0.0
    resize: Literal["", "model"] = ""


@dataclass(frozen=True, slots=True)
class PatientMix:
    """The age and the sex of a share of the prompts; the header of a film goes first."""

    age: str = ""
    sex: Literal["", "M", "F"] = ""
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Reports:
    """What is expected of the reports.

    Attributes:
        max_tokens: maximum length of a report.
        allow: outcomes of the text check that are expected, such as ``"truncated"`` of a model with random weights.
        alone: number of films that are sent alone first. Their texts and times are compared with those under load.
        max_different: largest share of texts that may differ from the same film's text alone. 0 suits a server whose
            results do not depend on the batch, such as one in float32.
    """

    max_tokens: int = 500
    allow: tuple[str, ...] = ()
    alone: int = 8
    max_different: float = 1.0


@dataclass(frozen=True, slots=True)
class Tenant:
    """A sender. The key comes from an environment variable or a file; none sends no key.

    Attributes:
        weight: its share of the requests, relative to the other tenants.
    """

    name: str = "default"
    key_env: str = ""
    key_file: str = ""
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Load:
    """When requests are sent, for ``pedcxr bench run``.

    Attributes:
        kind: ``closed`` keeps ``in_flight`` requests open; ``sweep`` keeps each of ``loads`` open for an equal time;
            ``poisson`` sends ``rate`` per second; ``ramp`` changes the rate from ``rate`` to ``to_rate``; ``steps``
            uses each of ``rates`` for an equal time; ``trace`` sends at the seconds in ``file``, one number per line.
        seconds: length of the run; a closed loop lasts until its window has enough reports.
    """

    kind: LoadKind = "closed"
    in_flight: int = 8
    loads: tuple[int, ...] = ()
    rate: float = 1.0
    to_rate: float = 1.0
    rates: tuple[float, ...] = ()
    file: str = ""
    seconds: float = 60.0


@dataclass(frozen=True, slots=True)
class Objectives:
    """Limits in seconds that a good request meets, all of them. 0 is no limit.

    Attributes:
        ttft: from the scheduled time to the first text.
        e2e: from the scheduled time to the last text.
        tpot: time per output token after the first.
    """

    ttft: float = 0.0
    e2e: float = 0.0
    tpot: float = 0.0

    def text(self) -> str:
        """Return the limits as words, such as ``TTFT <= 2 s and E2E <= 15 s``; "" without a limit."""
        limits = [f"{name.upper()} <= {value:g} s" for name, value in asdict(self).items() if value]
        return " and ".join(limits)


@dataclass(frozen=True, slots=True)
class Workload:
    """All of it. ``folder`` is where relative paths start."""

    films: Films = Films()
    patients: tuple[PatientMix, ...] = (PatientMix("5y", "M"), PatientMix("18m", "F"), PatientMix("12y", "F"))
    reports: Reports = Reports()
    tenants: tuple[Tenant, ...] = ()
    load: Load = Load()
    slo: Objectives = Objectives()
    folder: Path = field(default=Path(), compare=False)

    def path(self, name: str) -> Path:
        """Return a path of the file, relative to the workload file's folder."""
        return self.folder / name

    def described(self) -> dict[str, Any]:
        """Return what decides the requests, without keys and places, to compare two runs."""
        return {
            "films": asdict(self.films) | {"path": Path(self.films.path).name},
            "patients": [asdict(patient) for patient in self.patients],
            "reports": asdict(self.reports),
            "tenants": [{"name": tenant.name, "weight": tenant.weight} for tenant in self.tenants],
        }


def read(path: str | None) -> Workload:
    """Read a workload file; None is the default workload. Raise ConfigurationError that names the key."""
    if path is None:
        return Workload()
    try:
        raw = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or f"is not valid TOML: {error}"
        raise ConfigurationError(f"the workload: {reason}; check the file") from error
    return parse(raw, Path(path).parent)


def parse(raw: Mapping[str, Any], folder: Path = Path()) -> Workload:
    """Return the workload of a parsed TOML file, validated."""
    _known(raw, {entry.name for entry in fields(Workload)} - {"folder"}, "")
    defaults = Workload()
    workload = Workload(
        films=_section(Films, raw.get("films", {}), "films"),
        patients=_sections(PatientMix, raw, "patients") or defaults.patients,
        reports=_section(Reports, raw.get("reports", {}), "reports"),
        tenants=_sections(Tenant, raw, "tenants"),
        load=_section(Load, raw.get("load", {}), "load"),
        slo=_section(Objectives, raw.get("slo", {}), "slo"),
        folder=folder,
    )
    _check(workload)
    return workload


def key_of(tenant: Tenant, workload: Workload, default: str | None) -> str | None:
    """Return the tenant's API key, or ``default`` if it names no source. Raise ConfigurationError."""
    if tenant.key_env:
        if not (key := os.environ.get(tenant.key_env)):
            raise ConfigurationError(f"tenants: {tenant.name}: the variable {tenant.key_env} is not set; export it")
    elif tenant.key_file:
        try:
            key = workload.path(tenant.key_file).read_text(encoding="utf-8-sig").strip()
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"tenants: {tenant.name}: key_file cannot be read; check the path") from error
    else:
        key = default
    if key is not None:
        check_api_key(key, f"tenants: {tenant.name}")
    return key


def _known(raw: object, names: set[str], where: str) -> None:
    if not isinstance(raw, Mapping):
        raise ConfigurationError(f"the workload: {where}: must be a table")
    for name in raw:
        if name not in names:
            label = f"{where}.{name}" if where else name
            raise ConfigurationError(f"the workload: {label}: unknown key; known are {', '.join(sorted(names))}")


def _sections(kind: type[T], raw: Mapping[str, Any], name: str) -> tuple[T, ...]:
    entries = raw.get(name, [])
    if not isinstance(entries, list):
        raise ConfigurationError(f"the workload: {name}: must be tables, written [[{name}]]")
    return tuple(_section(kind, entry, f"{name}[{at}]") for at, entry in enumerate(entries))


def _section(kind: type[T], raw: Mapping[str, Any], where: str) -> T:
    default = kind()
    _known(raw, {entry.name for entry in fields(default)}, where)  # type: ignore[arg-type]
    return kind(**{name: _value(value, getattr(default, name), f"{where}.{name}") for name, value in raw.items()})


def _value(value: object, default: object, where: str) -> object:
    """Return a value of the type of its default: a finite number, a text, or a tuple of those."""
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, int | float) and not abs(one) <= _LARGEST:  # neither is NaN
            raise ConfigurationError(f"the workload: {where}: must be a finite number, at most {_LARGEST:g}")
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(default, tuple):
        kinds, plural = _ITEMS.get(where, ((str,), "texts"))
        if isinstance(value, list) and all(type(item) in kinds for item in value):
            return tuple(value)
        raise ConfigurationError(f"the workload: {where}: must be a list of {plural}")
    if type(value) is type(default):
        return value
    names = {float: "a number", int: "an integer", str: "a text"}
    raise ConfigurationError(f"the workload: {where}: must be {names[type(default)]}")


def _check(workload: Workload) -> None:
    films, load, reports = workload.films, workload.load, workload.reports
    names = [tenant.name for tenant in workload.tenants]
    sizes = (films.width, films.height, films.large_width, films.large_height)
    rules: list[tuple[bool, str]] = [
        (films.source in get_args(Source), f"films.source: must be one of {', '.join(get_args(Source))}"),
        (films.source == "phantoms" or bool(films.path), "films.path: names no films; give a folder or a manifest"),
        (films.count > 0 or (films.count == 0 and films.source != "phantoms"), "films.count: must be above 0"),
        (films.unique in ("comment", "film"), "films.unique: must be comment or film"),
        (films.resize in ("", "model"), 'films.resize: must be model, or "" for none'),
        (films.seed >= 0, "films.seed: must be 0 or more"),
        (all(size == 0 or size in _SIDES for size in sizes[:2]), f"films.width, films.height: {_RANGE}, or 0"),
        (all(size in _SIDES for size in sizes[2:]), f"films.large_width, films.large_height: {_RANGE}"),
        (bool(films.width) == bool(films.height), "films: width and height need each other; set both, or none"),
        (films.source == "phantoms" or not any(sizes[:2]), "films.width, films.height: are for phantoms; remove them"),
        (not (films.reuse and films.unique == "film"), "films.reuse: contradicts films.unique = film; remove one"),
        (reports.max_tokens > 0, "reports.max_tokens: must be above 0"),
        (set(reports.allow) <= {*ALLOWABLE}, f"reports.allow: may hold {', '.join(ALLOWABLE)}"),
        (reports.alone > 0, "reports.alone: must be above 0"),
        (load.kind in get_args(LoadKind), f"load.kind: must be one of {', '.join(get_args(LoadKind))}"),
        (load.seconds > 0 and load.in_flight > 0, "load: seconds and in_flight must be above 0"),
        (load.rate > 0 and load.to_rate > 0 and all(rate > 0 for rate in load.rates), "load: rates must be above 0"),
        (load.kind != "steps" or bool(load.rates), "load.rates: lists no rate"),
        (load.kind != "sweep" or bool(load.loads), "load.loads: lists no number of requests in flight"),
        (min(load.loads, default=1) > 0, "load.loads: must be above 0"),
        (load.kind != "trace" or bool(load.file), "load.file: names no file of times"),
        (min(asdict(workload.slo).values()) >= 0, "slo: limits are seconds, 0 or more"),
        (len(set(names)) == len(names), "tenants: two have the same name"),
        (all(tenant.weight > 0 for tenant in workload.tenants), "tenants: each weight must be above 0"),
        (all(patient.weight > 0 for patient in workload.patients), "patients: each weight must be above 0"),
        *(
            (0 <= getattr(films, name) <= 1, f"films.{name}: must be from 0 to 1")
            for name in ("large_share", "jpeg", "reuse")
        ),
        (0 <= reports.max_different <= 1, "reports.max_different: must be from 0 to 1"),
    ]
    for holds, message in rules:
        if not holds:
            raise ConfigurationError(f"the workload: {message}")
    for patient in workload.patients:
        _parsed(patient)


def _parsed(patient: PatientMix) -> None:
    try:
        FilmRequest("", default_age=patient.age or None, default_sex=patient.sex or None).caller_facts()
    except Exception as error:
        raise ConfigurationError(f"the workload: patients: {error}") from error
