"""The last steps on 8-bit grey pixels: square pixels, the size, the look. Plain Pillow."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pedcxr_client.errors import InputError
from pedcxr_client.films.limits import MAX_PIXELS
from pedcxr_client.films.pixel_stats import PixelStats, measure
from pedcxr_client.films.preparation import MODEL_SIZE

if TYPE_CHECKING:
    from PIL.Image import Image

    from pedcxr_client.films.preparation import Preparation

_TRAINED_SIDE = 896  # longest side of the films the model was tuned on


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
