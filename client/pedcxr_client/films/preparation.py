"""How a film's pixels are made ready for the model: a profile, and what is done to the size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeGuard

from pedcxr_client.errors import ConfigurationError

Profile = Literal["display", "ped-train"]

MODEL_SIZE = (896, 896)
"""Width and height in pixels of what Gemma 3's image processor makes of every film."""

_LARGEST_SIDE = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """What is done to a film's pixels before they are sent; each step is recorded in ``how``.

    Attributes:
        profile: ``"display"`` shows a film as a viewer would (DICOM PS3.3 C.11: modality LUT, VOI LUT or window,
            MONOCHROME1 inverted once). ``"ped-train"`` imitates the films the model was tuned on: stored values,
            percentiles 1-99 stretched to 0-255, brightened by gamma 1.2, the long side at most 896, not inverted.
        pad_square: add black at the short side, half on each end, until the film is square.
        resize: ``"model"`` stretches the film to ``model_size`` with Pillow's bilinear filter and antialiasing, which
            is what the server's own processor does; the body becomes about six times as small.
        model_size: width and height in pixels, 1 to 4096; None takes what the server advertises, which a client asks
            once, and 896 x 896 where nobody is asked or nothing is told.

    Raises:
        ConfigurationError: if a value cannot be used.
    """

    profile: Profile = "display"
    pad_square: bool = False
    resize: Literal["model"] | None = None
    model_size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.profile not in ("display", "ped-train"):
            raise ConfigurationError("profile: is neither 'display' nor 'ped-train'")
        if self.resize not in ("model", None):
            raise ConfigurationError("resize: is not 'model'; leave it out to keep the film's size")
        if self.model_size is not None and not is_size(self.model_size):
            raise ConfigurationError(f"model_size: give width and height, 1 to {_LARGEST_SIDE} pixels each")

    @property
    def asks_size(self) -> bool:
        """Whether the size is the server's to say."""
        return self.resize == "model" and self.model_size is None

    @property
    def tag(self) -> str:
        """All of it in a word, such as ``display`` or ``ped-train+square+896x896``."""
        size = "x".join(map(str, self.model_size or ("model",))) if self.resize == "model" else None
        return "+".join(filter(None, (self.profile, "square" if self.pad_square else None, size)))

    def sized(self, told: tuple[int, int] | None) -> Preparation:
        """The same with the size that the server told, if it is the server's to say."""
        return replace(self, model_size=told) if self.asks_size else self


def is_size(value: object) -> TypeGuard[Sequence[int]]:
    """Whether a value is a width and a height that a film may be stretched to."""
    return (
        isinstance(value, list | tuple)
        and len(value) == 2
        and all(isinstance(side, int) and 1 <= side <= _LARGEST_SIDE for side in value)
    )


DISPLAY = Preparation()
"""The default: correct display, aspect and size kept."""
