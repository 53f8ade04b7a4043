"""Run the load testers of the documentation for a few requests at a gateway with a fake engine: ``make loadtest``.

`tests/e2e/clients/test_load_testers.py` runs those that are installed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pedcxr_serve.demo import CHECKPOINT, drawing
from pedcxr_serve.demo.findings import sample
from pedcxr_serve.gateway.auth import api_keys
from pedcxr_serve.gateway.auth.tenant_store import TenantStore
from pedcxr_serve.gateway.request.validation import Rules
from tests.support.paths import ROOT
from tests.support.servers.fake_engine import FakeEngine, RecordedRequest
from tests.support.servers.gateway_server import Gateway, running

PAGE = ROOT / "docs/examples/load-testing.md"
MODEL = "pedcxr-demo"
REQUESTS = 8
CONCURRENCY = 2
_SEED = 9_600_000
_LIMIT_S = 300


def commands(words: str) -> str:
    """Return the only block of shell commands of the page that contains the words."""
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    [block] = [block for block in blocks if words in block]
    return str(block)


def _aiperf(folder: Path) -> int:
    return int(json.loads((folder / "aiperf/profile_export_aiperf.json").read_text())["request_count"]["avg"])


def _guidellm(folder: Path) -> int:
    [run] = json.loads((folder / "guidellm.json").read_text())["benchmarks"]
    return int(run["metrics"]["request_totals"]["successful"])


def _locust(folder: Path) -> int:
    rows = json.loads((folder / "locust.json").read_text())
    return sum(int(row["num_requests"]) - int(row["num_failures"]) for row in rows)


def _vllm(name: str) -> Callable[[Path], int]:
    return lambda folder: int(json.loads((folder / name).read_text())["completed"])


TESTERS: dict[str, Callable[[Path], int]] = {
    "aiperf profile": _aiperf,
    "guidellm run": _guidellm,
    "locust -f": _locust,
    "custom_image": _vllm("vllm.json"),
    "random-mm": _vllm("random-mm.json"),
}
"""The number of successful requests in the result of each tester, by words of its command."""


@dataclass(frozen=True)
class LoadTest:
    """A gateway in front of a fake engine, and the folder and environment of the page's commands."""

    gateway: Gateway
    folder: Path
    environment: dict[str, str]

    def run(self, words: str) -> list[RecordedRequest]:
        """Run the commands of the page; raise unless they succeed. Return the requests that reached the engine."""
        self.gateway.engine.requests.clear()
        completed = subprocess.run(
            ["bash", "-euc", commands(words)],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=_LIMIT_S,
            check=False,
        )
        if completed.returncode != 0:
            raise RuntimeError(
                f"{words}: exit status {completed.returncode}\n{(completed.stdout + completed.stderr)[-3000:]}"
            )
        return self.gateway.engine.chats

    def successes(self, words: str) -> int:
        """Run a tester; return how many requests succeeded by its own count and reached the engine with a film."""
        films = [request for request in self.run(words) if _has_film(request.json)]
        return min(TESTERS[words](self.folder), len(films))


def _has_film(body: dict[str, Any]) -> bool:
    first = body["messages"][-1]["content"][0]
    return isinstance(first, dict) and first.get("type") == "image_url"


@contextmanager
def load_test(folder: Path) -> Iterator[LoadTest]:
    """Start a gateway with a tenant that may bench, and write the input files."""
    (folder / "docs").symlink_to(ROOT / "docs")
    (folder / "films").mkdir()
    for number in range(REQUESTS):
        film = drawing.encode_png(drawing.render(sample(_SEED + number), _SEED + number))
        (folder / f"films/{number}.png").write_bytes(film)
    (folder / "tenants.toml").write_text("[tenant.load]\nmay_bench = true\n")
    key = api_keys.new(folder / "tenants.toml", "load")
    tenants = TenantStore(folder / "tenants.toml")
    with (
        FakeEngine(uds=folder / "engine.sock") as engine,
        running(engine, tenants=tenants, rules=Rules(MODEL, 500)) as gateway,
    ):
        engine.models = (MODEL,)
        test = LoadTest(gateway, folder, _environment(gateway, folder, key))
        preparation = commands("load_files.py").splitlines()[-1]  # without the exports
        subprocess.run(["bash", "-euc", preparation], cwd=folder, env=test.environment, check=True)
        yield test


def _environment(gateway: Gateway, folder: Path, key: str) -> dict[str, str]:
    """The variables of the page's first block, and a home without the caches of other runs."""
    environments = [Path(sys.executable).parent, *(ROOT / f".venv/{name}/bin" for name in ("loadtest", "guidellm"))]
    path = [*map(str, environments), os.environ["PATH"]]
    inherited = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    return inherited | {
        "URL": gateway.root,
        "METRICS": gateway.listeners.metrics_url,
        "PEDCXR_API_KEY": key,
        "MODEL": MODEL,
        "TOKENIZER": str(CHECKPOINT),
        "REQUESTS": str(REQUESTS),
        "CONCURRENCY": str(CONCURRENCY),
        "HOME": str(folder),
        "HF_HOME": str(folder / "hf"),
        "PATH": os.pathsep.join(path),
    }


def main() -> int:
    """Run the testers in turn; return 1 if a request failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.drills.load_testers", description=__doc__)
    parser.add_argument("--only", choices=tuple(TESTERS), action="append", help="words of the command; repeatable")
    chosen = parser.parse_args().only or list(TESTERS)
    failed = False
    with tempfile.TemporaryDirectory(prefix="pedcxr-loadtest-") as folder, load_test(Path(folder)) as test:
        for words in chosen:
            start = time.monotonic()
            completed = test.successes(words)
            failed |= completed < REQUESTS
            print(
                f"{words:15} {completed} of {REQUESTS} requests completed, {time.monotonic() - start:.0f} s", flush=True
            )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
