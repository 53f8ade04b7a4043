"""One film of a batch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Entry:
    """A film and what the manifest says of it.

    Attributes:
        id: the user's name for it, which stands in the output; unique in the batch.
        path: where it is.
        age, sex: as the manifest has them, or None; looked at when the film is taken in.
        assume_chest: it shows a chest, should its header not say.
        allow: names of checks that must not block it.
    """

    id: str
    path: str
    age: str | None = None
    sex: str | None = None
    assume_chest: bool = False
    allow: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class LeftOut:
    """A file of a folder that is no film.

    Attributes:
        id: its path below the folder.
        reason: why, in words of a closed set.
    """

    id: str
    reason: str
