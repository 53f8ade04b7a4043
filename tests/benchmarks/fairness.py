"""``make bench-fairness``: how a real engine is shared, beside first come first served, in turns in one run.

First come first served is the same engine under the same load behind a second gateway that has no tenants.
Service is image + prompt + 2 x output tokens by the engine's count, of requests that ended in the window, which begins
when the first of them are through; the light tenant's waits are of films sent in it. A benchmark says what it found and
fails for nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import aiohttp
import uvloop
from tqdm import tqdm

from pedcxr_serve import cli
from pedcxr_serve.checkpoint import download, inspect
from pedcxr_serve.demo import drawing
from pedcxr_serve.gateway.auth import api_keys
from pedcxr_serve.planner import devices, plan
from tests.benchmarks import fcfs_gateway
from tests.benchmarks.load_generator import Films, Sample, Sender, run
from tests.benchmarks.local_server import LocalServer, server

_SEEDS = range(8_200_000, 8_200_064)  # training draws from lower ones
_WEIGHTS = {"team": 1, "flood": 1, "triple": 3, "light": 1}


def _option(default: float, meaning: str) -> Any:
    return field(default=default, metadata={"help": f"{meaning} (default %(default)s)"})


@dataclass(frozen=True, slots=True)
class Load:
    """What is sent, and for how long. The defaults suit two cores and the demo model, whose reports have 29 to 79
    tokens, 45 in the mean."""

    rounds: int = _option(3, "rounds of all windows")
    seconds: float = _option(20.0, "seconds of a window")
    lead: float = _option(4.0, "seconds before it, until the first requests are through")
    team: int = _option(96, "requests that the one who sends less keeps open")
    flood: int = _option(384, "requests that the other keeps open")
    short: int = _option(15, "tokens of the longest answer to the one")
    long: int = _option(500, "tokens of the longest answer to the other")
    every: float = _option(2.0, "seconds between the light tenant's films")
    light: int = _option(500, "tokens of the longest answer to it")
    side: int = _option(0, "pixels of a square film's side; 0: the drawings' own size")


@dataclass(slots=True)
class Found:
    """What every window gave."""

    equal: list[float] = field(default_factory=list)  # the share of the one who sends less
    equal_first_come: list[float] = field(default_factory=list)
    triple: list[float] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)  # service a second of all
    rate_first_come: list[float] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)  # seconds to the first word of the light tenant
    flooded: list[float] = field(default_factory=list)
    flooded_first_come: list[float] = field(default_factory=list)
    least_waiting: float = math.inf  # of either sender, at any look while shares were measured
    cache_hits: float = 0.0  # must be 0: no film is sent twice


def main() -> None:
    """Run the benchmark and print its table. Words after ``--`` go to ``pedcxr-serve start``: ``-- --model DIR``."""
    own, flags = cli.split(sys.argv[1:])
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.fairness", description=__doc__)
    for one in fields(Load):
        parser.add_argument(f"--{one.name}", type=type(one.default), default=one.default, **one.metadata)
    load = Load(**vars(parser.parse_args(own)))
    settings = cli.parse(["start", *flags])
    folder = download.resolve(settings.model, settings.revision)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        shown = _tenants(scratch / "tenants.toml")
        socket = scratch / "run" / "engine.sock"
        made = plan.make(
            inspect.inspect(folder),
            devices.detect(settings.engine.device),
            settings,
            model_dir=folder,
            socket=socket,
        )
        side = load.side
        films = Films(_SEEDS, size=(side, side) if side else drawing.SIZE, model=settings.served_name)
        with (
            server("--tenants", str(scratch / "tenants.toml"), "--socket-dir", str(socket.parent), *flags) as running,
            fcfs_gateway.first_come(socket, made.max_num_seqs, settings.served_name, scratch) as line,
        ):
            before = os.getloadavg()
            found = uvloop.run(_measure(running, line, shown, films, load))
    _print(found, before)


def _tenants(path: Path) -> dict[str, str]:
    """Write a tenants file; its keys by name."""
    shown = {name: api_keys.new(path, name) for name in _WEIGHTS}
    text = path.read_text()
    for name, weight in _WEIGHTS.items():
        text = text.replace(f"[tenant.{name}]\n", f"[tenant.{name}]\nweight = {weight}\nmax_concurrent = 1024\n")
    path.write_text(text)
    return shown


async def _measure(running: LocalServer, line_url: str, shown: dict[str, str], films: Films, load: Load) -> Found:
    team = Sender("team", shown["team"], at_once=load.team, max_tokens=load.short)
    triple = replace(team, key=shown["triple"])
    flood = Sender("flood", shown["flood"], at_once=load.flood, max_tokens=load.long)
    light = Sender("light", shown["light"], every_s=load.every, max_tokens=load.light)
    seconds, found = load.seconds, Found()
    async with (
        aiohttp.ClientSession(running.root, connector=aiohttp.TCPConnector(limit=0)) as fair,
        aiohttp.ClientSession(line_url, connector=aiohttp.TCPConnector(limit=0)) as line,
    ):
        bar = tqdm(total=6 * load.rounds, unit="window", disable=None)

        async def timed(
            session: aiohttp.ClientSession, senders: Sequence[Sender], length: float
        ) -> tuple[float, list[Sample]]:
            begun = time.perf_counter() + load.lead
            samples = await run(session, senders, films, load.lead + length)
            bar.update()
            return begun, samples

        async def window(session: aiohttp.ClientSession, *senders: Sender) -> list[Sample]:
            begun, samples = await timed(session, senders, seconds)
            return [sample for sample in samples if sample.done >= begun]

        async def waits(session: aiohttp.ClientSession, *senders: Sender) -> list[float]:
            begun, samples = await timed(session, senders, 2 * seconds)  # a film every two seconds is not many
            return [sample.ttft for sample in samples if sample.who == "light" and sample.sent >= begun]

        async def backlogged(one: Sender, other: Sender) -> list[Sample]:
            tenants = [name for name, key in shown.items() if key in (one.key, other.key)]
            watch = asyncio.create_task(_watch(fair, running.metrics_url, tenants, load.lead, found))
            samples = await window(fair, one, other)
            watch.cancel()
            return samples

        await run(fair, [team], films, load.lead)  # the first requests at a batch size are slower
        before = _cache_hits(await _page(fair, running.metrics_url))
        for _ in range(load.rounds):
            samples = await backlogged(team, flood)
            found.equal.append(_share(samples))
            found.rate.append(_service(samples) / seconds)
            samples = await window(line, team, flood)
            found.equal_first_come.append(_share(samples))
            found.rate_first_come.append(_service(samples) / seconds)
            found.triple.append(_share(await backlogged(triple, flood)))
            found.alone += await waits(fair, light)
            found.flooded += await waits(fair, light, flood)
            found.flooded_first_come += await waits(line, light, flood)
        found.cache_hits = _cache_hits(await _page(fair, running.metrics_url)) - before
        bar.close()
    return found


async def _watch(session: aiohttp.ClientSession, url: str, tenants: Sequence[str], lead: float, found: Found) -> None:
    """PixelStats now and then whether all of them wait."""
    await asyncio.sleep(lead)
    while True:
        page = await _page(session, url)
        for tenant in tenants:
            (waiting,) = re.findall(rf'^pedcxr_tenant_waiting{{tenant="{tenant}"}} (\S+)$', page, re.MULTILINE)
            found.least_waiting = min(found.least_waiting, float(waiting))
        await asyncio.sleep(2)


async def _page(session: aiohttp.ClientSession, url: str) -> str:
    async with session.get(url) as answer:
        return await answer.text()


def _cache_hits(page: str) -> float:
    return sum(map(float, re.findall(r"^vllm:(?:mm|prefix)_cache_hits_total\S* (\S+)$", page, re.MULTILINE)))


def _service(samples: Sequence[Sample]) -> float:
    return sum(sample.cost for sample in samples)


def _share(samples: Sequence[Sample]) -> float:
    return _ratio(_service([sample for sample in samples if sample.who == "team"]), _service(samples))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def _median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else math.nan


def _p95(seconds: Sequence[float]) -> float:
    return statistics.quantiles(seconds, n=20, method="inclusive")[18] if len(seconds) > 1 else math.nan


def _print(found: Found, before: tuple[float, float, float]) -> None:
    """A window in which nothing came to an end gives nan, not an error: it may be the finding."""
    alone, flooded, first_come = _p95(found.alone), _p95(found.flooded), _p95(found.flooded_first_come)
    ratios = [_ratio(fair, line) for fair, line in zip(found.rate, found.rate_first_come, strict=True)]
    print(f"\n{'':58}{'target':>12}{'measured':>10}{'first come first served':>26}")
    for name, target, value, other in (
        ("share of service, the other sends more and longer", "50 +- 5 %", f"{_median(found.equal):.1%}",
         f"{_median(found.equal_first_come):.1%}"),
        ("the same with three times its weight", "75 +- 5 %", f"{_median(found.triple):.1%}", "-"),
        ("p95 TTFT of a light tenant's film under a flood, x its own", "<= 2", f"{flooded / alone:.2f}",
         f"{first_come / alone:.2f}"),
        ("throughput, x first come first served", ">= 0.97", f"{_median(ratios):.3f}", "1"),
    ):  # fmt: skip
        print(f"{name:58}{target:>12}{value:>10}{other:>26}")
    print(
        f"\nlight tenant's TTFT, median and p95 in ms: alone {1e3 * _median(found.alone):.0f} and {1e3 * alone:.0f}, "
        f"flooded {1e3 * _median(found.flooded):.0f} and {1e3 * flooded:.0f}, first come first served "
        f"{1e3 * _median(found.flooded_first_come):.0f} and {1e3 * first_come:.0f}; "
        f"{len(found.alone)}, {len(found.flooded)} and {len(found.flooded_first_come)} films"
    )
    for name, values in (
        ("share", found.equal),
        ("share, first come first served", found.equal_first_come),
        ("share at 3:1", found.triple),
        ("throughput, x first come first served", ratios),
        ("service a second", found.rate),
    ):
        print(f"each round: {name:40}", *(f"{value:.4g}" for value in values))
    print(
        f"least requests waiting, of either, while shares were measured: {found.least_waiting:.0f} (0: no backlog); "
        f"cache hits: {found.cache_hits:.0f} (none is meant to be)"
    )
    print(f"load average before and after: {before[0]:.1f}, {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
