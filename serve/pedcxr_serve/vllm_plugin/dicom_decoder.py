"""Decode a DICOM film to the pixels that the Python client would send, with the client's own code.

Programs in other languages can therefore send the DICOM file unchanged. Age and sex belong to the prompt, which the
caller writes. The film's own header and pixels are checked here, as the client checks them before it sends a film.
"""

from __future__ import annotations

from PIL import Image

from pedcxr_client import Check, InputError
from pedcxr_client.checks import rules
from pedcxr_client.films import decoders, dicom, film
from pedcxr_client.films.film import UndecodedFilm
from pedcxr_client.films.geometry import PixelStats
from pedcxr_serve.vllm_plugin import decoder_process
from pedcxr_serve.vllm_plugin.refusals import FilmRefused

CHECKS = ("modality", "presentation", "body-part", "orientation", "human", "burned-in-text", "quality")
"""The checks of `pedcxr_client.checks.rules` that need only the film. A header that names a body part other than the
chest blocks the film; a header without a body part passes."""

_CALLER = rules.CallerFacts(assume_chest=True)


def is_dicom(data: bytes) -> bool:
    """Return whether the data is DICOM, whatever its declared MIME type; the first 132 bytes are enough."""
    return dicom.is_dicom(data)


def decode(data: bytes, *, max_pixels: int) -> Image.Image:
    """Check and decode a film. The header checks run before any pixel is decoded.

    Args:
        data: the DICOM file.
        max_pixels: limit on the decoded film. The client's limit of 50 million pixels is applied to the header first.

    Returns:
        An image of mode RGB, equal to the decoded PNG that the client makes of the same film.

    Raises:
        FilmRefused: names the check or the DICOM element that failed, and holds nothing that identifies a person.
    """
    try:
        undecoded = film.read(data)
        _require(rules.check(undecoded.facts, _CALLER))
        pixels, stats = decoder_process.shared_pool.decode(data) if undecoded.compressed else _decode_here(undecoded)
    except InputError as error:
        if decoders.INSTALL in str(error):
            raise FilmRefused(f"{error} (on the server)", "dicom_not_installed") from error
        raise FilmRefused(str(error), "film_unreadable") from error
    _require(rules.check(undecoded.facts, _CALLER, stats))
    width, height = pixels.size
    if width * height > max_pixels:
        raise FilmRefused(
            f"the film has {width} x {height} pixels, and at most {max_pixels:,} are allowed; send a smaller film",
            "film_unreadable",
        )
    return pixels.convert("RGB")


def _decode_here(film: UndecodedFilm) -> tuple[Image.Image, PixelStats]:
    radiograph = film.render()
    return radiograph.pixels, radiograph.stats


def _require(checks: tuple[Check, ...]) -> None:
    if reasons := [f"{check.name}: {check.why}" for check in checks if check.blocks and check.name in CHECKS]:
        raise FilmRefused(f"the film is outside the intended use. {'; '.join(reasons)}", "film_blocked")
