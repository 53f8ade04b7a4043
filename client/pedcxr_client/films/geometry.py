"""Prepare 8-bit grey pixels: square pixels, padding, size, and the measurements for the checks. Needs only Pillow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeGuard

from pedcxr_client.errors import ConfigurationError, InputError
from pedcxr_client.films.files import MAX_PIXELS

if TYPE_CHECKING:
    from PIL.Image import Image

Profile = Literal["display", "ped-train"]

MODEL_SIZE = (896, 896)
"""Width and height in pixels to which Gemma 3's image processor resizes every film."""

_MAX_SIDE = 4096
_TRAINING_SIDE = 896  # longest side of the films of the fine-tuning

_THUMBNAIL_SIDE = 64
_FLAT_RANGE = 8  # grey levels between the 2nd and the 98th percentile
_DARK_DIFFERENCE = 15  # grey levels
# Boxes in the thumbnail: left, upper, right, lower.
_MIDDLE, _LEFT_LUNG, _RIGHT_LUNG = (28, 20, 36, 50), (14, 18, 24, 38), (40, 18, 50, 38)


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """How a film's pixels are prepared before they are sent. Each step is recorded in ``how``.

    Attributes:
        profile: ``"display"`` renders a film as a viewer does (DICOM PS3.3 C.11: modality LUT, VOI LUT or window,
            MONOCHROME1 inverted once). ``"ped-train"`` imitates the films of the fine-tuning: stored values,
            percentiles 1-99 stretched to 0-255, gamma 1.2 (brighter), long side at most 896, not inverted.
        pad_square: pad the short side with black, half on each end, until the film is square.
        resize: ``"model"`` stretches the film to ``model_size`` with Pillow's antialiased bilinear filter, as the
            server's own processor does. The request body becomes about six times smaller.
        model_size: width and height in pixels, 1 to 4096. None uses the size that the server advertises, which the
            client requests once, or 896 x 896 if no server is contacted or the server states no size.

    Raises:
        ConfigurationError: if a value is invalid.
    """

    profile: Profile = "display"
    pad_square: bool = False
    resize: Literal["model"] | None = None
    model_size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.profile not in ("display", "ped-train"):
            raise ConfigurationError("profile: must be 'display' or 'ped-train'")
        if self.resize not in ("model", None):
            raise ConfigurationError("resize: must be 'model'; omit it to keep the film's size")
        if self.model_size is not None and not is_size(self.model_size):
            raise ConfigurationError(f"model_size: width and height must each be between 1 and {_MAX_SIDE} pixels")

    @property
    def asks_size(self) -> bool:
        """Whether the server determines the size."""
        return self.resize == "model" and self.model_size is None

    @property
    def tag(self) -> str:
        """All settings in one word, such as ``display`` or ``ped-train+square+896x896``."""
        size = "x".join(map(str, self.model_size or ("model",))) if self.resize == "model" else None
        return "+".join(filter(None, (self.profile, "square" if self.pad_square else None, size)))

    def sized(self, server_size: tuple[int, int] | None) -> Preparation:
        """Return a copy with the server's size if the server determines it, else the preparation itself."""
        return replace(self, model_size=server_size) if self.asks_size else self


def is_size(value: object) -> TypeGuard[Sequence[int]]:
    """Return whether a value is a width and a height, each an integer between 1 and 4096."""
    return (
        isinstance(value, list | tuple)
        and len(value) == 2
        and all(isinstance(side, int) and 1 <= side <= _MAX_SIDE for side in value)
    )


DISPLAY = Preparation()
"""The default: rendered as a viewer does, aspect ratio and size unchanged."""


@dataclass(frozen=True, slots=True)
class PixelStats:
    """Measurements of a film's pixels.

    Attributes:
        width, height: in pixels, after non-square pixels were resampled and before the resize to the model's input.
        flat: nearly constant: fewer than 8 of 255 grey levels between the 2nd and the 98th percentile.
        dark_middle: the middle (spine and heart) is at least 15 levels darker than both lungs, as on an inverted film.
            True for 0 of 19 chest films, and for 18 of the same 19 films inverted.
    """

    width: int
    height: int
    flat: bool
    dark_middle: bool


def measure(pixels: Image) -> PixelStats:
    """Measure 8-bit grey or RGB pixels."""
    from PIL import Image

    # Nearest neighbour: 4,096 samples suffice, and the cost does not depend on the size of the film.
    thumbnail = pixels.resize((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE), Image.Resampling.NEAREST).convert("L")
    levels = sorted(thumbnail.tobytes())
    low, high = levels[len(levels) // 50], levels[-len(levels) // 50]
    lungs = min(_mean(thumbnail, _LEFT_LUNG), _mean(thumbnail, _RIGHT_LUNG))
    return PixelStats(
        width=pixels.width,
        height=pixels.height,
        flat=high - low < _FLAT_RANGE,
        dark_middle=lungs - _mean(thumbnail, _MIDDLE) >= _DARK_DIFFERENCE,
    )


def apply_preparation(
    grey: Image, preparation: Preparation, aspect: float = 1.0
) -> tuple[Image, PixelStats, list[str]]:
    """Make the pixels square, then pad and resize the film as the preparation states.

    ``aspect`` is the height of a pixel divided by its width. Return the film, its measurements before padding and
    resizing, and notes on each step.
    """
    grey, notes = _square_pixels(grey, aspect)
    stats = measure(grey)
    if preparation.profile == "ped-train" and max(grey.size) > _TRAINING_SIDE:
        scale = _TRAINING_SIDE / max(grey.size)
        grey = _resample(grey, max(1, round(grey.width * scale)), max(1, round(grey.height * scale)))
        notes.append(f"shrunk to {grey.width} x {grey.height}")
    if preparation.pad_square and grey.width != grey.height:
        grey = _pad(grey)
        notes.append(f"padded with black to {grey.width} x {grey.height}")
    if preparation.resize == "model":
        grey = _resample(grey, *(preparation.model_size or MODEL_SIZE))
        notes.append(f"stretched to the model's {grey.width} x {grey.height}")
    return grey, stats, notes


def stretch_as_trained(grey: Image) -> tuple[Image, list[str]]:
    """Apply profile ``ped-train`` to 8-bit grey: percentiles 1-99 to 0-255, gamma 1.2."""
    counts = grey.histogram()
    total = grey.width * grey.height
    low, high = _level_at_rank(counts, (total - 1) // 100), _level_at_rank(counts, (total - 1) * 99 // 100)
    span = max(high - low, 1)
    table = [round(255 * min(max((level - low) / span, 0), 1) ** (1 / 1.2)) for level in range(256)]
    return grey.point(table), [f"ped-train: percentiles 1-99 ({low} to {high}) stretched, gamma 1.2"]


def _mean(thumbnail: Image, box: tuple[int, int, int, int]) -> float:
    levels = thumbnail.crop(box).tobytes()
    return sum(levels) / len(levels)


def _level_at_rank(counts: list[int], rank: int) -> int:
    for level, count in enumerate(counts):
        rank -= count
        if rank < 0:
            return level
    return len(counts) - 1


def _square_pixels(grey: Image, aspect: float) -> tuple[Image, list[str]]:
    if aspect == 1:
        return grey, []
    # Upsample along the longer side of a pixel, so that no detail is lost.
    width = round(grey.width / aspect) if aspect < 1 else grey.width
    height = round(grey.height * aspect) if aspect > 1 else grey.height
    if width * height > MAX_PIXELS:
        raise InputError(f"the film: has more than {MAX_PIXELS // 10**6} million pixels once they are square")
    return _resample(grey, width, height), [f"pixels {aspect:.3g} times as high as wide made square"]


def _pad(grey: Image) -> Image:
    from PIL import Image

    side = max(grey.size)
    square = Image.new("L", (side, side))
    square.paste(grey, ((side - grey.width) // 2, (side - grey.height) // 2))
    return square


def _resample(grey: Image, width: int, height: int) -> Image:
    from PIL import Image

    # The model's processor uses Pillow's bilinear filter, which is antialiased. OpenCV's differs by up to 66 levels.
    return grey.resize((width, height), Image.Resampling.BILINEAR)
