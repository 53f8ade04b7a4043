"""What comes back: a report, its timing and its token counts."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime

from pedcxr_client.films.age import Age
from pedcxr_client.reports.sections import parse
from pedcxr_client.types import Check, Sex, Timing, Usage

DISCLAIMER = "AI-generated draft. Research use only. Not for diagnosis. Must be reviewed by a qualified professional."
"""Stands beside every report. No option removes it."""
DEMO_NOTICE = "demo model: synthetic, not a medical report"
"""Stands beside it where the demonstration model wrote the report."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Report:
    """A finished report: the model ended it by itself (``finish_reason == "stop"``). A draft, never a diagnosis.

    Attributes:
        text: what the model wrote, byte for byte.
        model: the model as the server names it.
        model_revision: which weights wrote it, or None where the server did not say or, a model being named, was not
            asked.
        demo: True if the demonstration model wrote it; then it is no medical text at all.
        age, sex: as the prompt has them, None where they were left out.
        view: ViewPosition as the film's header has it, or None.
        prompt: the words sent with the film; in place of an indication it says "(not recorded)".
        prompt_profile, prompt_version: which form they follow.
        prompt_sha256: digest of that form, the system text included; the same for all patients.
        indication_sha256: digest of the indication, None if none was given. Short texts can be guessed from it.
        image_sha256: digest of the image bytes as they were sent.
        image_how: how those bytes were made, in short notes; ``image_profile`` names the preparation.
        checks: those of the intended use; one that blocks is there only if the caller allowed it.
        max_tokens: the most tokens the report might have had.
        usage: token counts, or None if the server gave none.
        request_id: the server's ``X-Request-Id``, or None.
        attempts: requests it took, 1 without a retry.
        created: when it was finished, in UTC.
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
        """The FINDINGS section, or all of the text if the model wrote no headings."""
        return parse(self.text).findings

    @property
    def impression(self) -> str | None:
        """The IMPRESSION section, or None if the model wrote none; never invented."""
        return parse(self.text).impression

    @property
    def disclaimer(self) -> str:
        """:data:`DISCLAIMER`; it belongs beside the text wherever the text goes."""
        return DISCLAIMER

    @property
    def notices(self) -> tuple[str, ...]:
        """What must stand beside the text: :data:`DISCLAIMER`, and of a demonstration that it is one."""
        return (DEMO_NOTICE, DISCLAIMER) if self.demo else (DISCLAIMER,)

    def as_dict(self) -> dict[str, object]:
        """Everything, ready for ``json.dumps``."""
        return {
            "text": self.text,
            "findings": self.findings,
            "impression": self.impression,
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
