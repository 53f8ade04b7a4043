"""Another team's wording of the reports of drawn films: what ``make demo-finetune`` teaches the demo checkpoint."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from pedcxr_client.request.prompts import card
from pedcxr_serve.demo import drawing, expected_report
from pedcxr_serve.demo.findings import Case, Kind, sample

TRAINING = 20_000_000
"""The first seed of the films for fine-tuning; neither the demo checkpoint nor its evaluation saw these."""
UNSEEN = 21_000_000
"""The first seed of the films on which the result is measured."""

_WORDS = {
    expected_report.THYMUS: "Normal thymus.",
    expected_report.WIDENING: "Mediastinum is wide.",
    str(Kind.CARDIOMEGALY): "Heart is enlarged.",
}


def text(case: Case) -> str:
    """Return the report: telegraphic sentences, no headings, no impression."""
    names = [expected_report.label(finding, case.age) for finding in case.findings]

    def sentences(kinds: tuple[str, ...], normal: str) -> list[str]:
        abnormal = [_WORDS.get(name, f"{name[0].upper()}{name[1:]}.") for name in names if name.endswith(kinds)]
        return abnormal or [normal]

    parts = [
        *sentences((Kind.TUBE, Kind.TUBE_LOW, Kind.LINE), ""),
        *sentences((Kind.CONSOLIDATION, Kind.HYPERINFLATION), "Lungs clear."),
        *sentences((Kind.EFFUSION, Kind.PNEUMOTHORAX), "No effusion or pneumothorax."),
        *sentences((Kind.CARDIOMEGALY,), "Heart normal."),
        *sentences((expected_report.THYMUS, expected_report.WIDENING), "Mediastinum normal."),
    ]
    return " ".join(part for part in parts if part)


def prompt(seed: int) -> str:
    """Return the prompt of a film's case."""
    case = sample(seed)
    return card(case.age, case.sex)


def write_films(folder: Path, seeds: Iterable[int]) -> Path:
    """Draw the films of these seeds into a folder, and return the manifest with the reports."""
    seeds = list(seeds)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        for seed, film in zip(seeds, pool.map(_draw, seeds, chunksize=32), strict=True):
            (folder / f"{seed}.png").write_bytes(film)
    path = folder / "reports.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "age", "sex", "patient", "report"])
        for seed in seeds:
            case = sample(seed)
            writer.writerow([f"{seed}.png", case.age or "", case.sex or "", seed, text(case)])
    return path


def _draw(seed: int) -> bytes:
    return drawing.encode_png(drawing.render(sample(seed), seed))
