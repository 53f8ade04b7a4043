"""CPU time of vLLM's API process for a request with a film: the third part of ``make bench-overhead``.

The checkpoint has the images of the published model, 896 x 896 pixels, and random weights of one narrow layer, so that
the engine costs little. ``pedcxr bench`` sends films of that size and of full size, with reports of one token, and
reads the CPU times of the server's processes. `pedcxr_serve.planner.roofline` uses the value of the API process.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

from tests.benchmarks import weightless_checkpoint
from tests.support.bench_command import BenchCommand
from tests.support.servers.local_server import server

SIZES = {"896 x 896": (896, 896), "2500 x 2048": (2500, 2048)}
"""Height and width: as the client sends with ``resize="model"``, and a film of full size."""


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.throughput.film_preparation", description=__doc__)
    parser.add_argument("--in-flight", type=int, default=4, help="requests in flight")
    parser.add_argument("--seconds", type=float, default=10.0, help="least length of a run")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each size, in turns")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        weightless_checkpoint.main(folder / "model", weightless_checkpoint.SHALLOW)
        flags = ("--model", str(folder / "model"), "--max-new-tokens", "8", "--", "--load-format", "dummy")
        with server(*flags) as running:
            bench = BenchCommand.of(running, folder)
            load = {"kind": "closed", "in_flight": args.in_flight, "seconds": args.seconds}
            reports = {"max_tokens": 1, "allow": ["truncated", "empty"]}
            times: dict[str, list[dict[str, float]]] = {size: [] for size in SIZES}
            for _ in range(args.rounds):
                for size, (height, width) in SIZES.items():
                    films = {"source": "phantoms", "count": 16, "height": height, "width": width}
                    result = bench("run", load=load, reports=reports, films=films)
                    times[size].append(result["stages"][0]["figures"]["server_cpu_ms"])
    print(f"\n{'CPU time of a request, median of the rounds':50}" + "".join(f"{size:>16}" for size in SIZES))
    for process in times[next(iter(SIZES))][0]:
        medians = (statistics.median(one.get(process, 0.0) for one in rounds) for rounds in times.values())
        print(f"{process:50}" + "".join(f"{value:>13.1f} ms" for value in medians))


if __name__ == "__main__":
    main()
