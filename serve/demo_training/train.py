"""``python -m demo_training.train --out DIR``: make the demo checkpoint from a seed, on two cores.

1. The tower learns from the findings alone: without this the text learns to ignore the film.
2. Everything learns from the report's words, films whose wording follows the age more often than others.
3. The same again, more gently, and crowded films more often too.
4. Once more on new films, most of them crowded, those with a pneumothorax more often too, and two ages in five among
   those whose words are alike. What is kept is the mean of the weights over the second half of its steps, averaged with
   what went in, since the two err on different films. ``--from FOLDER`` makes this stage alone, on a checkpoint.
"""

from __future__ import annotations

import argparse
import shutil
import time
from itertools import count, islice
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tqdm import trange
from transformers import Gemma3ForConditionalGeneration, Gemma3Processor

from demo_training import evaluate, model_card
from demo_training import model as shape
from demo_training.dataset import Films, Writer, draw, vary
from pedcxr_serve.demo import drawing
from pedcxr_serve.demo.drawing import Kind

FILMS = 8_000
BATCH = 16
TOWER_STEPS, TOWER_PEAK = 3_800, 1.5e-3
REPORT_STEPS, REPORT_PEAK = 2_200, 1e-3
POLISH_STEPS, POLISH_PEAK = 450, 5e-4
SETTLE_STEPS, SETTLE_PEAK, SETTLE_SHARE = 1_000, 6e-4, 0.7
CROWDED = 3  # findings on one film
ALIKE = 0.4  # share of ages in stage 4 that are drawn from ``films.ALIKE``


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
    head = nn.Linear(model.config.text_config.hidden_size, len(drawing.FINDINGS))
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
    mean: AveragedModel | None = None,
) -> None:
    """Stages 2 to 4: every weight by the tokens of the report; a quarter of each batch from each of ``often``.

    ``mean`` gathers the weights after each step of the second half.
    """
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
        if mean is not None and step >= steps // 2:
            mean.update_parameters(model)
        if step % 50 == 0:
            bar.set_postfix(loss=f"{loss.item():.4f}")


def learn_anew(
    processor: Gemma3Processor, seed: int, *, films: int, tower_steps: int, report_steps: int, polish_steps: int
) -> Gemma3ForConditionalGeneration:
    """Stages 1 to 3, from nothing."""
    source = torch.Generator().manual_seed(seed)
    model = shape.make(len(processor.tokenizer))
    material = draw(range(films), processor)
    wide, crowded = _showing(material, Kind.WIDE_MEDIASTINUM), _crowded(material)
    teach_tower(model, material, tower_steps, source)
    teach_reports(model, material, (wide,), Writer(processor, seed), report_steps, REPORT_PEAK, source)
    source = torch.Generator().manual_seed(seed + 1)
    teach_reports(model, material, (wide, crowded), Writer(processor, seed + 1), polish_steps, POLISH_PEAK, source)
    return model


def settle(
    model: Gemma3ForConditionalGeneration, processor: Gemma3Processor, seed: int, *, films: int, steps: int
) -> None:
    """Stage 4, on films that come after the ``films`` of the others."""
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    source = torch.Generator().manual_seed(seed + 11)
    writer = Writer(processor, seed + 11, alike=ALIKE)
    material = draw(later_seeds(films), processor)
    often = _showing(material, Kind.WIDE_MEDIASTINUM), _showing(material, Kind.PNEUMOTHORAX), _crowded(material)
    mean = AveragedModel(model)
    teach_reports(model, material, often, writer, steps, SETTLE_PEAK, source, mean)
    with torch.no_grad():
        for (name, weight), kept in zip(model.named_parameters(), mean.module.parameters(), strict=True):
            weight.copy_(before[name].lerp(kept, SETTLE_SHARE))


def later_seeds(films: int) -> list[int]:
    """What stage 4 draws: a quarter of ``films`` as they come, and half as many as ``films`` that are crowded."""
    ordinary = range(films, films + films // 4)
    crowded = (seed for seed in count(ordinary.stop) if len(drawing.sample(seed).findings) >= CROWDED)
    return [*ordinary, *islice(crowded, films // 2)]


def _showing(films: Films, kind: Kind) -> Tensor:
    """The rows of the films that show this kind, on either side."""
    columns = [index for index, finding in enumerate(drawing.FINDINGS) if finding.kind is kind]
    return films.shown[:, columns].any(1).nonzero()[:, 0]


def _crowded(films: Films) -> Tensor:
    return (films.shown.sum(1) >= CROWDED).nonzero()[:, 0]


def train(
    out: Path,
    seed: int,
    *,
    weights: Path | None = None,
    films: int = FILMS,
    tower_steps: int = TOWER_STEPS,
    report_steps: int = REPORT_STEPS,
    polish_steps: int = POLISH_STEPS,
    settle_steps: int = SETTLE_STEPS,
    unseen: int = 500,
) -> evaluate.Result:
    """Train, save, measure on ``unseen`` phantoms and write the model card; ``out`` is replaced whole.

    With ``weights``, a checkpoint's folder, only stage 4 is made, on its weights.
    """
    start = time.monotonic()
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)
    making = out.with_name(out.name + ".new")
    shutil.rmtree(making, ignore_errors=True)
    processor = shape.save_processor(making)
    if weights is None:
        model = learn_anew(
            processor, seed, films=films, tower_steps=tower_steps, report_steps=report_steps, polish_steps=polish_steps
        )
    else:
        model = Gemma3ForConditionalGeneration.from_pretrained(weights, dtype=torch.float32, attn_implementation="sdpa")
    settle(model, processor, seed, films=films, steps=settle_steps)
    shape.save(model, making)
    minutes = (time.monotonic() - start) / 60
    result = evaluate.run(making, unseen)
    (making / "README.md").write_text(
        model_card.text(result, seed=seed, minutes=minutes, films=films + len(later_seeds(films)))
    )
    shape.replace(making, out)
    return result


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder to make; an old one is replaced at the end")
    parser.add_argument(
        "--from", dest="weights", metavar="FOLDER", type=Path, help="a checkpoint: stage 4 alone, on it"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--films", type=int, default=FILMS)
    parser.add_argument("--tower-steps", type=int, default=TOWER_STEPS)
    parser.add_argument("--report-steps", type=int, default=REPORT_STEPS)
    parser.add_argument("--polish-steps", type=int, default=POLISH_STEPS)
    parser.add_argument("--settle-steps", type=int, default=SETTLE_STEPS)
    parser.add_argument("--unseen", type=int, default=500, help="phantoms to measure on")
    args = parser.parse_args()
    torch.set_num_threads(2)
    result = train(
        args.out,
        args.seed,
        weights=args.weights,
        films=args.films,
        tower_steps=args.tower_steps,
        report_steps=args.report_steps,
        polish_steps=args.polish_steps,
        settle_steps=args.settle_steps,
        unseen=args.unseen,
    )
    print(evaluate.table(result))


if __name__ == "__main__":
    main()
