"""Reports per second on the dimensions of the published model with random weights: transformers, `vllm serve`, pedcxr.

The servers run one after the other, since each takes the memory of the card. ``pedcxr bench`` sends the load: closed
loops, films of full size or resized by the client, none twice, and reports of exactly the same length.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pedcxr_client.films.age import Age
from pedcxr_client.request import prompts
from pedcxr_serve.checkpoint import inspect
from pedcxr_serve.demo import drawing
from pedcxr_serve.demo.findings import sample
from pedcxr_serve.planner import devices, roofline
from tests.benchmarks import transformers_baseline, weightless_checkpoint
from tests.benchmarks.gpu.rows import Rows, facts
from tests.benchmarks.stock_vllm import stock_vllm
from tests.benchmarks.transformers_baseline import Options, Question
from tests.support.bench_command import BenchCommand
from tests.support.servers.local_server import server

_NAME = "weightless"
_FIRST_SEED = 8_300_000  # training draws from lower seeds
_RANDOM_WEIGHTS = ("--load-format", "dummy")
_KV_BYTES_ON_A_CPU = 1 << 30  # vLLM's default is 92 % of the memory, which other programs need
_OUTCOMES = ("truncated", "empty", "looping", "not_text", "not_english", "not_report", "prompt_echo")
"""What the client may call random text."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What is measured.

    Attributes:
        folder: for the checkpoint, the films and the results of ``pedcxr bench``.
        device: ``"cuda"`` or ``"cpu"``.
        films: number of films; each request's file is unique all the same.
        size: height and width of a film, pixels.
        loads: numbers of requests in flight.
        seconds: least length of each load.
        tokens: length of a report.
        is_shallow: one narrow layer instead of the published dimensions, to try the benchmark itself.
    """

    folder: Path
    device: str
    films: int
    size: tuple[int, int]
    loads: tuple[int, ...]
    seconds: float
    tokens: int
    is_shallow: bool

    @property
    def checkpoint(self) -> Path:
        """The folder of the checkpoint."""
        return self.folder / "weightless"

    @property
    def dtype(self) -> str:
        """The type of the weights."""
        return "bfloat16" if self.device == "cuda" else "float32"


def prepare(settings: Settings) -> None:
    """Write the checkpoint, and draw the films, unless they exist."""
    if not settings.checkpoint.exists():
        config = (weightless_checkpoint.SHALLOW,) if settings.is_shallow else ()
        weightless_checkpoint.main(settings.checkpoint, *config)
    films = settings.folder / "films"
    if not films.exists():
        films.mkdir(parents=True)
        with ProcessPoolExecutor() as pool:
            list(pool.map(partial(_draw, films, settings.size), range(_FIRST_SEED, _FIRST_SEED + settings.films)))


def _draw(folder: Path, size: tuple[int, int], seed: int) -> None:
    (folder / f"{seed}.png").write_bytes(drawing.encode_png(drawing.render(sample(seed), seed, size=size)))


def transformers(rows: Rows, settings: Settings) -> None:
    """Measure transformers, one film of full size after the other."""
    prompt = prompts.card(Age(5, "Y"), "M")
    questions = [Question(str(film), prompt) for film in sorted((settings.folder / "films").iterdir())[:4]]
    options = Options(settings.tokens, settings.dtype, settings.device, random_weights=True)
    answers = transformers_baseline.ask(settings.checkpoint, questions, options=options)
    rate, prompt_tokens = len(questions) / answers.seconds, answers.prompt_tokens[0]
    shares = _shares(rows, settings, 1, rate, prompt_tokens)
    rows.add("speed", server="transformers", films="full", in_flight=1, reports_s=round(rate, 3),
             prompt_tokens=prompt_tokens, e2e_p50_s=round(1 / rate, 3), **shares)  # fmt: skip


def pedcxr(rows: Rows, settings: Settings, name: str, flags: Sequence[str], films: Sequence[str]) -> None:
    """Measure ``pedcxr-serve start``; ``flags`` after ``--`` go to vLLM."""
    own, vllm = _divide(flags)
    words = ["--model", str(settings.checkpoint), "--served-name", _NAME, "--dtype", settings.dtype]
    words += ["--max-new-tokens", str(settings.tokens), "--log-level", "info", *own, "--", *_RANDOM_WEIGHTS, *vllm]
    with server(*words) as running:
        rows.add("start", server=name, seconds=round(running.seconds, 1), flags=list(flags), **facts(running.log))
        _loads(rows, settings, name, BenchCommand.of(running, settings.folder), films)


def vllm_serve(rows: Rows, settings: Settings, name: str, flags: Sequence[str]) -> None:
    """Measure `vllm serve` with default flags and with ``flags``; films of full size."""
    words = [*_RANDOM_WEIGHTS, "--dtype", settings.dtype, *flags]
    if settings.device == "cpu":
        words += ["--kv-cache-memory-bytes", str(_KV_BYTES_ON_A_CPU)]
    start = time.monotonic()
    with stock_vllm(settings.checkpoint, _NAME, settings.folder / "vllm.log", *words) as stock:
        asyncio.run(stock.wait())
        rows.add(
            "start", server=name, seconds=round(time.monotonic() - start, 1), flags=list(flags), **facts(stock.log)
        )
        pages, pid = [f"{stock.root}/metrics"], ("--server-pid", str(stock.process.pid))
        _loads(rows, settings, name, BenchCommand(f"{stock.root}/v1", pages, settings.folder, *pid), ["full"])


def _divide(flags: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    at = flags.index("--") if "--" in flags else len(flags)
    return flags[:at], flags[at + 1 :]


def _loads(rows: Rows, settings: Settings, name: str, bench: BenchCommand, films: Sequence[str]) -> None:
    for kind in films:
        result = bench(
            "run",
            films={"source": "folder", "path": str(settings.folder / "films"), "resize": "model" * (kind == "resized")},
            reports={"max_tokens": settings.tokens, "allow": _OUTCOMES, "alone": 1},
            load={
                "kind": "sweep",
                "loads": settings.loads,
                "seconds": settings.seconds * len(settings.loads),
            },
        )
        shutil.copy(bench.result_file, rows.path.with_name(f"{name}-{kind}.json"))
        for stage in result["stages"]:
            measured = of_stage(stage, settings.tokens)
            in_flight, rate, prompt_tokens = (measured[key] for key in ("in_flight", "reports_s", "prompt_tokens"))
            shares = _shares(rows, settings, in_flight, rate, prompt_tokens) if rate else {}
            rows.add("speed", server=name, films=kind, **measured, **shares)
        rows.add("bench", server=name, films=kind, valid=result["valid"], reasons=result["reasons"])


def of_stage(stage: Mapping[str, Any], tokens: int) -> dict[str, Any]:
    """Return the figures of a stage of ``pedcxr bench``; ``other_lengths`` counts reports that have not ``tokens``."""
    figures, completed = stage["figures"], stage["completed"]
    latencies = {
        f"{name}_{share}_s": round(figures["percentiles"][name][share], 4)
        for name in ("ttft", "tpot", "e2e")
        for share in ("p50", "p95")
        if share in figures["percentiles"].get(name, {})
    }
    busiest = sorted(figures["server_cpu_ms"].items(), key=lambda one: -one[1])[:4]
    rate = stage["request_throughput"] or 0.0
    return {
        "in_flight": stage["max_concurrency"],
        "reports_s": round(rate, 3),
        "prompt_tokens": round(stage["total_input_tokens"] / completed) if completed else 0,
        **latencies,
        "other_lengths": sum(length not in (tokens, None) for length in stage["output_lens"]),
        "outcomes": figures["outcomes"],
        "busiest_cores": {name: round(milliseconds * rate / 1e3, 2) for name, milliseconds in busiest},
    }


def _shares(rows: Rows, settings: Settings, in_flight: int, rate: float, prompt_tokens: int) -> dict[str, float]:
    """Return the rate in per cent of the roofline: of the data sheet's figures, and of the card's measured ones."""
    shape = inspect.inspect(settings.checkpoint).shape
    assert shape is not None
    card = devices.detect("cpu" if settings.device == "cpu" else "auto")
    cards = {"of_roofline": card}
    for row in rows.read():
        if row["part"] == "ceilings":
            measured = row["copy_tb_s"] * 1e12, row["product_tflop_s"] * 1e12
            cards["of_measured"] = replace(card, bandwidth_bytes_s=measured[0], peak_flops=measured[1])
    bytes_of_type = 4 if settings.dtype == "float32" else 2
    shares = {}
    for name, one in cards.items():
        most = roofline.throughput(
            shape, one, in_flight, dtype_bytes=bytes_of_type, new_tokens=settings.tokens, prompt=prompt_tokens
        )
        shares[name] = round(100 * rate / most.reports_per_s, 1)
    return shares
