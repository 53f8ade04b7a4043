"""What a client states about itself in request headers; used in the audit log only. No I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_PROFILE = re.compile(r"[a-z]{1,16}/[0-9]{1,3}:[0-9a-f]{12}")
_NAME = re.compile(r"[a-z-]{1,20}")
_MAX_NAMES = 12


@dataclass(frozen=True, slots=True)
class ClientMetadata:
    """Header values of a fixed form. Other forms are ignored, so that no patient's name reaches the log.

    Attributes:
        prompt_profile: name and digest of the prompt, such as ``card/1:0123456789ab``.
        overrides: names of the client's checks that were overridden for this film.
    """

    prompt_profile: str | None = None
    overrides: tuple[str, ...] | None = None

    @classmethod
    def of(cls, headers: Mapping[str, str]) -> ClientMetadata:
        """Return the metadata in a request's headers; None for a header that is absent or has another form."""
        profile, override_list = headers.get("x-pedcxr-prompt", ""), headers.get("x-pedcxr-allow", "")
        names = tuple(name.strip(" ") for name in override_list.split(","))
        valid = len(names) <= _MAX_NAMES and all(map(_NAME.fullmatch, names))
        return cls(profile if _PROFILE.fullmatch(profile) else None, names if valid else None)
