"""The demonstration: stream the reports of three films, then measure latency and throughput of the running server."""

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
from pedcxr_serve.demo.findings import Case, Finding, Kind, sample

FOLDER = Path("demo-films")
_WIDE = Finding(Kind.WIDE_MEDIASTINUM)
FILMS: tuple[tuple[str, Case, int], ...] = (
    ("pneumonia-6y.png", Case(Age(6, "Y"), "M", (Finding(Kind.CONSOLIDATION, "right", "lower"),)), 11),
    ("wide-mediastinum-10y.png", Case(Age(10, "Y"), "F", (_WIDE,)), 12),
    ("wide-mediastinum-3m.png", Case(Age(3, "M"), "F", (_WIDE,)), 12),
)
"""Name, case and seed. The last two films are the same drawing; only the age in the prompt differs."""

LOADS = ((1, 12), (16, 96))
"""Requests in flight, and the number of films reported at that load."""

_SEED = 7_000_000  # films that the training did not use


@dataclass(frozen=True, slots=True)
class Load:
    """Measurements at one load; ``exact`` counts the reports that are equal to the expected report."""

    in_flight: int
    reports: tuple[Report, ...]
    exact: int
    seconds: float

    @property
    def reports_per_minute(self) -> float:
        return 60 * len(self.reports) / self.seconds

    def row(self) -> str:
        """Return a row of the table under `HEAD`."""
        timings = [report.timing for report in self.reports]
        cells = (_median([getattr(timing, name) for timing in timings]) for name in ("ttft", "tpot", "e2e"))
        return (
            f"{self.in_flight:>9} {len(self.reports):>8} "
            + " ".join(f"{cell:>8}" for cell in cells)
            + f" {self.reports_per_minute:>12.0f} {f'{self.exact} of {len(self.reports)}':>12}"
        )


HEAD = f"{'in flight':>9} {'reports':>8} {'TTFT':>8} {'TPOT':>8} {'E2E':>8} {'reports/min':>12} {'as drawn':>12}"


async def run(url: str) -> None:
    """Write the films, request their reports from the server at ``url``, and print reports and measurements."""
    folder = draw(FOLDER)
    async with AsyncClient(url) as client:
        for name, case, _ in FILMS:
            await _stream_report(client, folder / name, case)
        print(f"\nLatency (medians in ms) and throughput\n{HEAD}")
        for in_flight, count in LOADS:
            print((await load(client, in_flight, count)).row(), flush=True)
    print(_next_steps(folder))


def draw(folder: Path) -> Path:
    """Write the films as PNG into ``folder``, or a temporary folder if that fails; return the folder."""
    try:
        folder.mkdir(exist_ok=True)
        for name, case, seed in FILMS:
            (folder / name).write_bytes(drawing.encode_png(drawing.render(case, seed)))
    except OSError:
        return draw(Path(tempfile.mkdtemp(prefix="demo-films-")))
    return folder


async def load(client: AsyncClient, in_flight: int, count: int) -> Load:
    """Request reports of ``count`` different films, with at most ``in_flight`` requests in flight."""
    seeds = [_SEED + 1000 * in_flight + number for number in range(count)]
    cases = [sample(seed) for seed in seeds]
    films = [drawing.encode_png(drawing.render(case, seed)) for case, seed in zip(cases, seeds, strict=True)]
    slots = asyncio.Semaphore(in_flight)

    async def report(case: Case, film: bytes) -> Report:
        async with slots:
            return await client.report(film, age=case.age, sex=case.sex)

    start = time.perf_counter()
    reports = await asyncio.gather(*(report(case, film) for case, film in zip(cases, films, strict=True)))
    seconds = time.perf_counter() - start
    exact = sum(report.text == expected_report.text(case) for report, case in zip(reports, cases, strict=True))
    return Load(in_flight, tuple(reports), exact, seconds)


async def _stream_report(client: AsyncClient, path: Path, case: Case) -> None:
    age = case.age.words if case.age else "of unknown age"
    findings = ", ".join(expected_report.label(finding, case.age) for finding in case.findings) or "nothing abnormal"
    print(f"\n{path}  ({age}, drawn: {findings})")
    async with client.stream(path, age=case.age, sex=case.sex) as stream:
        async for piece in stream:
            print(piece, end="", flush=True)
    verdict = "as drawn" if stream.report.text == expected_report.text(case) else "NOT as drawn"
    print(f"\n  -> {verdict}", flush=True)


def _median(values: Sequence[float | None]) -> str:
    measurements = [value for value in values if value is not None]
    return f"{1000 * statistics.median(measurements):.1f}" if measurements else "-"


def _next_steps(folder: Path) -> str:
    film = folder / FILMS[0][0]
    program = Path(sys.argv[0]).parent
    here = program.relative_to(Path.cwd()) if program.is_relative_to(Path.cwd()) else program
    return f"""
Start a server:
  {here}/pedcxr-serve start

Request a report from another terminal:
  {here}/pedcxr report {film} --age 6y --sex M --stream
or from any language, for example with curl:
  {{ printf '{{"messages": [{{"role": "user", "content": ['
    printf '{{"type": "image_url", "image_url": {{"url": "data:image/png;base64,%s"}}}}, ' "$(base64 -w0 {film})"
    printf '{{"type": "text", "text": "Generate a radiology report for this chest X-ray of a 6-year-old male."}}]}}]}}'
  }} | curl -s http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' -d @-
or with an OpenAI client, for example in Python:
  {here}/python - <<'END'
  import base64, openai
  film = base64.b64encode(open("{film}", "rb").read()).decode()
  content = [{{"type": "image_url", "image_url": {{"url": "data:image/png;base64," + film}}}},
             {{"type": "text", "text": "Generate a radiology report for this chest X-ray of a 6-year-old male."}}]
  client = openai.OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")
  answer = client.chat.completions.create(model="pedcxr-demo", messages=[{{"role": "user", "content": content}}])
  print(answer.choices[0].message.content)
  END

The demo model was trained on drawings only. Every report of any model is a draft for a professional to review."""
