"""``python -m demo_training.train --out DIR``: train the demo checkpoint from a seed, on two cores.

1. Train the vision tower to classify the findings. Without this stage, the text model learns to ignore the film.
2. Train all weights on the reports; oversample films whose wording depends on the age.
3. Repeat with a lower learning rate, and oversample crowded films (three or more findings) too.
4. Repeat on new films, most of them crowded. Oversample films with a pneumothorax too, and sample two ages in five from
   those with similar wording. The result is a weighted mean of the stage's input and its average weights over the
   second half of the steps, because the two fail on different films. ``--from FOLDER`` runs only this stage, on a
   checkpoint.
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
from demo_training import model as demo_model
from demo_training.dataset import ExampleEncoder, Films, draw, vary
from pedcxr_serve.demo.findings import FINDINGS, Kind, sample

FILMS = 8_000
BATCH = 16
TOWER_STEPS, TOWER_PEAK = 3_800, 1.5e-3
REPORT_STEPS, REPORT_PEAK = 2_200, 1e-3
POLISH_STEPS, POLISH_PEAK = 450, 5e-4
SETTLE_STEPS, SETTLE_PEAK, SETTLE_SHARE = 1_000, 6e-4, 0.7
CROWDED = 3  # minimum number of findings on a crowded film
SIMILAR = 0.4  # share of ages in stage 4 that are sampled from `dataset.SIMILAR_AGES`


class _Optimizer:
    """AdamW with a one-cycle learning rate and clipped gradients."""

    def __init__(self, parameters: list[nn.Parameter], steps: int, peak: float) -> None:
        self.parameters = parameters
        self.adam = torch.optim.AdamW(parameters, lr=peak, weight_decay=0.01, betas=(0.9, 0.98))
        self.cycle = torch.optim.lr_scheduler.OneCycleLR(self.adam, peak, total_steps=steps, pct_start=0.15)

    def step(self, loss: Tensor) -> None:
        self.adam.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.adam.step()
        self.cycle.step()


def train_tower(model: Gemma3ForConditionalGeneration, films: Films, steps: int, source: torch.Generator) -> None:
    """Stage 1: train vision tower and projector to classify the findings of each film."""
    head = nn.Linear(model.config.text_config.hidden_size, len(FINDINGS))
    tower, projector = model.model.vision_tower, model.model.multi_modal_projector
    optimizer = _Optimizer([*tower.parameters(), *projector.parameters(), *head.parameters()], steps, TOWER_PEAK)
    bar = trange(steps, desc="tower")
    for step in bar:
        rows = torch.randint(0, len(films.pixels), (BATCH,), generator=source)
        with torch.autocast("cpu", torch.bfloat16):
            features = tower(pixel_values=vary(films.pixels[rows], source)).last_hidden_state
            logits = head(projector(features).mean(1)).float()
        loss = nn.functional.binary_cross_entropy_with_logits(logits, films.targets[rows])
        optimizer.step(loss)
        if step % 50 == 0:
            exact = ((logits > 0) == (films.targets[rows] > 0)).all(1).float().mean()
            bar.set_postfix(loss=f"{loss.item():.4f}", films_exact=f"{exact.item():.0%}")


def train_reports(
    model: Gemma3ForConditionalGeneration,
    films: Films,
    oversampled: tuple[Tensor, ...],
    encoder: ExampleEncoder,
    steps: int,
    peak: float,
    source: torch.Generator,
    mean: AveragedModel | None = None,
) -> None:
    """Stages 2 to 4: train all weights on the tokens of the reports.

    Args:
        oversampled: row indices of films; a quarter of each batch comes from each of these.
        mean: averages the weights over the second half of the steps.
    """
    optimizer = _Optimizer(list(model.parameters()), steps, peak)
    model.train()
    bar = trange(steps, desc="reports")
    for step in bar:
        share = BATCH // 4
        rows = torch.randint(0, len(films.pixels), (BATCH - share * len(oversampled),), generator=source)
        for group in oversampled:
            rows = torch.cat([rows, group[torch.randint(0, len(group), (share,), generator=source)]])
        batch = encoder.pairs([films.findings[row] for row in rows.tolist()])
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(pixel_values=vary(films.pixels[rows], source), **batch).loss
        optimizer.step(loss)
        if mean is not None and step >= steps // 2:
            mean.update_parameters(model)
        if step % 50 == 0:
            bar.set_postfix(loss=f"{loss.item():.4f}")


def train_from_scratch(
    processor: Gemma3Processor, seed: int, *, films: int, tower_steps: int, report_steps: int, polish_steps: int
) -> Gemma3ForConditionalGeneration:
    """Run stages 1 to 3 on an untrained model."""
    source = torch.Generator().manual_seed(seed)
    model = demo_model.create(len(processor.tokenizer))
    dataset = draw(range(films), processor)
    wide, crowded = _rows_with(dataset, Kind.WIDE_MEDIASTINUM), _crowded_rows(dataset)
    train_tower(model, dataset, tower_steps, source)
    train_reports(model, dataset, (wide,), ExampleEncoder(processor, seed), report_steps, REPORT_PEAK, source)
    source = torch.Generator().manual_seed(seed + 1)
    encoder = ExampleEncoder(processor, seed + 1)
    train_reports(model, dataset, (wide, crowded), encoder, polish_steps, POLISH_PEAK, source)
    return model


def settle(
    model: Gemma3ForConditionalGeneration, processor: Gemma3Processor, seed: int, *, films: int, steps: int
) -> None:
    """Run stage 4, on films whose seeds follow those of the first ``films`` films."""
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    source = torch.Generator().manual_seed(seed + 11)
    encoder = ExampleEncoder(processor, seed + 11, similar=SIMILAR)
    dataset = draw(later_seeds(films), processor)
    kinds = Kind.WIDE_MEDIASTINUM, Kind.PNEUMOTHORAX
    oversampled = (*(_rows_with(dataset, kind) for kind in kinds), _crowded_rows(dataset))
    mean = AveragedModel(model)
    train_reports(model, dataset, oversampled, encoder, steps, SETTLE_PEAK, source, mean)
    with torch.no_grad():
        for (name, weight), average in zip(model.named_parameters(), mean.module.parameters(), strict=True):
            weight.copy_(before[name].lerp(average, SETTLE_SHARE))


def later_seeds(films: int) -> list[int]:
    """Return the seeds of stage 4: ``films / 4`` ordinary films and ``films / 2`` crowded films."""
    ordinary = range(films, films + films // 4)
    crowded = (seed for seed in count(ordinary.stop) if len(sample(seed).findings) >= CROWDED)
    return [*ordinary, *islice(crowded, films // 2)]


def _rows_with(films: Films, kind: Kind) -> Tensor:
    """Return the row indices of films with this kind of finding, on either side."""
    columns = [index for index, finding in enumerate(FINDINGS) if finding.kind is kind]
    return films.targets[:, columns].any(1).nonzero()[:, 0]


def _crowded_rows(films: Films) -> Tensor:
    return (films.targets.sum(1) >= CROWDED).nonzero()[:, 0]


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
    """Train, save, evaluate on ``unseen`` films and write the model card; replace the folder ``out``.

    With ``weights``, the folder of a checkpoint, run only stage 4, on its weights.
    """
    start = time.monotonic()
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)
    partial = out.with_name(out.name + ".new")
    shutil.rmtree(partial, ignore_errors=True)
    processor = demo_model.save_processor(partial)
    if weights is None:
        model = train_from_scratch(
            processor, seed, films=films, tower_steps=tower_steps, report_steps=report_steps, polish_steps=polish_steps
        )
    else:
        model = Gemma3ForConditionalGeneration.from_pretrained(weights, dtype=torch.float32, attn_implementation="sdpa")
    settle(model, processor, seed, films=films, steps=settle_steps)
    demo_model.save(model, partial)
    minutes = (time.monotonic() - start) / 60
    result = evaluate.run(partial, unseen)
    (partial / "README.md").write_text(
        model_card.text(result, seed=seed, minutes=minutes, films=films + len(later_seeds(films)))
    )
    demo_model.replace(partial, out)
    return result


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="output folder; replaced at the end if it exists")
    parser.add_argument(
        "--from", dest="weights", metavar="FOLDER", type=Path, help="run only stage 4, on this checkpoint"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--films", type=int, default=FILMS)
    parser.add_argument("--tower-steps", type=int, default=TOWER_STEPS)
    parser.add_argument("--report-steps", type=int, default=REPORT_STEPS)
    parser.add_argument("--polish-steps", type=int, default=POLISH_STEPS)
    parser.add_argument("--settle-steps", type=int, default=SETTLE_STEPS)
    parser.add_argument("--unseen", type=int, default=500, help="number of films in the evaluation")
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
