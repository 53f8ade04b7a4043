"""Whether the demo checkpoint, served on the card, gives the tokens of transformers on the same card.

Variants run side by side: the model is so small that they do not disturb each other. ``bfloat16, heads of 256`` is the
same model with the heads of the published one (`wide_heads`).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from pedcxr_serve.demo import CHECKPOINT, expected_report
from pedcxr_serve.demo.findings import sample
from tests.benchmarks import transformers_baseline
from tests.benchmarks.gpu import wide_heads
from tests.benchmarks.gpu.rows import Rows, facts
from tests.benchmarks.transformers_baseline import Answers, Options
from tests.e2e.served_reports import UNSEEN, draw, served, token_ids
from tests.support.servers.local_server import server

_NAME = "pedcxr-demo"
_SHARE_OF_CARD, _KV_BYTES = 0.2, 2 << 30
"""Of a server. With a fixed KV cache, vLLM does not measure the memory, which the others change meanwhile."""


@dataclass(frozen=True, slots=True)
class Variant:
    """A way to serve the demo checkpoint, or its copy with wide heads."""

    dtype: str
    is_wide: bool

    @property
    def name(self) -> str:
        """The name in the table."""
        return self.dtype + ", heads of 256" * self.is_wide


def run(rows: Rows, folder: Path, *, device: str, films: int, loads: Sequence[int], side_by_side: int) -> None:
    """Serve films with each variant and each number in flight, and compare with transformers.

    Args:
        folder: for films, checkpoints and caches.
        device: ``"cuda"`` or ``"cpu"``.
        side_by_side: number of variants that run at once.
    """
    types = ("bfloat16", "float32") if device == "cuda" else ("float32",)
    variants = [Variant(dtype, is_wide) for dtype in types for is_wide in (False, True)]
    films_folder = folder / "phantoms"
    films_folder.mkdir(parents=True, exist_ok=True)
    seeds = range(UNSEEN, UNSEEN + films)
    studies = draw(films_folder, seeds)
    expected = [expected_report.text(sample(seed)) for seed in seeds]
    wide = folder / "wide"
    if not wide.exists():
        wide_heads.create(wide)

    def serve(variant: Variant) -> None:
        checkpoint = wide if variant.is_wide else CHECKPOINT
        options = Options(dtype=variant.dtype, device=device, margins=True)
        reference = transformers_baseline.ask(checkpoint, [study.question for study in studies], options=options)
        flags = ["--model", str(checkpoint), "--served-name", _NAME, "--dtype", variant.dtype, "--log-level", "info"]
        if device == "cuda":
            flags += ["--gpu-memory-utilization", str(_SHARE_OF_CARD), "--api-server-count", "1"]
            flags += ["--", "--kv-cache-memory-bytes", str(_KV_BYTES)]
        with server(*flags) as running:
            rows.add("fidelity", variant=variant.name, start_s=round(running.seconds, 1), **facts(running.log))
            for in_flight in loads:
                answers = served(running.url, studies, in_flight)
                ids, texts = map(token_ids, answers), (answer.choices[0].message.content for answer in answers)
                result = compare(reference, list(ids), [text or "" for text in texts], expected)
                rows.add("fidelity", variant=variant.name, in_flight=in_flight, films=len(studies), **result)

    with ThreadPoolExecutor(side_by_side) as pool:
        list(pool.map(serve, variants))


def compare(
    reference: Answers, ids: Sequence[list[int]], texts: Sequence[str], expected: Sequence[str]
) -> dict[str, Any]:
    """Compare served reports with those of transformers and with what was drawn.

    Returns:
        ``exact``, the reports with equal tokens; ``served_as_drawn`` and ``reference_as_drawn``, the texts as expected;
        ``largest_margin_lost``, by how much transformers preferred its token at the first difference of a report, at
        most, in logits; ``median_least_margin``, of the least certain token of each film; ``differences``.
    """
    differences = []
    for number, (served_ids, known) in enumerate(zip(ids, reference.ids, strict=True)):
        if served_ids != known:
            pairs = zip(served_ids, known, strict=False)
            shorter = min(len(served_ids), len(known))
            at = next((at for at, (one, other) in enumerate(pairs) if one != other), shorter)
            margin = (reference.margins[number][at:] or [0.0])[0]  # none after the longest report
            differences.append({"film": number, "token": at, "of": len(known), "margin": margin})
    return {
        "exact": len(ids) - len(differences),
        "served_as_drawn": sum(one == other for one, other in zip(texts, expected, strict=True)),
        "reference_as_drawn": sum(one == other for one, other in zip(reference.texts, expected, strict=True)),
        "largest_margin_lost": max((one["margin"] for one in differences), default=None),
        "median_least_margin": median(map(min, reference.margins)),
        "differences": differences,
    }
