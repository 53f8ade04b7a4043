"""What happens around the requests: the server's counters, processor times, the event loop, the clock, the machine."""

from __future__ import annotations

import asyncio
import math
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

_LINE = re.compile(r"^([a-zA-Z_:][\w:]*)(\{[^}]*\})? (\S+)", re.MULTILINE)
_FACTS = {
    "pedcxr_build_info": "gateway",
    "pedcxr_slots": "gateway",
    "pedcxr_replica_info": "engine",
    "vllm:cache_config_info": "cache_config",
}
_FACT = re.compile(rf"^({'|'.join(_FACTS)})(?:\{{(.*)\}})? (\S+)", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')
_PAGE_S = 5.0  # for a page of the server; a limit of aiohttp could swallow a cancellation (see `run.Runner.stage`)
_TICK_S = 0.02  # between two measurements of the loop's lag
_LOOPS = 200_000
_STARTED = "process_start_time_seconds"
_GAUGES = {
    "running": "vllm:num_requests_running",
    "waiting": "vllm:num_requests_waiting",
    "kv": "vllm:kv_cache_usage_perc",
    "queue": "pedcxr_tenant_waiting",
}
_KEPT = re.compile(r"^(vllm:|pedcxr_)\w+_total$|^process_start_time_seconds$")


def parse(page: str) -> dict[str, float]:
    """Return the counters and gauges of a Prometheus page, added over their labels; only finite numbers count."""
    values: dict[str, float] = {}
    for name, _, text in _LINE.findall(page):
        if name.endswith("_bucket"):
            continue
        try:
            value = float(text)
        except ValueError:
            continue
        if math.isfinite(value):
            values[name] = values.get(name, 0.0) + value
    return values


def page_facts(page: str) -> dict[str, dict[str, str]]:
    """Return the versions, slots and cache configuration on metrics pages, by label; replicas that differ are listed.

    The slots of a gateway are vLLM's max-num-seqs, unless ``--slots`` gives the gateway a part of them.
    """
    facts: dict[str, dict[str, list[str]]] = {}
    for name, labels, value in _FACT.findall(page):
        for label, text in _LABEL.findall(labels) or [("slots", value.removesuffix(".0"))]:
            facts.setdefault(_FACTS[name], {}).setdefault(label, []).append(text)
    return {name: {label: ", ".join(dict.fromkeys(texts)) for label, texts in by.items()} for name, by in facts.items()}


@dataclass(slots=True)
class Scrapes:
    """The server's metrics over a stage.

    Attributes:
        before, after: counters at both ends; empty if the server shows none.
        series: time and gauges, once a second: requests running and waiting, KV cache usage from 0 to 1.
    """

    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)
    series: list[dict[str, float]] = field(default_factory=list)

    @property
    def is_read(self) -> bool:
        """Whether the page was there at both ends; otherwise nothing can be said of its counters."""
        return bool(self.before and self.after)

    def delta(self, name: str) -> float | None:
        """Return the increase of a counter, or None if the server does not have it."""
        return self.after[name] - self.before.get(name, 0.0) if self.is_read and name in self.after else None

    @property
    def restarted(self) -> bool:
        """Whether the engine was started again: a counter went back, or the server says so."""
        backwards = any(
            self.after.get(name, 0.0) < value
            for name, value in self.before.items()
            if name.startswith("vllm:") and name.endswith("_total")
        )
        return self.is_read and (backwards or bool(self.delta("pedcxr_engine_restarts_total")) or self._started_again)

    @property
    def _started_again(self) -> bool:
        return self.before.get(_STARTED, self.after.get(_STARTED)) != self.after.get(_STARTED)


class Metrics:
    """Reads the metrics pages of the replicas of a server, and adds them up.

    A server without a page is no error: what cannot be checked is named in the result.
    """

    def __init__(self, session: aiohttp.ClientSession, urls: Sequence[str]) -> None:
        self._session, self._urls = session, urls

    async def facts(self) -> dict[str, dict[str, str]]:
        """Return what the pages say about gateway and engine; see `page_facts`."""
        return page_facts("\n".join(await self._pages()))

    async def counters(self) -> dict[str, float]:
        """Return the counters."""
        return {name: value for name, value in (await self._values()).items() if _KEPT.match(name)}

    async def follow(self, scrapes: Scrapes, clock: Callable[[], float]) -> None:
        """Record the gauges once a second until cancelled."""
        while self._urls:
            values = await self._values()
            if gauges := {label: values[name] for label, name in _GAUGES.items() if name in values}:
                if "kv" in gauges:  # a share of each replica's cache
                    gauges["kv"] /= len(self._urls)
                scrapes.series.append({"time": clock(), **gauges})
            await asyncio.sleep(1)

    async def _values(self) -> dict[str, float]:
        pages = await self._pages()
        return parse("\n".join(pages)) if all(pages) else {}  # the sum of a part would be wrong

    async def _pages(self) -> list[str]:
        return await asyncio.gather(*map(self._page, self._urls))

    async def _page(self, url: str) -> str:
        try:
            async with asyncio.timeout(_PAGE_S), self._session.get(url) as response:
                return await response.text() if response.status == 200 else ""
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
            return ""


@dataclass(slots=True)
class Lag:
    """How late the event loop of this process runs, in seconds."""

    values: list[float] = field(default_factory=list)

    async def follow(self) -> None:
        """Measure until cancelled."""
        while True:
            due = time.perf_counter() + _TICK_S
            await asyncio.sleep(_TICK_S)
            self.values.append(max(0.0, time.perf_counter() - due))


class ClockCheck:
    """Whether the system's clock was set during a run, which would falsify joins with the server's logs."""

    def __init__(self, wall: Callable[[], float] = time.time, steady: Callable[[], float] = time.monotonic) -> None:
        self._wall, self._steady = wall, steady
        self._offset = wall() - steady()

    def step_s(self) -> float:
        """Return by how many seconds the clock was set since the start."""
        return self._wall() - self._steady() - self._offset


def calibrate() -> float:
    """Return the processor time of a fixed loop, in seconds. It varies where the machine's speed varies."""
    start, total = time.thread_time(), 0
    for number in range(_LOOPS):
        total += number
    return time.thread_time() - start


def spread(values: list[float]) -> float:
    """Return the range of the values relative to their median."""
    return (max(values) - min(values)) / statistics.median(values) if values else 0.0


@dataclass(frozen=True, slots=True)
class Process:
    """A process of the server, at one moment."""

    pid: int
    name: str
    cpu_s: float
    rss_mib: float
    files: int


def processes(root: int | None) -> list[Process]:
    """Return a process and its descendants from ``/proc``; [] without a process id or where there is no ``/proc``."""
    if root is None:
        return []
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(entry.parent.name)] = int(entry.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue  # the process has ended
    family = [root]
    for pid in family:
        family += sorted(child for child, parent in parents.items() if parent == pid)
    return [one for pid in family if (one := process(pid)) is not None]


def process(pid: int) -> Process | None:
    """Return a process from ``/proc``, or None if it has ended or there is no ``/proc``."""
    folder = Path(f"/proc/{pid}")
    try:
        name, _, rest = (folder / "stat").read_text().partition("(")[2].rpartition(")")
        fields = rest.split()
        ticks = os.sysconf("SC_CLK_TCK")
        status = (folder / "status").read_text()
        rss = re.search(r"VmRSS:\s+(\d+)", status)
        files = len(os.listdir(folder / "fd"))
    except (OSError, ValueError, IndexError):
        return None
    cpu = (int(fields[11]) + int(fields[12])) / ticks
    return Process(pid, _program(folder, name), cpu, int(rss[1]) / 1024 if rss else 0.0, files)


def _program(folder: Path, name: str) -> str:
    """Return the module or the script that an interpreter runs, else the name of the process."""
    try:
        words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return name
    if not name.startswith("python"):
        return name
    rest = iter(words[1:])
    for word in rest:
        if word == "-m":
            return next(rest, name)
        if word in ("-W", "-X"):
            next(rest, "")
        elif not word.startswith("-"):
            return Path(word).name or name
        elif word == "-c":
            break
    return name


def machine() -> dict[str, object]:
    """Return the machine of the load generator, without its name."""
    cpu = ""
    try:
        match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        cpu = match[1] if match else ""
    except OSError:
        pass
    return {
        "cpu": cpu or platform.processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "aiohttp": aiohttp.__version__,
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


async def describe(session: aiohttp.ClientSession, url: str, headers: Mapping[str, str]) -> dict[str, object]:
    """Return what the server says about itself: its model entry, its version, its ``Server`` header."""
    facts: dict[str, object] = {}
    for name, address in (("models", f"{url}/models"), ("version", f"{url.removesuffix('/v1')}/version")):
        try:
            async with asyncio.timeout(_PAGE_S), session.get(address, headers=headers) as response:
                if header := response.headers.get("server"):
                    facts["server"] = header
                if response.status == 200:
                    facts[name] = await response.json(content_type=None)
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
            continue
    return facts
