"""Cutting a request's query tokens at its images. Pure; `attention` says what for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive query tokens of one request that share a mask.

    Attributes:
        row: the request's row in the batch.
        length: query tokens, >= 0.
        seq_len: keys the segment's last token may see, counted from the request's start.
        causal: whether earlier tokens of the segment see fewer keys than the last.
    """

    row: int
    length: int
    seq_len: int
    causal: bool


def split(row: int, start: int, stop: int, images: Sequence[tuple[int, int]]) -> Iterator[Segment]:
    """Cut the query tokens at positions ``[start, stop)`` of a request at its images.

    Args:
        row: the request's row in the batch.
        start: position of the first query token, which is the number of tokens already computed.
        stop: one past the last query token.
        images: ``(first, last)`` positions of each image's tokens, both inclusive, in ascending order.

    Raises:
        RuntimeError: if an image ends beyond ``stop``, that is, was split over two steps.
    """
    at = start
    for first, last in images:
        if last < at or first >= stop:
            continue
        if last >= stop:
            raise RuntimeError(
                f"an image (tokens {first}-{last}) is split over two steps at {stop}; start vLLM with "
                "--disable-chunked-mm-input and --max-num-batched-tokens of at least one prompt"
            )
        if first > at:
            yield Segment(row, first - at, first, causal=True)
        # A prefix-cache hit may have computed the image's first tokens; the rest still sees all of it.
        begin = max(first, at)
        yield Segment(row, last + 1 - begin, last + 1, causal=False)
        at = last + 1
    if at < stop or start == stop:
        yield Segment(row, stop - at, stop, causal=True)
