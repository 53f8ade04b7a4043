"""``make bench-fairness``: how tenants share a real engine, compared with first come, first served (FCFS).

FCFS is the same engine under the same load behind a second gateway without tenants; both are measured in turns. Service
is image + prompt + 2 x output tokens by the engine's count, of the requests that ended in a window. A window starts
after the first requests have ended. The waits of the light tenant are those of films sent in the window. The benchmark
prints results and fails for none of them.
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
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import aiohttp
import uvloop
from tqdm import tqdm

from pedcxr_client.bench.send import Sample
from pedcxr_client.bench.watch import parse
from pedcxr_serve import cli
from pedcxr_serve.checkpoint import download, inspect
from pedcxr_serve.demo import drawing
from pedcxr_serve.gateway.auth import api_keys
from pedcxr_serve.planner import devices, plan
from tests.benchmarks import fcfs_gateway
from tests.benchmarks.load_generator import Films, Sender, cost, run
from tests.support.servers.local_server import LocalServer, server

_SEEDS = range(8_200_000, 8_200_064)  # training draws from lower ones
WEIGHTS = {"team": 1, "flood": 1, "triple": 3, "light": 1}


def _option(default: float, meaning: str) -> Any:
    return field(default=default, metadata={"help": f"{meaning} (default %(default)s)"})


@dataclass(frozen=True, slots=True)
class Load:
    """The load and its duration. The defaults suit two cores and the demo model, whose reports have 29 to 79 tokens, 45
    on average."""

    rounds: int = _option(3, "rounds of all windows")
    seconds: float = _option(20.0, "seconds of a window")
    lead: float = _option(4.0, "seconds before a window, until the first requests have ended")
    team: int = _option(96, "requests that tenant team keeps open")
    flood: int = _option(384, "requests that tenant flood keeps open")
    short: int = _option(15, "max_tokens of team")
    long: int = _option(500, "max_tokens of flood")
    every: float = _option(2.0, "seconds between the light tenant's films")
    light: int = _option(500, "max_tokens of the light tenant")
    side: int = _option(0, "side of a square film in pixels; 0 uses the size of the drawings")


@dataclass(slots=True)
class Results:
    """Results of all windows."""

    equal: list[float] = field(default_factory=list)  # team's share of the service
    equal_fcfs: list[float] = field(default_factory=list)
    triple: list[float] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)  # service per second of all tenants
    rate_fcfs: list[float] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)  # the light tenant's seconds to the first word
    flooded: list[float] = field(default_factory=list)
    flooded_fcfs: list[float] = field(default_factory=list)
    least_waiting: float = math.inf  # lowest number of waiting requests of a tenant while shares were measured
    cache_hits: float = 0.0  # 0 is expected: no film is sent twice


def main() -> None:
    """Run the benchmark and print its table. Arguments after ``--`` go to ``pedcxr-serve start``."""
    own, flags = cli.split(sys.argv[1:])
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.fairness", description=__doc__)
    for option in fields(Load):
        parser.add_argument(f"--{option.name}", type=type(option.default), default=option.default, **option.metadata)
    load = Load(**vars(parser.parse_args(own)))
    settings = cli.parse(["start", *flags])
    folder = download.resolve(settings.model, settings.revision)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        keys = write_tenants(scratch / "tenants.toml")
        socket = scratch / "run" / "engine.sock"
        engine_plan = plan.make(
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
            fcfs_gateway.fcfs_gateway(socket, engine_plan.max_num_seqs, settings.served_name, scratch) as fcfs_url,
        ):
            before = os.getloadavg()
            results = uvloop.run(_measure(running, fcfs_url, keys, films, load))
    _print(results, before)


def write_tenants(path: Path) -> dict[str, str]:
    """Write a tenants file; return the keys by tenant."""
    keys = {name: api_keys.new(path, name) for name in WEIGHTS}
    text = path.read_text()
    for name, weight in WEIGHTS.items():
        text = text.replace(f"[tenant.{name}]\n", f"[tenant.{name}]\nweight = {weight}\nmax_concurrent = 1024\n")
    path.write_text(text)
    return keys


async def _measure(running: LocalServer, fcfs_url: str, keys: dict[str, str], films: Films, load: Load) -> Results:
    team = Sender("team", keys["team"], concurrency=load.team, max_tokens=load.short)
    triple = replace(team, key=keys["triple"])
    flood = Sender("flood", keys["flood"], concurrency=load.flood, max_tokens=load.long)
    light = Sender("light", keys["light"], every_s=load.every, max_tokens=load.light)
    seconds, results = load.seconds, Results()
    async with (
        aiohttp.ClientSession(running.root, connector=aiohttp.TCPConnector(limit=0)) as fair,
        aiohttp.ClientSession(fcfs_url, connector=aiohttp.TCPConnector(limit=0)) as fcfs,
    ):
        bar = tqdm(total=6 * load.rounds, unit="window", disable=None)

        async def timed(session: aiohttp.ClientSession, senders: Sequence[Sender], length: float) -> list[Sample]:
            samples = await run(session, senders, films, load.lead + length)
            bar.update()
            return samples

        async def window(session: aiohttp.ClientSession, *senders: Sender) -> list[Sample]:
            return [sample for sample in await timed(session, senders, seconds) if sample.done >= load.lead]

        async def waits(session: aiohttp.ClientSession, *senders: Sender) -> list[float]:
            samples = await timed(session, senders, 2 * seconds)  # the light tenant sends few films
            light = (sample for sample in samples if sample.tenant == "light" and sample.sent >= load.lead)
            return [sample.ttft for sample in light if sample.ttft is not None]

        async def backlogged(first: Sender, second: Sender) -> list[Sample]:
            tenants = [name for name, key in keys.items() if key in (first.key, second.key)]
            watch = asyncio.create_task(_watch(fair, running.metrics_url, tenants, load.lead, results))
            samples = await window(fair, first, second)
            watch.cancel()
            return samples

        await run(fair, [team], films, load.lead)  # the first requests at a batch size are slower
        before = _cache_hits(await _page(fair, running.metrics_url))
        for _ in range(load.rounds):
            samples = await backlogged(team, flood)
            results.equal.append(_share(samples))
            results.rate.append(_service(samples) / seconds)
            samples = await window(fcfs, team, flood)
            results.equal_fcfs.append(_share(samples))
            results.rate_fcfs.append(_service(samples) / seconds)
            results.triple.append(_share(await backlogged(triple, flood)))
            results.alone += await waits(fair, light)
            results.flooded += await waits(fair, light, flood)
            results.flooded_fcfs += await waits(fcfs, light, flood)
        results.cache_hits = _cache_hits(await _page(fair, running.metrics_url)) - before
        bar.close()
    return results


async def _watch(
    session: aiohttp.ClientSession, url: str, tenants: Sequence[str], lead: float, results: Results
) -> None:
    """Record the lowest number of waiting requests of the tenants."""
    await asyncio.sleep(lead)
    while True:
        page = await _page(session, url)
        for tenant in tenants:
            (waiting,) = re.findall(rf'^pedcxr_tenant_waiting{{tenant="{tenant}"}} (\S+)$', page, re.MULTILINE)
            results.least_waiting = min(results.least_waiting, float(waiting))
        await asyncio.sleep(2)


async def _page(session: aiohttp.ClientSession, url: str) -> str:
    async with session.get(url) as answer:
        return await answer.text()


def _cache_hits(page: str) -> float:
    counters = parse(page)
    return sum(counters.get(f"vllm:{kind}_cache_hits_total", 0) for kind in ("mm", "prefix"))


def _service(samples: Sequence[Sample]) -> float:
    return sum(map(cost, samples))


def _share(samples: Sequence[Sample]) -> float:
    return _ratio(_service([sample for sample in samples if sample.tenant == "team"]), _service(samples))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def _median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else math.nan


def _p95(seconds: Sequence[float]) -> float:
    return statistics.quantiles(seconds, n=20, method="inclusive")[18] if len(seconds) > 1 else math.nan


def _print(results: Results, before: tuple[float, float, float]) -> None:
    """Print the results; a window in which no request ended gives nan."""
    alone, flooded, flooded_fcfs = _p95(results.alone), _p95(results.flooded), _p95(results.flooded_fcfs)
    ratios = [_ratio(fair, fcfs) for fair, fcfs in zip(results.rate, results.rate_fcfs, strict=True)]
    print(f"\n{'':58}{'target':>12}{'measured':>10}{'FCFS':>10}")
    for name, target, value, other in (
        ("share of service, the other tenant sends more and longer", "50 +- 5 %", f"{_median(results.equal):.1%}",
         f"{_median(results.equal_fcfs):.1%}"),
        ("the same with weight 3", "75 +- 5 %", f"{_median(results.triple):.1%}", "-"),
        ("p95 TTFT of a light tenant under a flood, x alone", "<= 2", f"{flooded / alone:.2f}",
         f"{flooded_fcfs / alone:.2f}"),
        ("throughput, x FCFS", ">= 0.97", f"{_median(ratios):.3f}", "1"),
    ):  # fmt: skip
        print(f"{name:58}{target:>12}{value:>10}{other:>10}")
    print(
        f"\nlight tenant's TTFT, median and p95 in ms: alone {1e3 * _median(results.alone):.0f} and {1e3 * alone:.0f}, "
        f"flooded {1e3 * _median(results.flooded):.0f} and {1e3 * flooded:.0f}, FCFS "
        f"{1e3 * _median(results.flooded_fcfs):.0f} and {1e3 * flooded_fcfs:.0f}; "
        f"{len(results.alone)}, {len(results.flooded)} and {len(results.flooded_fcfs)} films"
    )
    for name, values in (
        ("share", results.equal),
        ("share, FCFS", results.equal_fcfs),
        ("share at weight 3", results.triple),
        ("throughput, x FCFS", ratios),
        ("service per second", results.rate),
    ):
        print(f"each round: {name:40}", *(f"{value:.4g}" for value in values))
    print(
        f"lowest number of waiting requests of a tenant while shares were measured: {results.least_waiting:.0f}; "
        f"cache hits: {results.cache_hits:.0f} (0 is expected)"
    )
    print(f"load average before and after: {before[0]:.1f}, {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
