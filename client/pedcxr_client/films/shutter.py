"""Read the display shutters of a film: the borders that a viewer covers with black (PS3.3 C.7.6.11)."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pedcxr_client.films.header.elements import text

Mask: TypeAlias = NDArray[np.bool_]

_MAX_PLACES = 8192  # two per vertex; drawing takes time in proportion to vertices x rows
_MAX_PLACE = 1e6  # in pixels
_SHAPES = ("RECTANGULAR", "CIRCULAR", "POLYGONAL")


def read(header: Any, rows: int, columns: int, aspect: float = 1.0) -> tuple[Mask | None, list[str]]:
    """Return the pixels that the display shutters hide, and notes.

    A pixel is visible if it is inside every shutter, edges included. A shutter whose elements are damaged is ignored,
    and so are shutters that hide every pixel: no viewer could have shown that film. ShutterPresentationValue, the grey
    of the covered area, is not read.

    Args:
        header: a ``pydicom.Dataset``.
        rows, columns: the size of the film.
        aspect: the height of a pixel divided by its width.

    Returns:
        A mask of shape (rows, columns), True where hidden, or None if no pixel is hidden.
    """
    visible = np.ones((rows, columns), bool)
    applied, notes = [], []
    for shape in dict.fromkeys(text(header, "ShutterShape").upper().split()):
        inside = _inside(header, shape, visible.shape, aspect) if shape in _SHAPES else None
        if inside is None:
            kind = shape.lower() if shape in _SHAPES else "unknown"
            notes.append(f"display shutter ignored ({kind}): its elements are damaged or not supported")
        elif not inside.all():
            applied.append(shape.lower())
            visible &= inside
    if not visible.any():
        return None, [*notes, f"display shutter ignored ({', '.join(applied)}): it hides every pixel"]
    if not applied:
        return None, notes
    return ~visible, [*notes, f"display shutter rendered black ({', '.join(applied)})"]


def _inside(header: Any, shape: str, size: tuple[int, ...], aspect: float) -> Mask | None:
    """Return the pixels inside a shutter, or None if its elements are damaged. Rows and columns start at 1."""
    rows, columns = np.arange(1, size[0] + 1)[:, None], np.arange(1, size[1] + 1)[None, :]
    if shape == "RECTANGULAR":
        sides = ("LeftVertical", "RightVertical", "UpperHorizontal", "LowerHorizontal")
        edges = [place for side in sides for place in _places(header, f"Shutter{side}Edge")]
        if len(edges) != 4 or edges[0] > edges[1] or edges[2] > edges[3]:
            return None
        left, right, upper, lower = edges
        return (rows >= upper) & (rows <= lower) & (columns >= left) & (columns <= right)
    if shape == "CIRCULAR":
        center, radius = _places(header, "CenterOfCircularShutter"), _places(header, "RadiusOfCircularShutter")
        if len(center) != 2 or len(radius) != 1 or radius[0] <= 0:
            return None
        # The radius is in pixels along a row; a circle covers fewer rows if pixels are higher than wide.
        return ((rows - center[0]) * aspect) ** 2 + (columns - center[1]) ** 2 <= radius[0] ** 2
    places = _places(header, "VerticesOfThePolygonalShutter")
    if len(places) < 6 or len(places) % 2:
        return None
    image = Image.new("L", (size[1], size[0]))
    ImageDraw.Draw(image).polygon([(x - 1, y - 1) for y, x in zip(places[::2], places[1::2], strict=True)], fill=1)
    return np.asarray(image, bool)


def _places(header: Any, keyword: str) -> list[float]:
    """Return the numbers of an element, or an empty list if one cannot be read or is out of range."""
    try:
        value = header[keyword].value
        items = value if hasattr(value, "__len__") and not isinstance(value, str | bytes) else [value]
        if len(items) > _MAX_PLACES:
            return []
        places = [float(str(item)) for item in items]
    except Exception:  # pydicom converts a value on access, which raises many exception types
        return []
    return places if all(abs(place) <= _MAX_PLACE for place in places) else []
