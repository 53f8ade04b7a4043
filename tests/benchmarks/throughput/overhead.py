"""``make bench-overhead``: reports per second of the gateway, of bare vLLM and of transformers' quick start.

All write reports of drawn films. No film is sent twice, so that no cache answers instead of the engine. Gateway and
bare engine use the same engine process and are measured in turns. The quick start runs alone, before and after them.
Only the ratios are comparable between machines. Arguments after ``--`` are passed to ``pedcxr-serve start``.
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
from pedcxr_serve.config.settings import DEMO_NAME
from pedcxr_serve.demo import CHECKPOINT, drawing, expected_report
from pedcxr_serve.demo.findings import sample
from pedcxr_serve.engine import address
from tests.benchmarks import processes, transformers_baseline
from tests.benchmarks.load_generator import Films, Sender, send
from tests.benchmarks.throughput import startup
from tests.support.servers.local_server import LocalServer, server

_FIRST_SEED = 8_000_000  # training draws from lower seeds
_CHAT = "/v1/chat/completions"
_LARGE = (810, 730)  # a phantom of that size makes a body of 0.5 MB


@dataclass(frozen=True, slots=True)
class Film:
    """A request's body and the correct report."""

    body: bytes
    report: str


@dataclass(frozen=True, slots=True)
class Run:
    """Reports per second of one path at one load; ``correct`` of ``count`` reports were correct."""

    per_second: float
    correct: int
    count: int


@dataclass(frozen=True, slots=True)
class Row:
    """Medians of one load over its rounds; ``processor_ms`` is the gateway's processor time per report."""

    in_flight: int
    gateway: float
    bare: float
    correct: float
    processor_ms: float

    @property
    def ratio(self) -> float:
        """Rate of the gateway relative to the bare engine."""
        return self.gateway / self.bare


def main() -> None:
    """Run the benchmark and print its tables."""
    own, flags = cli.split(sys.argv[1:])
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.throughput.overhead", description=__doc__)
    parser.add_argument("--loads", type=int, nargs="+", default=[1, 8, 32, 64], help="numbers of concurrent requests")
    parser.add_argument("--rounds", type=int, default=5, help="rounds per load, gateway and bare engine in turns")
    parser.add_argument("--pairs", type=int, default=60, help="pairs of streams to compare the time to the first word")
    parser.add_argument("--starts", type=int, default=2, help="starts to compare with bare vLLM; 0 skips them")
    parser.add_argument("--skip-quick-start", action="store_true", help="skip transformers")
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
    """Return the next ``number`` films."""
    batch = []
    for seed in (next(seeds) for _ in range(number)):
        case = sample(seed)
        url = "data:image/png;base64," + base64.b64encode(drawing.encode_png(drawing.render(case, seed))).decode()
        body = {
            "model": DEMO_NAME,
            "messages": prompts.messages(prompts.card(case.age, case.sex), url),
            "temperature": 0,
            "max_tokens": 500,
        }
        batch.append(Film(json.dumps(body).encode(), expected_report.text(case)))
    return batch


async def measure(session: aiohttp.ClientSession, batch: Sequence[Film], in_flight: int) -> Run:
    """Send every film once, with at most ``in_flight`` concurrent requests."""
    limit = asyncio.Semaphore(in_flight)

    async def report(film: Film) -> bool:
        async with limit, session.post(_CHAT, data=film.body, headers={"Content-Type": "application/json"}) as answer:
            choice = json.loads(await answer.read())["choices"][0]
        return bool(choice["message"]["content"] == film.report)

    start = time.perf_counter()
    correct = await asyncio.gather(*(report(film) for film in batch))
    return Run(len(batch) / (time.perf_counter() - start), sum(correct), len(batch))


def quick_start_run(seeds: Iterator[int], folder: Path, number: int = 40) -> Run:
    """Run the model card's code, one film after the other."""
    cases = {seed: sample(seed) for seed in (next(seeds) for _ in range(number))}
    questions = []
    for seed, case in cases.items():
        path = folder / f"{seed}.png"
        path.write_bytes(drawing.encode_png(drawing.render(case, seed)))
        questions.append(transformers_baseline.Question(str(path), prompts.card(case.age, case.sex)))
    answers = transformers_baseline.ask(CHECKPOINT, questions)
    correct = sum(text == expected_report.text(case) for text, case in zip(answers.texts, cases.values(), strict=True))
    return Run(number / answers.seconds, correct, number)


async def _measured(
    running: LocalServer, folder: Path, seeds: Iterator[int], args: argparse.Namespace
) -> tuple[list[Row], list[tuple[float, float]]]:
    bare = address.connector(folder / "engine.sock")
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
            before = processes.measure(pid).cpu_s
            for turn in range(rounds):
                for session in (gateway, engine) if turn % 2 else (engine, gateway):
                    runs[session].append(await measure(session, films(seeds, number), in_flight))
                    bar.update()
            seconds = (processes.measure(pid).cpu_s - before) / (rounds * number)
            rows.append(_row(in_flight, runs[gateway], runs[engine], seconds))
    return rows


async def _waits(
    gateway: aiohttp.ClientSession, engine: aiohttp.ClientSession, large: Films, pairs: int
) -> list[tuple[float, float]]:
    """Return the seconds to the first word with bodies of 0.5 MB, one request at a time: gateway and bare engine."""
    sender, waits = Sender("bench", key="", max_tokens=8), []
    for turn in tqdm(range(pairs), "first words", unit="pair", disable=None):
        order = (gateway, engine) if turn % 2 else (engine, gateway)
        seconds = {session: (await send(session, sender, large)).ttft or 0.0 for session in order}
        waits.append((seconds[gateway], seconds[engine]))
    return waits


def _row(in_flight: int, gateway: list[Run], bare: list[Run], processor_s: float) -> Row:
    runs = gateway + bare
    correct = sum(run.correct for run in runs) / sum(run.count for run in runs)
    medians = [statistics.median(run.per_second for run in path) for path in (gateway, bare)]
    return Row(in_flight, medians[0], medians[1], correct, 1e3 * processor_s)


def _print_rows(rows: Sequence[Row], cards: Sequence[Run]) -> None:
    base = statistics.mean(card.per_second for card in cards) if cards else None
    print("\nreports per second (medians), and the gateway's processor time per report")
    names = ("gateway", "bare", "gateway/bare", "x quick start", "correct", "gateway ms")
    print(f"{'load':>8}", *(f"{name:>{len(name) + 2}}" for name in names))
    for row in rows:
        rate, bare, ratio = f"{row.gateway:.1f}", f"{row.bare:.1f}", f"{row.ratio:.2f}"
        times = f"{row.gateway / base:.1f}" if base else "-"
        values = (rate, bare, ratio, times, f"{row.correct:.1%}", f"{row.processor_ms:.2f}")
        print(f"{row.in_flight:>8}", *(f"{value:>{len(name) + 2}}" for value, name in zip(values, names, strict=True)))
    for card, when in zip(cards, ("before", "after"), strict=False):
        print(
            f"transformers' quick start, {when}: {card.per_second:.2f} per second, "
            f"{card.correct} of {card.count} correct"
        )


def _print_waits(waits: Sequence[tuple[float, float]]) -> None:
    if not waits:
        return
    gateway, bare = (1e3 * statistics.median(path) for path in zip(*waits, strict=True))
    print(f"time to the first word in ms, bodies of 0.5 MB, one request at a time, medians of {len(waits)}")
    print(f"    gateway {gateway:.1f}, bare {bare:.1f}: {gateway - bare:+.1f}, target at most 3")


if __name__ == "__main__":
    main()
