"""``make bench``: reports a second through the gateway, bare vLLM and transformers' quick start, side by side.

Every path writes reports of drawn films, none sent twice, so that no cache answers for the engine. Gateway and bare
engine are the same process, asked in turns; the quick start runs before and after it, with the machine to itself.
Only the ratios travel to another machine. Words after ``--`` go to ``pedcxr-serve start``.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import aiohttp
import uvloop
from tqdm import tqdm

from pedcxr_client.request import prompts
from pedcxr_serve import cli
from pedcxr_serve.demo import CHECKPOINT, MODEL_NAME, drawing, expected_report
from pedcxr_serve.gateway import app
from tests.benchmarks import startup, transformers_baseline
from tests.benchmarks.load_generator import Films, Sender, one
from tests.benchmarks.local_server import LocalServer, server
from tests.benchmarks.processes import processor_s

_FIRST_SEED = 8_000_000  # training draws from lower seeds
_CHAT = "/v1/chat/completions"
_LARGE = (810, 730)  # a phantom of that size makes a body of 0.5 MB


@dataclass(frozen=True, slots=True)
class Film:
    """A request's body and the report that is right."""

    body: bytes
    right: str


@dataclass(frozen=True, slots=True)
class Run:
    """Reports a second of one path at one load; ``right`` of ``count`` were as drawn."""

    per_second: float
    right: int
    count: int


@dataclass(frozen=True, slots=True)
class Row:
    """One load: the medians over its rounds; ``processor_ms`` of the gateway's processor time a report."""

    in_flight: int
    gateway: float
    bare: float
    right: float
    processor_ms: float

    @property
    def ratio(self) -> float:
        """Gateway to bare engine; 1 is no loss."""
        return self.gateway / self.bare


def main() -> None:
    """Run the benchmark and print its tables."""
    own, flags = cli.split(sys.argv[1:])
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.throughput", description=__doc__)
    parser.add_argument("--loads", type=int, nargs="+", default=[1, 8, 32, 64], help="reports in flight at once")
    parser.add_argument("--rounds", type=int, default=5, help="rounds a load, gateway and bare engine in turns")
    parser.add_argument("--pairs", type=int, default=60, help="streams to compare the times to the first word of")
    parser.add_argument("--starts", type=int, default=2, help="starts to compare with bare vLLM's; 0 leaves it out")
    parser.add_argument("--skip-quick-start", action="store_true", help="leave transformers out")
    args = parser.parse_args(own)
    seeds = count(_FIRST_SEED)
    with tempfile.TemporaryDirectory() as folder:
        cards = [] if args.skip_quick_start else [quick_start_run(seeds, Path(folder))]
        sockets = Path(folder, "run")
        with server("--socket-dir", str(sockets), *flags) as running:
            rows, waits = uvloop.run(_measured(running, sockets, seeds, args))
            ready = [running.seconds]
        cards += [] if args.skip_quick_start else [quick_start_run(seeds, Path(folder))]
        _print_rows(rows, cards)
        _print_waits(waits)
        if args.starts:
            startup.show(startup.pairs(args.starts, Path(folder), flags), ready)


def films(seeds: Iterator[int], number: int) -> list[Film]:
    """Draw the next ``number`` films."""
    drawn = []
    for seed in (next(seeds) for _ in range(number)):
        case = drawing.sample(seed)
        url = "data:image/png;base64," + base64.b64encode(drawing.encode_png(drawing.render(case, seed))).decode()
        body = {
            "model": MODEL_NAME,
            "messages": prompts.messages(prompts.card(case.age, case.sex), url),
            "temperature": 0,
            "max_tokens": 500,
        }
        drawn.append(Film(json.dumps(body).encode(), expected_report.text(case)))
    return drawn


async def measure(session: aiohttp.ClientSession, batch: Sequence[Film], in_flight: int) -> Run:
    """Send every film once, never more than ``in_flight`` at once."""
    gate = asyncio.Semaphore(in_flight)

    async def one(film: Film) -> bool:
        async with gate, session.post(_CHAT, data=film.body, headers={"Content-Type": "application/json"}) as answer:
            choice = json.loads(await answer.read())["choices"][0]
        return bool(choice["message"]["content"] == film.right)

    start = time.perf_counter()
    right = await asyncio.gather(*(one(film) for film in batch))
    return Run(len(batch) / (time.perf_counter() - start), sum(right), len(batch))


def quick_start_run(seeds: Iterator[int], folder: Path, number: int = 40) -> Run:
    """The model card's code, one film after the other."""
    cases = {seed: drawing.sample(seed) for seed in (next(seeds) for _ in range(number))}
    questions = []
    for seed, case in cases.items():
        path = folder / f"{seed}.png"
        path.write_bytes(drawing.encode_png(drawing.render(case, seed)))
        questions.append(transformers_baseline.Question(str(path), prompts.card(case.age, case.sex)))
    answers = transformers_baseline.ask(CHECKPOINT, questions)
    right = sum(text == expected_report.text(case) for text, case in zip(answers.texts, cases.values(), strict=True))
    return Run(number / answers.seconds, right, number)


async def _measured(
    running: LocalServer, folder: Path, seeds: Iterator[int], args: argparse.Namespace
) -> tuple[list[Row], list[tuple[float, float]]]:
    bare = app.engine_connector(folder / "engine.sock")
    public = aiohttp.TCPConnector(limit=0)
    async with (
        aiohttp.ClientSession(running.root, connector=public) as gateway,
        aiohttp.ClientSession("http://engine", connector=bare) as engine,
    ):
        await measure(gateway, films(seeds, 64), 32)  # the first requests at a batch size are slower
        rows = await _rows(gateway, engine, running.process.pid, seeds, args.loads, args.rounds)
        return rows, await _waits(gateway, engine, Films([next(seeds)], size=_LARGE), args.pairs)


async def _rows(
    gateway: aiohttp.ClientSession,
    engine: aiohttp.ClientSession,
    pid: int,
    seeds: Iterator[int],
    loads: Sequence[int],
    rounds: int,
) -> list[Row]:
    rows = []
    with tqdm(total=2 * rounds * len(loads), unit="run", disable=None) as bar:
        for in_flight in loads:
            number = max(12, 3 * in_flight)
            runs: dict[aiohttp.ClientSession, list[Run]] = {gateway: [], engine: []}
            before = processor_s(pid)
            for turn in range(rounds):
                for session in (gateway, engine) if turn % 2 else (engine, gateway):
                    runs[session].append(await measure(session, films(seeds, number), in_flight))
                    bar.update()
            spent = (processor_s(pid) - before) / (rounds * number)
            rows.append(_row(in_flight, runs[gateway], runs[engine], spent))
    return rows


async def _waits(
    gateway: aiohttp.ClientSession, engine: aiohttp.ClientSession, large: Films, pairs: int
) -> list[tuple[float, float]]:
    """Seconds to the first word of streams with bodies of 0.5 MB, one at a time: gateway and bare engine in turns."""
    asked, found = Sender("bench", key="", max_tokens=8), []
    for turn in tqdm(range(pairs), "first words", unit="pair", disable=None):
        order = (gateway, engine) if turn % 2 else (engine, gateway)
        took = {session: (await one(session, asked, large)).ttft for session in order}
        found.append((took[gateway], took[engine]))
    return found


def _row(in_flight: int, gateway: list[Run], bare: list[Run], spent_s: float) -> Row:
    runs = gateway + bare
    right = sum(run.right for run in runs) / sum(run.count for run in runs)
    middle = [statistics.median(run.per_second for run in path) for path in (gateway, bare)]
    return Row(in_flight, middle[0], middle[1], right, 1e3 * spent_s)


def _print_rows(rows: Sequence[Row], cards: Sequence[Run]) -> None:
    base = statistics.mean(card.per_second for card in cards) if cards else None
    print("\nreports a second; medians, gateway and bare engine in turns; processor time of the gateway a report")
    names = ("gateway", "bare", "gateway/bare", "x quick start", "as drawn", "gateway ms")
    print(f"{'at once':>8}", *(f"{name:>{len(name) + 2}}" for name in names))
    for row in rows:
        rate, bare, ratio = f"{row.gateway:.1f}", f"{row.bare:.1f}", f"{row.ratio:.2f}"
        times = f"{row.gateway / base:.1f}" if base else "-"
        found = (rate, bare, ratio, times, f"{row.right:.1%}", f"{row.processor_ms:.2f}")
        print(f"{row.in_flight:>8}", *(f"{value:>{len(name) + 2}}" for value, name in zip(found, names, strict=True)))
    for card, when in zip(cards, ("before", "after"), strict=False):
        print(
            f"transformers' quick start, {when}: {card.per_second:.2f} a second, {card.right} of {card.count} as drawn"
        )


def _print_waits(waits: Sequence[tuple[float, float]]) -> None:
    if not waits:
        return
    gateway, bare = (1e3 * statistics.median(path) for path in zip(*waits, strict=True))
    print(f"time to the first word with bodies of 0.5 MB, one at a time, medians of {len(waits)}, in ms")
    print(f"    gateway {gateway:.1f}, bare {bare:.1f}: {gateway - bare:+.1f}, at most 3 wanted")


if __name__ == "__main__":
    main()
