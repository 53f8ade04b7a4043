"""Add Gemma 3's bidirectional image attention to vLLM's CPU backend.

Written for vLLM 0.32: ``v1/attention/backends/cpu_attn.py`` never reads ``mm_req_doc_ranges`` of
``CommonAttentionMetadata``, so image tokens attend causally there and reports are wrong without an error. This module
passes a prefill with an image to the kernel as up to three consecutive query segments of the same request:

    positions      0 ........ first ........... last ........ seq_len
    segment        |  causal   |   non-causal    |   causal    |
    attends up to     itself      last (the whole   itself
                                  image)

Each segment repeats the request's row of the block table. vLLM writes all keys of a step before attention runs, so one
kernel call serves all segments. An image must not be split over two steps (``--disable-chunked-mm-input``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend, CPUAttentionMetadata, CPUAttentionMetadataBuilder

from pedcxr_serve.vllm_plugin.query_segments import Segment, split

if TYPE_CHECKING:
    from vllm.v1.attention.backend import CommonAttentionMetadata


class ImagePrefixCPUBuilder(CPUAttentionMetadataBuilder):
    """Builder of CPU_ATTN's metadata in which each image of the step is a separate non-causal segment."""

    def build(
        self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False
    ) -> CPUAttentionMetadata:
        """Build a step's metadata; see ``AttentionMetadataBuilder.build`` (vLLM 0.32, ``v1/attention/backend.py``)."""
        images = common_attn_metadata.mm_req_doc_ranges
        if images:
            segments = _segments(common_attn_metadata, images)
            if not all(segment.causal for segment in segments):
                common_attn_metadata = _with_segments(common_attn_metadata, segments)
        return super().build(common_prefix_len, common_attn_metadata, fast_build)


class ImagePrefixCPUBackend(CPUAttentionBackend):
    """CPU_ATTN with `ImagePrefixCPUBuilder`; kernels and cache layout are those of vLLM."""

    @staticmethod
    def get_builder_cls() -> type[ImagePrefixCPUBuilder]:
        """Return the builder class, of which vLLM creates one instance per KV cache group."""
        return ImagePrefixCPUBuilder


def _segments(common: CommonAttentionMetadata, images: dict[int, list[tuple[int, int]]]) -> list[Segment]:
    stops = common.seq_lens.tolist()
    starts = common.query_start_loc.tolist()
    segments: list[Segment] = []
    for row, stop in enumerate(stops):
        length = starts[row + 1] - starts[row]
        segments.extend(split(row, stop - length, stop, sorted(images.get(row, ()))))
    return segments


def _with_segments(common: CommonAttentionMetadata, segments: list[Segment]) -> CommonAttentionMetadata:
    lengths = torch.tensor([segment.length for segment in segments], dtype=torch.int32)
    query_start_loc = torch.zeros(len(segments) + 1, dtype=torch.int32)
    torch.cumsum(lengths, 0, out=query_start_loc[1:])
    rows = torch.tensor([segment.row for segment in segments], dtype=torch.long)
    return common.replace(
        query_start_loc=query_start_loc,
        query_start_loc_cpu=query_start_loc,
        seq_lens=torch.tensor([segment.seq_len for segment in segments], dtype=torch.int32),
        num_reqs=len(segments),
        max_query_len=int(lengths.max()),
        block_table_tensor=common.block_table_tensor[rows],
        # The kernel requires int32 and refuses a bool tensor (vLLM 0.32, csrc/cpu/cpu_attn.cpp).
        causal=torch.tensor([int(segment.causal) for segment in segments], dtype=torch.int32),
    )
