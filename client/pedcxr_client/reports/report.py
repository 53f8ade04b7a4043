"""A finished report with its provenance, its timing and its token counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TypeVar, cast

from pedcxr_client.errors import InputError
from pedcxr_client.films.age import Age
from pedcxr_client.reports.sections import parse
from pedcxr_client.reports.validation import language, mentions_prior
from pedcxr_client.types import Check, Sex, Status, Timing, Usage

DISCLAIMER = "AI-generated draft. Research use only. Not for diagnosis. Must be reviewed by a qualified professional."
"""Accompanies every report. No option removes it."""
DEMO_NOTICE = "demo model: synthetic, not a medical report"
"""Accompanies every report of the demonstration model."""

_T = TypeVar("_T")
_REQUIRED = object()
_KINDS = {str: "a text", int: "an integer", bool: "true or false", float: "a number", list: "a list", dict: "an object"}


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Report:
    """A finished draft report, never a diagnosis. The model ended the text itself (``finish_reason == "stop"``).

    Attributes:
        text: the output of the model, byte for byte.
        model: name of the model on the server.
        model_revision: revision of the weights, ``BASE+ADAPTER`` for an adapter. None if the server did not report it.
        demo: True if the demonstration model wrote the report. Its text has no medical meaning.
        age, sex: the values in the prompt, or None if the prompt omits them.
        view: the view that the DICOM header states, such as ``"PA"``, or None.
        prompt: the text sent with the film. "(not recorded)" replaces an indication.
        prompt_profile, prompt_version: the prompt template.
        prompt_sha256: digest of the template and the system text, equal for all patients.
        indication_sha256: digest of the indication, or None without one. A short indication can be guessed from it.
        image_sha256: digest of the image bytes in the request.
        image_how: the steps that produced those bytes.
        image_profile: tag of the image preparation, such as ``"display"`` or ``"display+square+896x896"``.
        checks: results of the intended-use checks. A check that blocks appears only if the caller allowed it.
        max_tokens: the token limit of the request.
        usage: token counts, or None if the server sent none.
        timing: timestamps of the call.
        request_id: the ``X-Request-Id`` header of the response, or None.
        attempts: number of requests, 1 without a retry.
        created: time of completion, in UTC.
    """

    text: str
    finish_reason: str
    model: str
    model_revision: str | None
    demo: bool
    age: Age | None
    sex: Sex | None
    view: str | None
    prompt: str
    prompt_profile: str
    prompt_version: int
    prompt_sha256: str
    indication_sha256: str | None
    image_sha256: str
    image_how: tuple[str, ...]
    image_profile: str
    checks: tuple[Check, ...]
    max_tokens: int
    usage: Usage | None
    timing: Timing
    request_id: str | None
    attempts: int
    created: datetime

    @property
    def findings(self) -> str | None:
        """The FINDINGS section, or the whole text if it has no headings. None if the section is empty or absent."""
        return parse(self.text).findings

    @property
    def impression(self) -> str | None:
        """The IMPRESSION section, or None if the model wrote none."""
        return parse(self.text).impression

    @property
    def mentions_prior(self) -> bool:
        """Whether the text compares with an earlier film, which the model never had, or contains a placeholder."""
        return mentions_prior(self.text)

    @property
    def language(self) -> str:
        """The language of the text as an RFC 5646 tag; see `validation.language`. A client returns English only."""
        return language(self.text)

    @property
    def disclaimer(self) -> str:
        """`DISCLAIMER`. Show it wherever the text is shown."""
        return DISCLAIMER

    @property
    def notices(self) -> tuple[str, ...]:
        """The notices to show with the text: `DISCLAIMER`, preceded by `DEMO_NOTICE` for the demo model."""
        return (DEMO_NOTICE, DISCLAIMER) if self.demo else (DISCLAIMER,)

    def as_dict(self) -> dict[str, object]:
        """Return all fields as values that ``json.dumps`` accepts."""
        return {
            "text": self.text,
            "findings": self.findings,
            "impression": self.impression,
            "language": self.language,
            "mentions_prior": self.mentions_prior,
            "disclaimer": self.disclaimer,
            "demo": self.demo,
            "notices": list(self.notices),
            "model": self.model,
            "model_revision": self.model_revision,
            "created": self.created.isoformat(timespec="seconds"),
            "finish_reason": self.finish_reason,
            "request_id": self.request_id,
            "age": None if self.age is None else str(self.age),
            "sex": self.sex,
            "view": self.view,
            "prompt": {
                "profile": self.prompt_profile,
                "version": self.prompt_version,
                "sha256": self.prompt_sha256,
                "text": self.prompt,
                "indication_given": self.indication_sha256 is not None,
                "indication_sha256": self.indication_sha256,
            },
            "image": {"sha256": self.image_sha256, "profile": self.image_profile, "how": list(self.image_how)},
            "checks": [asdict(check) for check in self.checks],
            "parameters": {"temperature": 0, "max_tokens": self.max_tokens},
            "usage": None if self.usage is None else asdict(self.usage),
            "attempts": self.attempts,
            "timing": self.timing.as_dict(),
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, object]) -> Report:
        """Return the report of a record of `as_dict`, or of a line of ``pedcxr batch`` or ``pedcxr report --json``.

        Unknown keys are ignored. Keys that earlier versions did not write may be absent. The text is not validated.

        Raises:
            InputError: a key is absent or has a value of another kind. The message names the key and no value.
        """
        read = _Fields(record)
        prompt, image, parameters = read.group("prompt"), read.group("image"), read.group("parameters", required=False)
        usage, timing = read.group("usage", required=False), read.group("timing", required=False)
        if (reason := read.text("finish_reason")) != "stop":
            raise InputError(f"finish_reason: is {reason[:20]!r}, but a finished report has 'stop'")
        age, sex = read.optional("age"), read.optional("sex")
        if sex not in ("M", "F", None):
            raise InputError("sex: must be 'M', 'F' or null")
        return cls(
            text=read.text("text"),
            finish_reason="stop",
            model=read.text("model"),
            model_revision=read.optional("model_revision"),
            demo=read.flag("demo"),
            age=None if age is None else Age.parse(age),
            sex=cast("Sex | None", sex),
            view=read.optional("view"),
            prompt=prompt.text("text"),
            prompt_profile=prompt.text("profile"),
            prompt_version=prompt.integer("version"),
            prompt_sha256=prompt.text("sha256"),
            indication_sha256=prompt.optional("indication_sha256"),
            image_sha256=image.text("sha256"),
            image_how=tuple(image.texts("how")),
            image_profile=image.text("profile"),
            checks=tuple(each.check() for each in read.groups("checks")),
            max_tokens=parameters.integer("max_tokens", 0),
            usage=Usage(usage.integer("prompt_tokens"), usage.integer("completion_tokens")) if usage else None,
            timing=timing.timing(),
            request_id=read.optional("request_id"),
            attempts=read.integer("attempts", 1),
            created=read.time("created"),
        )

    def __repr__(self) -> str:
        tokens = None if self.usage is None else self.usage.completion_tokens
        return f"<Report of {self.model}, {tokens} tokens{', demo' if self.demo else ''}>"


class _Fields:
    """The values of one object of a record, each of the expected kind. ``path`` is its place in the record."""

    def __init__(self, values: Mapping[str, object], path: str = "") -> None:
        self._values, self._path = values, path

    def __bool__(self) -> bool:
        return bool(self._values)

    def _get(self, name: str, kind: type[_T], default: object = _REQUIRED) -> _T:
        value = self._values.get(name, default)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise InputError(f"{self._path}{name}: must be {_KINDS[kind]}; pass a line of pedcxr batch unchanged")
        return value

    def text(self, name: str) -> str:
        return self._get(name, str)

    def optional(self, name: str) -> str | None:
        return None if self._values.get(name) is None else self.text(name)

    def integer(self, name: str, default: object = _REQUIRED) -> int:
        return self._get(name, int, default)

    def flag(self, name: str) -> bool:
        return self._get(name, bool)

    def texts(self, name: str) -> list[str]:
        values = self._get(name, list)
        return [_Fields({name: value}, self._path).text(name) for value in values]

    def group(self, name: str, *, required: bool = True) -> _Fields:
        is_absent = not required and self._values.get(name) is None
        return _Fields({} if is_absent else self._get(name, dict), f"{self._path}{name}.")

    def groups(self, name: str) -> list[_Fields]:
        values = self._get(name, list, [])
        return [_Fields(_Fields({name: value}, self._path)._get(name, dict), f"{name}.") for value in values]

    def check(self) -> Check:
        status = self.text("status")
        if status not in ("ok", "warn", "block"):
            raise InputError(f"{self._path}status: must be ok, warn or block")
        from_header = self._get("from_header", bool, True)
        return Check(self.text("name"), cast("Status", status), self.text("why"), self.flag("allowed"), from_header)

    def timing(self) -> Timing:
        names = ("encoded", "sent", "first", "last", "done")
        stamps = {name: None if self._values.get(name) is None else self._seconds(name) for name in names}
        tokens = None if self._values.get("completion_tokens") is None else self.integer("completion_tokens")
        return Timing(scheduled=self._seconds("scheduled") if self else 0.0, completion_tokens=tokens, **stamps)

    def _seconds(self, name: str) -> float:
        value = self._values.get(name)
        return float(value) if isinstance(value, int) else self._get(name, float)

    def time(self, name: str) -> datetime:
        try:
            moment = datetime.fromisoformat(self.text(name))
        except ValueError:
            moment = None
        if moment is None or moment.tzinfo is None:
            raise InputError(f"{name}: must be an ISO 8601 time with a time zone")
        return moment.astimezone(UTC)
