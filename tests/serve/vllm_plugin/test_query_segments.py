"""Splitting prefills at their images."""

from __future__ import annotations

import itertools

import pytest

from pedcxr_serve.vllm_plugin.query_segments import Segment, split

IMAGE = (5, 68)


def segments(start: int, stop: int, *images: tuple[int, int]) -> list[Segment]:
    return list(split(3, start, stop, images))


def test_prefill_with_an_image() -> None:
    assert segments(0, 80, IMAGE) == [Segment(3, 5, 5, True), Segment(3, 64, 69, False), Segment(3, 11, 80, True)]


def test_cached_prefix_that_ends_inside_the_image() -> None:
    assert segments(32, 80, IMAGE) == [Segment(3, 37, 69, False), Segment(3, 11, 80, True)]


def test_cached_prefix_that_ends_before_or_after_the_image() -> None:
    assert segments(5, 80, IMAGE) == [Segment(3, 64, 69, False), Segment(3, 11, 80, True)]
    assert segments(69, 80, IMAGE) == [Segment(3, 11, 80, True)]


def test_decoding_and_text_are_causal() -> None:
    assert segments(80, 81, IMAGE) == [Segment(3, 1, 81, True)]
    assert segments(0, 20) == [Segment(3, 20, 20, True)]


def test_chunk_before_the_image() -> None:
    assert segments(0, 5, IMAGE) == [Segment(3, 5, 5, True)]


def test_chunk_that_ends_with_the_image() -> None:
    assert segments(0, 69, IMAGE) == [Segment(3, 5, 5, True), Segment(3, 64, 69, False)]


def test_padding_row() -> None:
    assert segments(0, 0, IMAGE) == [Segment(3, 0, 0, True)]


def test_image_split_over_two_steps_is_refused() -> None:
    with pytest.raises(RuntimeError, match="--disable-chunked-mm-input"):
        segments(0, 40, IMAGE)


@pytest.mark.parametrize("images", [(), (IMAGE,), ((0, 3), (4, 9)), ((2, 3), (7, 7), (30, 60))])
def test_every_query_token_attends_to_the_right_keys(images: tuple[tuple[int, int], ...]) -> None:
    stop = 90
    starts = [start for start in range(stop) if not any(first < start <= last for first, last in images)]
    inside = [start for start in range(stop) if start not in starts]
    for start in itertools.chain(starts, inside):
        offset = start
        for segment in segments(start, stop, *images):
            for position in range(offset, offset + segment.length):
                image = next(((first, last) for first, last in images if first <= position <= last), None)
                later_tokens = offset + segment.length - 1 - position
                keys = segment.seq_len - (later_tokens if segment.causal else 0)
                assert keys == (image[1] + 1 if image else position + 1)
            offset += segment.length
        assert offset == stop
