"""``make bench``: a mid-size checkpoint with made-up weights, served and in transformers, measured in alternation.

The paths are transformers with one film at a time, in both number formats; transformers with a padded batch; `vllm
serve` with default flags and openai-python; and `pedcxr-serve` with `pedcxr_client`, both as they come. No film is sent
twice. Every report must have the same number of tokens. Each path has one window per round; rounds run forwards and
backwards in turn. Only ratios apply to another machine. What follows ``--`` are more flags of `pedcxr-serve start`.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import openai
import uvloop
from tqdm import tqdm

from pedcxr_client import AsyncClient
from pedcxr_client.errors import ReportError
from pedcxr_client.films.age import Age
from pedcxr_client.request import prompts
from pedcxr_serve.demo import drawing
from pedcxr_serve.planner import devices
from tests.benchmarks.stock_vllm import stock_vllm
from tests.benchmarks.throughput import batched_transformers, unique_films, windows
from tests.benchmarks.throughput.windows import Span, Window
from tests.support.servers.local_server import server

_NAME = "midsize"
_AGE, _SEX = "6Y", "F"
_FEWEST = 3  # reports of a window
_STOCK_KV_BYTES = 2 << 30  # vLLM's default is 92 % of the memory, of which the other paths need a part

Film = bytes
Send = Callable[[Film], Awaitable[None]]
Measure = Callable[[], Awaitable[float]]


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.throughput", description=__doc__)
    parser.add_argument("--loads", type=int, nargs="+", default=[1, 8, 16, 32], help="numbers of concurrent requests")
    parser.add_argument("--rounds", type=int, default=2, help="windows per path")
    parser.add_argument("--waves", type=int, default=3, help="requests per window and concurrent request, at least 3")
    parser.add_argument("--tokens", type=int, default=128, help="length of a report")
    parser.add_argument("--batch", type=int, default=8, help="films that transformers pads together")
    slow = devices.detect("cpu").slow_bfloat16
    parser.set_defaults(types=("float32",) if slow else ("float32", "bfloat16"))  # of transformers
    parser.add_argument(
        "--dtype",
        choices=("bfloat16", "float32"),
        default="float32" if slow else "bfloat16",
        help="of both servers; by default float32 on a CPU without instructions for bfloat16",
    )
    parser.add_argument(
        "--size", type=int, nargs=2, default=drawing.SIZE, metavar=("HEIGHT", "WIDTH"), help="of a film in pixels"
    )
    parser.add_argument("--skip-transformers", action="store_true", help="measure the servers only")
    words = sys.argv[1:]
    at = words.index("--") if "--" in words else len(words)  # what follows are more flags of pedcxr-serve start
    args = parser.parse_args(words[:at], argparse.Namespace(flags=words[at + 1 :]))
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        checkpoint = folder / "checkpoint"
        module = "tests.benchmarks.throughput.checkpoint"
        subprocess.run([sys.executable, "-W", "ignore", "-m", module, str(checkpoint)], check=True)
        uvloop.run(_run(args, folder, checkpoint))


async def _run(args: argparse.Namespace, folder: Path, checkpoint: Path) -> None:
    films = unique_films.films((args.size[0], args.size[1]))
    prompt = prompts.card(Age.parse(_AGE), _SEX)
    with ExitStack() as stack:
        dtype = ("--dtype", args.dtype)
        limit = ("--kv-cache-memory-bytes", str(_STOCK_KV_BYTES))
        stock = stack.enter_context(stock_vllm(checkpoint, _NAME, folder / "vllm.log", *dtype, *limit))
        # Both engines bind their thread to the same core. In the other's window a probe may get no answer for a minute.
        probe = ("--probe-every-s", "3600")
        flags = ("--model", str(checkpoint), "--served-name", _NAME, *dtype, *probe, *args.flags)
        ours = stack.enter_context(server(*flags))
        await stock.wait()
        paths: dict[str, Measure] = {}
        if not args.skip_transformers:
            for kind in args.types:
                model = stack.enter_context(batched_transformers.loaded(checkpoint, kind, prompt, args.tokens))
                for batch in (1, args.batch):
                    name = f"transformers {kind}, " + (f"{batch} padded" if batch > 1 else "one by one")
                    paths[name] = _transformers(model, films, folder, batch, args.tokens)
        async with (
            openai.AsyncOpenAI(
                base_url=f"{stock.root}/v1",
                api_key="none",
                max_retries=0,
                timeout=600,
                http_client=openai.DefaultAsyncHttpxClient(trust_env=False),  # no proxy, as for pedcxr's client
            ) as plain,
            AsyncClient(ours.url, model=_NAME, retries=0) as client,
        ):
            senders = {"vllm serve": _plain(plain, prompt, args.tokens), "pedcxr": _client(client, args.tokens)}
            for load in args.loads:
                requests = max(args.waves * load, 2 * load + _FEWEST)
                for name, send in senders.items():
                    paths[f"{name} at {load}"] = _closed_loop(send, films, load, requests)
            try:
                for send in senders.values():  # the first requests of a server are slower
                    await _lanes(send, films, max(args.loads), max(args.loads))
                results = await _alternate(paths, args.rounds)
            except Exception:
                for log in (ours.log, stock.log):
                    print(log.read_text(errors="replace"), file=sys.stderr)
                raise
    bases = {"transformers float32, one by one": "x one by one, float32"} if not args.skip_transformers else {}
    bases |= {f"transformers {args.dtype}, {args.batch} padded": "x padded batch"} if bases else {}
    print("\n" + windows.table(results, bases | {"vllm serve at {load}": "x vllm serve, same load"}))


async def _alternate(paths: dict[str, Measure], rounds: int) -> list[Window]:
    results: list[Window] = []
    with tqdm(total=rounds * len(paths), unit="window", disable=None) as bar:
        for number in range(rounds):
            for path in windows.order(list(paths), number):
                bar.set_postfix_str(path)
                calibration_s = _calibrate()
                results.append(Window(path, number, await paths[path](), calibration_s))
                bar.update()
    return results


def _calibrate() -> float:
    """Return the processor time of a fixed loop: it varies with the other work on the machine."""
    start = time.process_time()
    value = 0
    for number in range(2_000_000):
        value ^= number
    return time.process_time() - start


def _transformers(
    model: batched_transformers.Model, films: Iterator[Film], folder: Path, batch: int, tokens: int
) -> Measure:
    repeats = _FEWEST if batch == 1 else 1

    async def measure() -> float:
        total = 0.0
        for _ in range(repeats):
            paths = [folder / f"{number}.png" for number in range(batch)]
            for path in paths:
                path.write_bytes(next(films))
            seconds, lengths = await asyncio.to_thread(model.generate, paths)
            _require(lengths == [tokens] * batch, f"transformers wrote {lengths} tokens")
            total += seconds
        return repeats * batch / total

    return measure


def _closed_loop(send: Send, films: Iterator[Film], in_flight: int, requests: int) -> Measure:
    async def measure() -> float:
        return windows.steady_rate(await _lanes(send, films, in_flight, requests), in_flight)

    return measure


async def _lanes(send: Send, films: Iterator[Film], in_flight: int, requests: int) -> list[Span]:
    """Keep ``in_flight`` requests open until this many have been sent; return the span of each."""
    spans: list[Span] = []
    left = count(requests, -1)

    async def lane() -> None:
        while next(left) > 0:
            film, start = next(films), time.perf_counter()
            await send(film)
            spans.append(Span(start, time.perf_counter()))

    async with asyncio.TaskGroup() as group:
        for _ in range(in_flight):
            group.create_task(lane())
    return spans


def _plain(client: openai.AsyncOpenAI, prompt: str, tokens: int) -> Send:
    """Return what a user of openai-python writes against `vllm serve`."""

    async def send(film: Film) -> None:
        url = "data:image/png;base64," + base64.b64encode(film).decode()
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": prompt}]
        answer = await client.chat.completions.create(
            model=_NAME,
            messages=[{"role": "user", "content": content}],
            max_tokens=tokens,
            temperature=0,
        )
        length = answer.usage.completion_tokens if answer.usage else None
        _require(length == tokens, f"vllm serve wrote {length} tokens")

    return send


def _client(client: AsyncClient, tokens: int) -> Send:
    """Return what a user of `pedcxr_client` writes. Random words are no report, so the client raises, after the end."""

    async def send(film: Film) -> None:
        try:
            await client.report(film, age=_AGE, sex=_SEX, max_tokens=tokens)
        except ReportError as error:
            _require(error.finish_reason == "length", f"pedcxr ended a report by {error.finish_reason}: {error}")
        else:
            _require(False, "pedcxr wrote fewer tokens than it should")

    return send


def _require(is_met: bool, failure: str) -> None:
    if not is_met:
        raise SystemExit(f"the benchmark is invalid: {failure}")


if __name__ == "__main__":
    main()
