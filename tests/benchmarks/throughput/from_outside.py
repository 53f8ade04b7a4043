"""Overhead and fairness of the gateway as ``pedcxr bench`` sees them: a part of ``make bench-fairness``.

One engine on the demo checkpoint listens on loopback. ``pedcxr bench`` measures it in turns directly and through a
gateway with tenants, and ``pedcxr bench compare`` gives the ratios. Then two tenants send four times what the engine
can do, and their shares of the tokens are printed. Last, a tenant sends a film a second: alone, and while another
sends three times what the engine can do.
"""

from __future__ import annotations

import argparse
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pedcxr_client.bench import results
from pedcxr_client.bench.figures import quantile
from tests.benchmarks.fairness import WEIGHTS, write_tenants
from tests.drills.fleet.drills import local_fleet
from tests.drills.rolling_restart import engine
from tests.support.bench_command import BenchCommand
from tests.support.servers.local_server import server

Senders = Sequence[Mapping[str, object]]


def key_files(tenants: Path) -> dict[str, Path]:
    """Write a tenants file, and beside it a file with the key of each tenant; return the latter."""
    files = {}
    for name, key in write_tenants(tenants).items():
        files[name] = tenants.with_name(f"{name}.key")
        files[name].write_text(key)
    return files


def senders(files: Mapping[str, Path], **weights: float) -> Senders:
    """Return the tenants of a workload file, with their parts of the requests."""
    return [{"name": name, "key_file": str(files[name]), "weight": weight} for name, weight in weights.items()]


def compare(before: Path, after: Path) -> str:
    """Return the table of ``pedcxr bench compare``."""
    words = [sys.executable, "-m", "pedcxr_client", "bench", "compare", str(before), str(after)]
    completed = subprocess.run(words, capture_output=True, text=True, check=False)
    return completed.stdout + completed.stderr


def _rate(result: Mapping[str, Any]) -> float:
    return float(result["stages"][0]["request_throughput"])


def overhead(paths: Mapping[str, BenchCommand], load: Mapping[str, object], rounds: int) -> float:
    """Measure ``engine`` and ``gateway`` in turns and print their ratios; return the gateway's reports per second."""
    for number in range(rounds):
        rates = {}
        for name in list(paths)[:: 1 if number % 2 else -1]:
            rates[name] = _rate(paths[name]("run", load=load))
        print(f"gateway / engine: {rates['gateway'] / rates['engine']:.3f}", flush=True)
    print(compare(paths["engine"].result_file, paths["gateway"].result_file), flush=True)
    return rates["gateway"]


def main() -> None:
    """Run the benchmark and print its figures."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.throughput.from_outside", description=__doc__)
    parser.add_argument("--in-flight", type=int, default=32, help="requests in flight of the first part")
    parser.add_argument("--seconds", type=float, default=20.0, help="of a measurement")
    parser.add_argument("--rounds", type=int, default=3, help="of the first part")
    parser.add_argument("--light-seconds", type=float, default=110.0, help="of a film each second")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as name, ExitStack() as stack:
        folder = Path(name)
        engine_key = folder / "engine.key"
        engine_key.write_text(secrets.token_urlsafe(32))
        engine_key.chmod(0o600)
        address = f"127.0.0.1:{local_fleet.free_port()}"
        at = ("--listen", address, "--key-file", str(engine_key))
        stack.enter_context(engine(folder / "engine.log", *at))
        files = key_files(folder / "tenants.toml")
        flags = ("--engine", f"http://{address}", *at[2:], "--tenants", str(folder / "tenants.toml"))
        running = stack.enter_context(server(*flags, command="gateway"))
        for part in ("engine", "gateway"):
            (folder / part).mkdir()
        # Keys of the environment, because `compare` wants equal workloads.
        os.environ["BENCH_ENGINE_KEY"], os.environ["BENCH_TEAM_KEY"] = engine_key.read_text(), files["team"].read_text()
        page = f"http://{address}/metrics"
        paths = {
            "engine": BenchCommand(
                f"http://{address}/v1", [page], folder / "engine", "--api-key-env", "BENCH_ENGINE_KEY"
            ),
            "gateway": BenchCommand.of(running, folder / "gateway", "--api-key-env", "BENCH_TEAM_KEY"),
        }
        gateway = BenchCommand.of(running, folder / "gateway")
        load: dict[str, object] = {"kind": "closed", "in_flight": args.in_flight, "seconds": args.seconds}
        rate = overhead(paths, load, args.rounds)
        for first, part in (("team", 1), ("triple", 4)):
            load = {"kind": "poisson", "rate": 4 * rate, "seconds": 2 * args.seconds}
            result = gateway("run", load=load, tenants=senders(files, flood=4, **{first: part}))
            share = result["stages"][0]["figures"]["tenants"][first]["share_of_tokens"]
            print(f"{first}, weight {WEIGHTS[first]}, sends {part} of {4 + part} requests: {share:.1%} of the tokens")
        for flood in (0.0, 3 * rate):
            load = {"kind": "poisson", "rate": 1 + flood, "seconds": args.light_seconds}
            by = senders(files, light=1, **({"flood": flood} if flood else {}))
            samples = results.stages(gateway("run", load=load, tenants=by))[0].samples
            times = [one.ttft for one in samples if one.tenant == "light" and one.ttft is not None]
            p50, p95 = (1e3 * quantile(times, share) for share in (0.5, 0.95))
            print(f"light beside {flood:.0f} requests/s: TTFT p50 {p50:.0f}, p95 {p95:.0f} ms, {len(times)} films")


if __name__ == "__main__":
    main()
