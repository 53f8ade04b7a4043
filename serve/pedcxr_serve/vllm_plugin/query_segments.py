"""Split a request's query tokens at its images, for `image_attention`.

This module imports neither torch nor vLLM, so that its tests run without them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive query tokens of one request that share an attention mask.

    Attributes:
        row: the request's row in the batch.
        length: number of query tokens, >= 0.
        seq_len: number of keys that the segment's last token attends to, counted from the start of the request.
        causal: whether earlier tokens of the segment attend to fewer keys than the last token.
    """

    row: int
    length: int
    seq_len: int
    causal: bool


def split(row: int, start: int, stop: int, images: Sequence[tuple[int, int]]) -> Iterator[Segment]:
    """Split the query tokens at positions ``[start, stop)`` of a request at its images.

    Args:
        row: the request's row in the batch.
        start: position of the first query token, which is the number of tokens already computed.
        stop: one past the last query token.
        images: ``(first, last)`` positions of each image's tokens, both inclusive, in ascending order.

    Raises:
        RuntimeError: if an image ends at or after ``stop``, which means that it was split over two steps.
    """
    position = start
    for first, last in images:
        if last < position or first >= stop:
            continue
        if last >= stop:
            raise RuntimeError(
                f"an image (tokens {first} to {last}) is split over two steps at token {stop}; start vLLM with "
                "--disable-chunked-mm-input, and with --max-num-batched-tokens no smaller than the longest prompt"
            )
        if first > position:
            yield Segment(row, first - position, first, causal=True)
        # A prefix-cache hit may cover the image's first tokens. The remaining tokens still attend to the whole image.
        begin = max(first, position)
        yield Segment(row, last + 1 - begin, last + 1, causal=False)
        position = last + 1
    if position < stop or start == stop:
        yield Segment(row, stop - position, stop, causal=True)
