"""What a client tells of itself in headers, for the audit log and nothing else. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Note"]

_PROFILE = re.compile(r"[a-z]{1,16}/[0-9]{1,3}:[0-9a-f]{12}")
_NAME = re.compile(r"[a-z-]{1,20}")
_MOST_NAMES = 12


@dataclass(frozen=True, slots=True)
class Note:
    """Only words of a fixed form are taken, so that no patient's name gets into a log; any other is no note.

    Attributes:
        prompt_profile: the form of prompt that was used, such as ``card/1:0123456789ab``.
        overrides: names of the client's checks that were overridden for this film.
    """

    prompt_profile: str | None = None
    overrides: tuple[str, ...] | None = None

    @classmethod
    def of(cls, headers: Mapping[str, str]) -> Note:
        """The note in a request's headers; None for what is absent or of another form."""
        profile, allowed = headers.get("x-pedcxr-prompt", ""), headers.get("x-pedcxr-allow", "")
        names = tuple(name.strip(" ") for name in allowed.split(","))
        good = len(names) <= _MOST_NAMES and all(map(_NAME.fullmatch, names))
        return cls(profile if _PROFILE.fullmatch(profile) else None, names if good else None)
