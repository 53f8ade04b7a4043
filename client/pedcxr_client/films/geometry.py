"""The last steps on 8-bit grey pixels: square pixels, the size, the look. Plain Pillow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeGuard

from pedcxr_client.errors import ConfigurationError, InputError
from pedcxr_client.films.files import MAX_PIXELS
from pedcxr_client.films.pixel_stats import PixelStats, measure

if TYPE_CHECKING:
    from PIL.Image import Image

Profile = Literal["display", "ped-train"]

MODEL_SIZE = (896, 896)
"""Width and height in pixels of what Gemma 3's image processor makes of every film."""

_LARGEST_SIDE = 4096
_TRAINED_SIDE = 896  # longest side of the films the model was tuned on


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


def finish(grey: Image, preparation: Preparation, aspect: float = 1.0) -> tuple[Image, PixelStats, list[str]]:
    """Bring a film of mode ``L`` to the size asked for.

    Args:
        grey: the film.
        preparation: what to do.
        aspect: height of a pixel by its width.

    Returns:
        the film, its look before it was resized to the model's input, and notes on what was done.

    Raises:
        InputError: if square pixels would make it larger than may be sent.
    """
    grey, notes = _square_pixels(grey, aspect)
    seen = measure(grey)
    if preparation.profile == "ped-train" and max(grey.size) > _TRAINED_SIDE:
        scale = _TRAINED_SIDE / max(grey.size)
        grey = _resized(grey, max(1, round(grey.width * scale)), max(1, round(grey.height * scale)))
        notes.append(f"shrunk to {grey.width} x {grey.height}")
    if preparation.pad_square and grey.width != grey.height:
        grey = _padded(grey)
        notes.append(f"padded with black to {grey.width} x {grey.height}")
    if preparation.resize == "model":
        grey = _resized(grey, *(preparation.model_size or MODEL_SIZE))
        notes.append(f"stretched to the model's {grey.width} x {grey.height}")
    return grey, seen, notes


def stretch_as_trained(grey: Image) -> tuple[Image, list[str]]:
    """Profile ``ped-train`` for 8-bit grey: percentiles 1-99 to 0-255, gamma 1.2."""
    counts = grey.histogram()
    total = grey.width * grey.height
    low, high = _level(counts, (total - 1) // 100), _level(counts, (total - 1) * 99 // 100)
    span = max(high - low, 1)
    table = [round(255 * min(max((level - low) / span, 0), 1) ** (1 / 1.2)) for level in range(256)]
    return grey.point(table), [f"ped-train: percentiles 1-99 ({low} to {high}) stretched, gamma 1.2"]


def _level(counts: list[int], rank: int) -> int:
    """The level of the pixel of this rank, the darkest being 0."""
    for level, count in enumerate(counts):
        rank -= count
        if rank < 0:
            return level
    return len(counts) - 1


def _square_pixels(grey: Image, aspect: float) -> tuple[Image, list[str]]:
    if aspect == 1:
        return grey, []
    # The longer side of a pixel grows to several, so that no detail is lost.
    width = round(grey.width / aspect) if aspect < 1 else grey.width
    height = round(grey.height * aspect) if aspect > 1 else grey.height
    if width * height > MAX_PIXELS:
        raise InputError(f"the film: has more than {MAX_PIXELS // 10**6} million pixels once they are square")
    return _resized(grey, width, height), [f"pixels {aspect:.3g} times as high as wide made square"]


def _padded(grey: Image) -> Image:
    from PIL import Image

    side = max(grey.size)
    square = Image.new("L", (side, side))
    square.paste(grey, ((side - grey.width) // 2, (side - grey.height) // 2))
    return square


def _resized(grey: Image, width: int, height: int) -> Image:
    from PIL import Image

    # Bilinear with antialiasing (Pillow's is), since the model's processor does the same; OpenCV's is off by 66 levels.
    return grey.resize((width, height), Image.Resampling.BILINEAR)
