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
import os
import statistics
import subprocess
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

from pedcxr_client import prompt

from . import checkpoint, cli, device, plan, warmup
from .demo import CHECKPOINT, MODEL_NAME, phantom, quick_start, report
from .local import LocalServer, server

_FIRST_SEED = 8_000_000  # training draws from lower seeds
_CHAT = "/v1/chat/completions"


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
    """One load: the medians over its rounds."""

    in_flight: int
    gateway: float
    bare: float
    right: float

    @property
    def ratio(self) -> float:
        """Gateway to bare engine; 1 is no loss."""
        return self.gateway / self.bare


def main() -> None:
    """Run the benchmark and print its tables."""
    own, flags = cli.split(sys.argv[1:])
    parser = argparse.ArgumentParser(prog="python -m pedcxr_serve.bench", description=__doc__)
    parser.add_argument("--loads", type=int, nargs="+", default=[1, 8, 32, 64], help="reports in flight at once")
    parser.add_argument("--rounds", type=int, default=5, help="rounds a load, gateway and bare engine in turns")
    parser.add_argument("--starts", type=int, default=2, help="starts to compare with bare vLLM's; 0 leaves it out")
    parser.add_argument("--skip-quick-start", action="store_true", help="leave transformers out")
    args = parser.parse_args(own)
    seeds = count(_FIRST_SEED)
    with tempfile.TemporaryDirectory() as folder:
        cards = [] if args.skip_quick_start else [quick_start_run(seeds, Path(folder))]
        sockets = Path(folder, "run")
        with server("--socket-dir", str(sockets), *flags) as running:
            rows = uvloop.run(_rows(running, sockets, seeds, args.loads, args.rounds))
            ready = [running.seconds]
        cards += [] if args.skip_quick_start else [quick_start_run(seeds, Path(folder))]
        _print_rows(rows, cards)
        if args.starts:
            _print_starts(_starts(args.starts, Path(folder), flags), ready)


def films(seeds: Iterator[int], number: int) -> list[Film]:
    """Draw the next ``number`` films."""
    drawn = []
    for seed in (next(seeds) for _ in range(number)):
        case = phantom.sample(seed)
        url = "data:image/png;base64," + base64.b64encode(phantom.encode_png(phantom.render(case, seed))).decode()
        body = {
            "model": MODEL_NAME,
            "messages": prompt.messages(prompt.card(case.age, case.sex), url),
            "temperature": 0,
            "max_tokens": 500,
        }
        drawn.append(Film(json.dumps(body).encode(), report.text(case)))
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
    cases = {seed: phantom.sample(seed) for seed in (next(seeds) for _ in range(number))}
    questions = []
    for seed, case in cases.items():
        path = folder / f"{seed}.png"
        path.write_bytes(phantom.encode_png(phantom.render(case, seed)))
        questions.append(quick_start.Question(str(path), prompt.card(case.age, case.sex)))
    answers = quick_start.ask(CHECKPOINT, questions)
    right = sum(text == report.text(case) for text, case in zip(answers.texts, cases.values(), strict=True))
    return Run(number / answers.seconds, right, number)


async def _rows(
    running: LocalServer, folder: Path, seeds: Iterator[int], loads: Sequence[int], rounds: int
) -> list[Row]:
    bare = aiohttp.UnixConnector(str(folder / "engine.sock"), limit=0)
    public = aiohttp.TCPConnector(limit=0)
    async with (
        aiohttp.ClientSession(running.root, connector=public) as gateway,
        aiohttp.ClientSession("http://engine", connector=bare) as engine,
    ):
        await measure(gateway, films(seeds, 64), 32)  # the first requests at a batch size are slower
        rows = []
        with tqdm(total=2 * rounds * len(loads), unit="run", disable=None) as bar:
            for in_flight in loads:
                number = max(12, 3 * in_flight)
                runs: dict[aiohttp.ClientSession, list[Run]] = {gateway: [], engine: []}
                for turn in range(rounds):
                    for session in (gateway, engine) if turn % 2 else (engine, gateway):
                        runs[session].append(await measure(session, films(seeds, number), in_flight))
                        bar.update()
                rows.append(_row(in_flight, runs[gateway], runs[engine]))
        return rows


def _row(in_flight: int, gateway: list[Run], bare: list[Run]) -> Row:
    runs = gateway + bare
    right = sum(run.right for run in runs) / sum(run.count for run in runs)
    middle = [statistics.median(run.per_second for run in path) for path in (gateway, bare)]
    return Row(in_flight, middle[0], middle[1], right)


def _starts(number: int, folder: Path, flags: Sequence[str]) -> list[tuple[float, float]]:
    """Seconds from start to ready, of pedcxr-serve and of bare vLLM with the same arguments, in turns."""
    found = []
    for _ in tqdm(range(number), desc="starts", unit="pair", disable=None):
        with server(*flags) as running:
            ours = running.seconds
        found.append((ours, _bare_start(folder, flags)))
    return found


def _bare_start(folder: Path, flags: Sequence[str]) -> float:
    """Seconds until stock vLLM answers /health: no plugin, no supervisor, no gateway, no warm-up report."""
    socket = folder / "bare.sock"
    made = plan.make(
        checkpoint.inspect(CHECKPOINT),
        device.detect(),
        cli.parse(["start", *flags]),
        model_dir=CHECKPOINT,
        socket=socket,
    )
    env = {**os.environ, **dict(made.env), "VLLM_PLUGINS": ""}
    del env["VLLM_MEDIA_CONNECTOR"]
    code = "import sys; from pedcxr_serve.vllm_main import stock; stock(sys.argv[1:])"
    command = [sys.executable, "-c", code, *made.argv]
    start = time.perf_counter()
    with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:  # noqa: S603
        try:
            uvloop.run(_answers(socket))
            return time.perf_counter() - start
        finally:
            process.terminate()


async def _answers(socket: Path) -> None:
    async with aiohttp.ClientSession("http://engine", connector=aiohttp.UnixConnector(str(socket))) as session:
        while not await warmup.healthy(session):
            await asyncio.sleep(0.1)


def _print_rows(rows: Sequence[Row], cards: Sequence[Run]) -> None:
    base = statistics.mean(card.per_second for card in cards) if cards else None
    print("\nreports a second; medians, gateway and bare engine in turns")
    print(f"{'at once':>8} {'gateway':>9} {'bare':>9} {'gateway/bare':>13} {'x quick start':>14} {'as drawn':>9}")
    for row in rows:
        times = f"{row.gateway / base:.1f}" if base else "-"
        print(
            f"{row.in_flight:>8} {row.gateway:>9.1f} {row.bare:>9.1f} {row.ratio:>13.2f} {times:>14} {row.right:>9.1%}"
        )
    for card, when in zip(cards, ("before", "after"), strict=False):
        print(
            f"transformers' quick start, {when}: {card.per_second:.2f} a second, {card.right} of {card.count} as drawn"
        )


def _print_starts(pairs: Sequence[tuple[float, float]], first: Sequence[float]) -> None:
    print("\nseconds from start to ready: pedcxr-serve, with a warm-up report; bare vLLM, to its first /health")
    for seconds in first:
        print(f"{seconds:>8.1f}        -")
    for ours, bare in pairs:
        print(f"{ours:>8.1f} {bare:>8.1f}")


if __name__ == "__main__":
    main()
