"""Cutting prefills at their images."""

from __future__ import annotations

import itertools

import pytest

from pedcxr_serve.vllm_plugin.query_segments import Segment, split

IMAGE = (5, 68)


def cut(start: int, stop: int, *images: tuple[int, int]) -> list[Segment]:
    return list(split(3, start, stop, images))


def test_a_prefill_with_an_image() -> None:
    assert cut(0, 80, IMAGE) == [Segment(3, 5, 5, True), Segment(3, 64, 69, False), Segment(3, 11, 80, True)]


def test_a_cached_prefix_that_ends_inside_the_image() -> None:
    assert cut(32, 80, IMAGE) == [Segment(3, 37, 69, False), Segment(3, 11, 80, True)]


def test_a_cached_prefix_that_ends_at_the_image_or_behind_it() -> None:
    assert cut(5, 80, IMAGE) == [Segment(3, 64, 69, False), Segment(3, 11, 80, True)]
    assert cut(69, 80, IMAGE) == [Segment(3, 11, 80, True)]


def test_decoding_and_text_stay_causal() -> None:
    assert cut(80, 81, IMAGE) == [Segment(3, 1, 81, True)]
    assert cut(0, 20) == [Segment(3, 20, 20, True)]


def test_a_chunk_before_the_image() -> None:
    assert cut(0, 5, IMAGE) == [Segment(3, 5, 5, True)]


def test_a_chunk_that_ends_with_the_image() -> None:
    assert cut(0, 69, IMAGE) == [Segment(3, 5, 5, True), Segment(3, 64, 69, False)]


def test_a_padding_row() -> None:
    assert cut(0, 0, IMAGE) == [Segment(3, 0, 0, True)]


def test_an_image_split_over_two_steps_is_refused() -> None:
    with pytest.raises(RuntimeError, match="--disable-chunked-mm-input"):
        cut(0, 40, IMAGE)


@pytest.mark.parametrize("images", [(), (IMAGE,), ((0, 3), (4, 9)), ((2, 3), (7, 7), (30, 60))])
def test_every_query_token_stands_in_one_segment_that_sees_what_it_must(images: tuple[tuple[int, int], ...]) -> None:
    stop = 90
    starts = [start for start in range(stop) if not any(first < start <= last for first, last in images)]
    inside = [start for start in range(stop) if start not in starts]
    for start in itertools.chain(starts, inside):
        at = start
        for segment in cut(start, stop, *images):
            for position in range(at, at + segment.length):
                image = next((one for one in images if one[0] <= position <= one[1]), None)
                sees = segment.seq_len if not segment.causal else segment.seq_len - (at + segment.length - 1 - position)
                assert sees == (image[1] + 1 if image else position + 1)
            at += segment.length
        assert at == stop
