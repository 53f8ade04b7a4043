"""Prepare 8-bit grey pixels: square pixels, padding, size, and the measurements for the checks. Needs only Pillow."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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

MIN_SPREAD = 64
"""Minimum difference between percentiles 2 and 98 of a film's 255 grey levels. The least of 20 chest films is 144."""

MIN_LEVELS = 48
"""Minimum number of distinct grey levels among 4,096 pixels. The least of 20 chest films is 174."""

_THUMBNAIL_SIDE = 64
# The pattern of a frontal film in the thumbnail: a bright middle (spine and heart) between two dark lungs. Each is a
# box of 9 x 21 pixels. The middle box may be centred anywhere in _MIDDLE (left, upper, right, lower).
_BOX_RADII, _LUNG_SHIFT, _LUNG_RISE, _MIDDLE = (4, 10), 12, 8, (24, 30, 40, 42)
_INVERTED_DIFFERENCE = 10  # grey levels by which a dark middle must exceed the bright middle
_TURNED_DIFFERENCE = 15  # grey levels by which the bright middle of the turned film must exceed it
# Upside down, both patterns are similar. The abdomen, which is brighter than the shoulders and the neck, decides.
_UPSIDE_DOWN_DIFFERENCE, _UPPER, _LOWER = 10, (16, 4, 48, 20), (16, 44, 48, 60)


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
        spread: grey levels between the 2nd and the 98th percentile, 0 to 255.
        levels: distinct grey levels among 4,096 pixels, 1 to 256.
        dark_middle: the middle (spine and heart) is darker than both lungs, as on an inverted film.
        turned: 90, 180 or 270 if the film appears to be turned clockwise by that angle, else 0.
        steps: the notes on the steps that determined the grey levels.

    Measured on 20 chest films (16 of children) and 13 DICOM variants of one of them, at 6 sizes from 256 pixels to the
    original: no false alarm, every inverted film and every film turned by 90 or 270 degrees recognised, and 97 % of
    those turned by 180 degrees (``pytest tests/client/films/test_preparation.py -k appear``). The limits were chosen
    on the same films. Lateral films were not measured.
    """

    width: int
    height: int
    spread: int
    levels: int
    dark_middle: bool = False
    turned: int = 0
    steps: str = ""


def measure(pixels: Image, steps: Iterable[str] = ()) -> PixelStats:
    """Measure 8-bit grey or RGB pixels. ``steps`` are the notes for `PixelStats.steps`."""
    from PIL import Image

    # Nearest neighbour: 4,096 samples suffice, and the cost does not depend on the size of the film.
    thumbnail = pixels.resize((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE), Image.Resampling.NEAREST).convert("L")
    levels = sorted(thumbnail.tobytes())
    dark_middle, turned = _appearance(thumbnail)
    return PixelStats(
        width=pixels.width,
        height=pixels.height,
        spread=levels[-len(levels) // 50] - levels[len(levels) // 50],
        levels=len(set(levels)),
        dark_middle=dark_middle,
        turned=turned,
        steps="; ".join(steps),
    )


def _appearance(thumbnail: Image) -> tuple[bool, int]:
    """Return whether a film appears inverted, and by how many degrees clockwise it appears turned."""
    from PIL import Image

    transposes = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}
    bright, dark = _middle(thumbnail)
    turned = {angle: _middle(thumbnail.transpose(back))[0] for angle, back in transposes.items()}
    angle = max(turned, key=turned.__getitem__)
    lower_is_darker = _mean(thumbnail, _UPPER) - _mean(thumbnail, _LOWER) >= _UPSIDE_DOWN_DIFFERENCE
    if turned[angle] > dark and turned[angle] - bright >= _TURNED_DIFFERENCE and (angle != 180 or lower_is_darker):
        return False, angle
    return dark - bright >= _INVERTED_DIFFERENCE, 0


def _middle(thumbnail: Image) -> tuple[int, int]:
    """Return by how many grey levels a middle is brighter, and a middle is darker, than both lungs beside it."""
    from PIL import ImageChops, ImageFilter

    means = thumbnail.filter(ImageFilter.BoxBlur(_BOX_RADII))
    left, upper, right, lower = _MIDDLE
    middle = means.crop(_MIDDLE)
    first, second = (
        means.crop((left + shift, upper - _LUNG_RISE, right + shift, lower - _LUNG_RISE))
        for shift in (-_LUNG_SHIFT, _LUNG_SHIFT)
    )
    brighter = ImageChops.darker(ImageChops.subtract(middle, first), ImageChops.subtract(middle, second))
    darker = ImageChops.darker(ImageChops.subtract(first, middle), ImageChops.subtract(second, middle))
    return max(brighter.tobytes()), max(darker.tobytes())


def apply_preparation(
    grey: Image, preparation: Preparation, aspect: float = 1.0, steps: Sequence[str] = ()
) -> tuple[Image, PixelStats, list[str]]:
    """Make the pixels square, then pad and resize the film as the preparation states.

    ``aspect`` is the height of a pixel divided by its width, ``steps`` are for `PixelStats.steps`. Return the film, its
    measurements before padding and resizing, and notes on each step.
    """
    grey, notes = _square_pixels(grey, aspect)
    stats = measure(grey, steps)
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
