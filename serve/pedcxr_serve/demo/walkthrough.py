"""The demonstration: three films reported as a stream, then how fast, through a server that runs."""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pedcxr_client import AsyncClient, Report
from pedcxr_client.films.age import Age
from pedcxr_serve.demo import drawing, expected_report
from pedcxr_serve.demo.drawing import Case, Finding, Kind

FOLDER = Path("demo-films")
_WIDE = Finding(Kind.WIDE_MEDIASTINUM)
FILMS: tuple[tuple[str, Case, int], ...] = (
    ("pneumonia-6y.png", Case(Age(6, "Y"), "M", (Finding(Kind.CONSOLIDATION, "right", "lower"),)), 11),
    ("wide-mediastinum-10y.png", Case(Age(10, "Y"), "F", (_WIDE,)), 12),
    ("wide-mediastinum-3m.png", Case(Age(3, "M"), "F", (_WIDE,)), 12),
)
"""Name, case and seed. The last two are the same drawing: only the age in the prompt tells their reports apart."""

LOADS = ((1, 12), (16, 96))
"""Reports in flight at once, and how many films are reported at that load."""

_SEED = 7_000_000  # films that training never saw


@dataclass(frozen=True, slots=True)
class Load:
    """What one load gave; times in seconds."""

    in_flight: int
    reports: tuple[Report, ...]
    right: int
    seconds: float

    @property
    def reports_a_minute(self) -> float:
        """Finished reports divided by the wall time of the whole load."""
        return 60 * len(self.reports) / self.seconds

    def row(self) -> str:
        """A line of the table below `HEAD`."""
        timings = [one.timing for one in self.reports]
        cells = (_median([getattr(timing, name) for timing in timings]) for name in ("ttft", "tpot", "e2e"))
        return (
            f"{self.in_flight:>9} {len(self.reports):>8} "
            + " ".join(f"{cell:>8}" for cell in cells)
            + f" {self.reports_a_minute:>12.0f} {f'{self.right} of {len(self.reports)}':>12}"
        )


HEAD = f"{'at once':>9} {'reports':>8} {'TTFT':>8} {'TPOT':>8} {'E2E':>8} {'reports/min':>12} {'as drawn':>12}"


async def run(url: str) -> None:
    """Write the films, have them reported by the server at ``url``, and print what came; stdout is the stage."""
    folder = draw(FOLDER)
    async with AsyncClient(url) as client:
        for name, case, _ in FILMS:
            await _tell(client, folder / name, case)
        print(f"\nmedians in milliseconds\n{HEAD}")
        for in_flight, count in LOADS:
            print((await load(client, in_flight, count)).row(), flush=True)
    print(_next_steps(folder))


def draw(folder: Path) -> Path:
    """Write the films as PNG; into a temporary folder if this one cannot be written. The folder used."""
    try:
        folder.mkdir(exist_ok=True)
        for name, case, seed in FILMS:
            (folder / name).write_bytes(drawing.encode_png(drawing.render(case, seed)))
    except OSError:
        return draw(Path(tempfile.mkdtemp(prefix="demo-films-")))
    return folder


async def load(client: AsyncClient, in_flight: int, count: int) -> Load:
    """Have ``count`` films reported, never more than ``in_flight`` at once; each film is another."""
    seeds = [_SEED + 1000 * in_flight + number for number in range(count)]
    cases = [drawing.sample(seed) for seed in seeds]
    films = [drawing.encode_png(drawing.render(case, seed)) for case, seed in zip(cases, seeds, strict=True)]
    gate = asyncio.Semaphore(in_flight)

    async def one(case: Case, film: bytes) -> Report:
        async with gate:
            return await client.report(film, age=case.age, sex=case.sex)

    start = time.perf_counter()
    reports = await asyncio.gather(*(one(case, film) for case, film in zip(cases, films, strict=True)))
    seconds = time.perf_counter() - start
    right = sum(got.text == expected_report.text(case) for got, case in zip(reports, cases, strict=True))
    return Load(in_flight, tuple(reports), right, seconds)


async def _tell(client: AsyncClient, path: Path, case: Case) -> None:
    age = case.age.words if case.age else "of unknown age"
    drawn = ", ".join(expected_report.label(finding, case.age) for finding in case.findings) or "nothing abnormal"
    print(f"\n{path}  ({age}, drawn: {drawn})")
    async with client.stream(path, age=case.age, sex=case.sex) as stream:
        async for piece in stream:
            print(piece, end="", flush=True)
    verdict = "as drawn" if stream.report.text == expected_report.text(case) else "NOT as drawn"
    print(f"\n  -> {verdict}", flush=True)


def _median(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{1000 * statistics.median(known):.1f}" if known else "-"


def _next_steps(folder: Path) -> str:
    film = folder / FILMS[0][0]
    program = Path(sys.argv[0]).parent
    here = program.relative_to(Path.cwd()) if program.is_relative_to(Path.cwd()) else program
    return f"""
Keep a server running:
  {here}/pedcxr-serve start

Ask it, from another terminal:
  {here}/pedcxr report {film} --age 6y --sex M --stream
or from any language, here with curl:
  {{ printf '{{"messages": [{{"role": "user", "content": ['
    printf '{{"type": "image_url", "image_url": {{"url": "data:image/png;base64,%s"}}}}, ' "$(base64 -w0 {film})"
    printf '{{"type": "text", "text": "Generate a radiology report for this chest X-ray of a 6-year-old male."}}]}}]}}'
  }} | curl -s http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' -d @-

The demo model knows drawings only. Every report, of any model, is a draft for a professional to review."""
