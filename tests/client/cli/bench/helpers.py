"""Made-up samples and stages, and runs of ``pedcxr bench`` on a fake engine."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from pedcxr_client.bench import schedule
from pedcxr_client.bench.figures import StageRun
from pedcxr_client.bench.schedule import Stage
from pedcxr_client.bench.send import Sample
from pedcxr_client.bench.watch import Scrapes
from pedcxr_client.cli.main import main
from tests.client.batch.helpers import write_films

ENVIRONMENT = re.compile(r"event loop of this process|this process used|sent \d+ ms late|shorter than alone")
"""Reasons that a busy machine causes; no test depends on an idle one."""
FLAGS = {'vllm:cache_config_info{block_size="32",enable_prefix_caching="True"}': 1.0}
"""The line of vLLM's metrics page with its cache configuration."""
WORKLOAD = """\
[films]
source = "folder"
path = "films"
count = 4
[reports]
alone = 2
[load]
kind = "closed"
in_flight = 4
seconds = 0.2
"""


def sample(at: float = 0.0, *, ttft: float = 0.1, e2e: float = 0.5, tokens: int = 40, **fields: Any) -> Sample:
    """A report that was sent at a time and was ok, unless the fields say otherwise."""
    values: dict[str, Any] = {
        "tenant": "default", "case": "film 1", "scheduled": at, "sent": at, "first": at + ttft, "last": at + e2e,
        "done": at + e2e, "status": 200, "prompt_tokens": 300, "completion_tokens": tokens, "digest": "same",
    }  # fmt: skip
    return Sample(**values | fields)


def closed(count: int = 200, in_flight: int = 4, **fields: Any) -> StageRun:
    """A closed loop of lanes whose reports take 0.5 s each."""
    samples = [sample(0.5 * (number // in_flight), case=f"film {number % 8}") for number in range(count)]
    return _run(schedule.closed(in_flight, 20), samples, fields)


def poisson(count: int = 200, rate: float = 10, **fields: Any) -> StageRun:
    """An open loop with a report every 0.1 s."""
    samples = [sample(number / rate, case=f"film {number % 8}") for number in range(count)]
    times = tuple(one.scheduled for one in samples)
    return _run(Stage("open", count / rate, times=times, rate=rate), samples, fields)


def _run(stage: Stage, samples: list[Sample], fields: dict[str, Any]) -> StageRun:
    values: dict[str, Any] = {
        "begin": 0.0,
        "end": max(one.done for one in samples),
        "scrapes": Scrapes({"vllm:mm_cache_hits_total": 5.0}, {"vllm:mm_cache_hits_total": 5.0}),
        "lag_s": [0.001] * 100,
        "own_cpu_s": 0.5,
        "calibration_s": [0.01, 0.0101, 0.0102],
    }
    return StageRun(stage, samples, **values | fields)


def bench(folder: Path, url: str, mode: str, *more: str, workload: str = WORKLOAD) -> tuple[int, dict[str, Any]]:
    """Run a mode; return the exit code and the result."""
    path, out, films = folder / "workload.toml", folder / "out.json", folder / "films"
    if not films.exists():
        write_films(films, 4)
    path.write_text(workload)
    code = main(["bench", mode, "--workload", str(path), "--url", url, "-o", str(out), "--force", *more])
    return code, json.loads(out.read_text()) if out.exists() else {}


def reasons(result: dict[str, Any]) -> list[str]:
    """The reasons that no busy machine causes."""
    return [reason for reason in result["reasons"] if not ENVIRONMENT.search(reason)]


def files(folder: Path) -> list[str]:
    """The names of the files in a folder."""
    return sorted(path.name for path in folder.iterdir() if path.is_file())
