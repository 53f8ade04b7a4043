"""``python -m pedcxr_serve.demo.train --out DIR``: make the demo checkpoint from a seed, on two cores.

1. The tower learns from the findings alone: without this the text learns to ignore the film.
2. Everything learns from the report's words, films whose wording follows the age more often than others.
3. The same again, more gently, and crowded films more often too.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import trange
from transformers import Gemma3ForConditionalGeneration

from . import evaluate, model_card, phantom
from . import model as shape
from .films import Films, Writer, draw, vary

FILMS = 8_000
BATCH = 16
TOWER_STEPS, TOWER_PEAK = 3_800, 1.5e-3
REPORT_STEPS, REPORT_PEAK = 2_200, 1e-3
POLISH_STEPS, POLISH_PEAK = 450, 5e-4


class _Steps:
    """AdamW in one cycle of the learning rate, with clipped gradients."""

    def __init__(self, parts: list[nn.Parameter], steps: int, peak: float) -> None:
        self.parts = parts
        self.adam = torch.optim.AdamW(parts, lr=peak, weight_decay=0.01, betas=(0.9, 0.98))
        self.cycle = torch.optim.lr_scheduler.OneCycleLR(self.adam, peak, total_steps=steps, pct_start=0.15)

    def take(self, loss: Tensor) -> None:
        self.adam.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.parts, 1.0)
        self.adam.step()
        self.cycle.step()


def teach_tower(model: Gemma3ForConditionalGeneration, films: Films, steps: int, source: torch.Generator) -> None:
    """Stage 1: vision tower and projector by the findings on each film."""
    head = nn.Linear(model.config.text_config.hidden_size, len(phantom.FINDINGS))
    tower, projector = model.model.vision_tower, model.model.multi_modal_projector
    learn = _Steps([*tower.parameters(), *projector.parameters(), *head.parameters()], steps, TOWER_PEAK)
    bar = trange(steps, desc="tower")
    for step in bar:
        rows = torch.randint(0, len(films.pixels), (BATCH,), generator=source)
        with torch.autocast("cpu", torch.bfloat16):
            seen = tower(pixel_values=vary(films.pixels[rows], source)).last_hidden_state
            logits = head(projector(seen).mean(1)).float()
        loss = nn.functional.binary_cross_entropy_with_logits(logits, films.shown[rows])
        learn.take(loss)
        if step % 50 == 0:
            right = ((logits > 0) == (films.shown[rows] > 0)).all(1).float().mean()
            bar.set_postfix(loss=f"{loss.item():.4f}", films_right=f"{right.item():.0%}")


def teach_reports(
    model: Gemma3ForConditionalGeneration,
    films: Films,
    often: tuple[Tensor, ...],
    writer: Writer,
    steps: int,
    peak: float,
    source: torch.Generator,
) -> None:
    """Stages 2 and 3: every weight by the tokens of the report; a quarter of each batch from each of ``often``."""
    learn = _Steps(list(model.parameters()), steps, peak)
    model.train()
    bar = trange(steps, desc="reports")
    for step in bar:
        share = BATCH // 4
        rows = torch.randint(0, len(films.pixels), (BATCH - share * len(often),), generator=source)
        for some in often:
            rows = torch.cat([rows, some[torch.randint(0, len(some), (share,), generator=source)]])
        batch = writer.pairs([films.findings[row] for row in rows.tolist()])
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(pixel_values=vary(films.pixels[rows], source), **batch).loss
        learn.take(loss)
        if step % 50 == 0:
            bar.set_postfix(loss=f"{loss.item():.4f}")


def train(
    out: Path, seed: int, *, films: int, tower_steps: int, report_steps: int, polish_steps: int, unseen: int
) -> evaluate.Result:
    """Train, save, measure on ``unseen`` phantoms and write the model card; ``out`` is replaced whole."""
    start = time.monotonic()
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)
    source = torch.Generator().manual_seed(seed)
    making = out.with_name(out.name + ".new")
    shutil.rmtree(making, ignore_errors=True)
    processor = shape.save_processor(making)
    model = shape.make(len(processor.tokenizer))
    material = draw(range(films), processor)
    teach_tower(model, material, tower_steps, source)
    by_age = material.shown[:, phantom.FINDINGS.index(phantom.Finding(phantom.Kind.WIDE_MEDIASTINUM))].nonzero()[:, 0]
    crowded = (material.shown.sum(1) >= 3).nonzero()[:, 0]
    teach_reports(model, material, (by_age,), Writer(processor, seed), report_steps, REPORT_PEAK, source)
    source = torch.Generator().manual_seed(seed + 1)
    writer = Writer(processor, seed + 1)
    teach_reports(model, material, (by_age, crowded), writer, polish_steps, POLISH_PEAK, source)
    shape.save(model, making)
    minutes = (time.monotonic() - start) / 60
    result = evaluate.run(making, unseen)
    (making / "README.md").write_text(model_card.text(result, seed=seed, minutes=minutes, films=films))
    shape.replace(making, out)
    return result


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder to make; an old one is replaced at the end")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--films", type=int, default=FILMS)
    parser.add_argument("--tower-steps", type=int, default=TOWER_STEPS)
    parser.add_argument("--report-steps", type=int, default=REPORT_STEPS)
    parser.add_argument("--polish-steps", type=int, default=POLISH_STEPS)
    parser.add_argument("--unseen", type=int, default=500, help="phantoms to measure on")
    args = parser.parse_args()
    torch.set_num_threads(2)
    result = train(
        args.out,
        args.seed,
        films=args.films,
        tower_steps=args.tower_steps,
        report_steps=args.report_steps,
        polish_steps=args.polish_steps,
        unseen=args.unseen,
    )
    print(evaluate.table(result))


if __name__ == "__main__":
    main()
