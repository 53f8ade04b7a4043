"""A finished report with its provenance, its timing and its token counts."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime

from pedcxr_client.films.age import Age
from pedcxr_client.reports.sections import parse
from pedcxr_client.reports.validation import mentions_prior
from pedcxr_client.types import Check, Sex, Timing, Usage

DISCLAIMER = "AI-generated draft. Research use only. Not for diagnosis. Must be reviewed by a qualified professional."
"""Accompanies every report. No option removes it."""
DEMO_NOTICE = "demo model: synthetic, not a medical report"
"""Accompanies every report of the demonstration model."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Report:
    """A finished draft report, never a diagnosis. The model ended the text itself (``finish_reason == "stop"``).

    Attributes:
        text: the output of the model, byte for byte.
        model: name of the model on the server.
        model_revision: revision of the weights. None if the server did not report it, or if the caller named the model
            and the client did not query the server.
        demo: True if the demonstration model wrote the report. Its text has no medical meaning.
        age, sex: the values in the prompt, or None if the prompt omits them.
        view: ViewPosition (0018,5101) of the DICOM header, or None.
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

    def __repr__(self) -> str:
        tokens = None if self.usage is None else self.usage.completion_tokens
        return f"<Report of {self.model}, {tokens} tokens{', demo' if self.demo else ''}>"
