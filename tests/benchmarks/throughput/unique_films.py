"""Films without end, none of them twice, so that no cache answers instead of the engine."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import count

from pedcxr_client.bench.bodies import PNG_HEAD, png_comment
from pedcxr_serve.demo import drawing
from pedcxr_serve.demo.findings import sample

_PHANTOMS = 8
_FIRST_SEED = 8_000_000  # training draws from lower seeds


def films(size: tuple[int, int] = drawing.SIZE) -> Iterator[bytes]:
    """Yield PNG files. Each is one of a few phantoms with a text chunk that no other file has.

    Args:
        size: height and width in pixels.
    """
    seeds = range(_FIRST_SEED, _FIRST_SEED + _PHANTOMS)
    phantoms = [drawing.encode_png(drawing.render(sample(seed), seed, size=size)) for seed in seeds]
    for number in count(time.time_ns()):
        film = phantoms[number % _PHANTOMS]
        yield film[:PNG_HEAD] + png_comment(number) + film[PNG_HEAD:]
