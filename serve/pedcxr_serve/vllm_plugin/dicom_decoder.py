"""A DICOM film to the pixels that pedcxr's client would send of it, by the client's own code.

So that a program in any language can send the file as it is. Age and sex are words of the prompt, which is the
caller's; what the film itself tells is checked here, as the client does before it sends.
"""

from __future__ import annotations

import atexit

from PIL import Image

from pedcxr_client import Check, InputError
from pedcxr_client.checks import rules
from pedcxr_client.films import dicom
from pedcxr_client.films import film as image
from pedcxr_client.films.pixel_stats import PixelStats
from pedcxr_serve.vllm_plugin.decoder_process import Darkroom
from pedcxr_serve.vllm_plugin.refusals import FilmRefused

CHECKS = ("modality", "presentation", "body-part", "human", "burned-in-text", "quality")
"""Those of `pedcxr_client.checks.rules` that need nothing but the film. A header that names another part than a chest
blocks; one that names none passes."""

_ASKED = rules.CallerFacts(assume_chest=True)
_darkroom = Darkroom()
atexit.register(_darkroom.close)


def is_dicom(data: bytes) -> bool:
    """Whether the bytes are DICOM, whatever they were called; the first 132 are enough."""
    return dicom.is_dicom(data)


def decode(data: bytes, *, max_pixels: int) -> Image.Image:
    """Check and develop a film; what its header decides is decided before any pixel is decoded.

    Args:
        data: the file.
        max_pixels: cap on the developed film. The client's own cap (50 million) is applied to the header, before.

    Returns:
        An image of mode RGB, equal to what the client's PNG of the same film decodes to.

    Raises:
        FilmRefused: with the check, or the element, that decided; nothing that identifies a person.
    """
    try:
        film = image.read(data)
        _require(rules.check(film.facts, _ASKED))
        pixels, stats = _darkroom.develop(data) if film.compressed else _developed(film)
    except InputError as error:
        if dicom.INSTALL in str(error):
            raise FilmRefused(f"{error} (on the server)", "dicom_not_installed") from error
        raise FilmRefused(str(error), "film_unreadable") from error
    _require(rules.check(film.facts, _ASKED, stats))
    width, height = pixels.size
    if width * height > max_pixels:
        raise FilmRefused(
            f"{width} x {height} pixels, at most {max_pixels:,} in all; send it smaller", "film_unreadable"
        )
    return pixels.convert("RGB")


def _developed(film: image.UndecodedFilm) -> tuple[Image.Image, PixelStats]:
    radiograph = film.develop()
    return radiograph.pixels, radiograph.stats


def _require(checks: tuple[Check, ...]) -> None:
    if reasons := [f"{one.name}: {one.why}" for one in checks if one.blocks and one.name in CHECKS]:
        raise FilmRefused(f"the film is outside the intended use. {'; '.join(reasons)}", "film_blocked")
