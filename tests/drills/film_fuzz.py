"""Fuzz the film code (``make fuzz MINUTES=10``) in a child process limited to 1 GiB, and to 5 CPU seconds per film.

A film that crashes, hangs or exhausts the child is kept in a file. Its path is printed and the exit code is 1.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

GIB = 1 << 30
ROUND = 300  # films per kind before the next kind
HANG = 60.0  # wall-clock seconds, for a film that blocks without using the CPU


def work(seconds: float, seed: int, film_path: Path, examples: int) -> None:
    """Run in the child: draw films until the time is over or a film fails."""
    resource.setrlimit(resource.RLIMIT_AS, (GIB, GIB))
    from hypothesis import HealthCheck, Phase, Verbosity, given, settings
    from hypothesis import seed as set_seed

    from tests.support.films.film_bytes import KINDS, SLOWEST, outcome

    def check(data: bytes) -> None:
        film_path.write_bytes(data)
        faulthandler.dump_traceback_later(HANG, exit=True)
        signal.setitimer(signal.ITIMER_PROF, 2 * SLOWEST)  # terminates the process, even in C code
        outcome(data)
        signal.setitimer(signal.ITIMER_PROF, 0)
        faulthandler.cancel_dump_traceback_later()
        nonlocal films
        films += 1

    films, deadline = 0, time.monotonic() + seconds
    while time.monotonic() < deadline:
        for strategy in KINDS.values():
            bounds = settings(
                max_examples=examples, deadline=None, database=None, verbosity=Verbosity.quiet,
                suppress_health_check=list(HealthCheck), phases=[Phase.generate],
            )  # fmt: skip
            set_seed(seed)(bounds(given(strategy)(check)))()
            seed += 1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"{films} films in {seconds:.0f} s, peak memory {peak} MiB")


def main() -> int:
    """Run the child process and report its exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4)), help="default: random")
    parser.add_argument("--examples", type=int, default=ROUND, help="films per kind and round")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        work(60 * options.minutes, options.seed, options.child, options.examples)
        return 0
    film_path = Path(tempfile.mkdtemp(prefix="pedcxr-fuzz-"), "film")
    # Threads of numpy's libraries would reserve unused memory.
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", "-m", __spec__.name, *sys.argv[1:]]
    command += ["--seed", str(options.seed), "--child", film_path]
    code = subprocess.run(command, env=environment, check=False).returncode
    if code:
        print(f"seed {options.seed}: the child exited with status {code}; the film is in {film_path}", file=sys.stderr)
        return 1
    film_path.unlink()
    film_path.parent.rmdir()
    return 0


if __name__ == "__main__":
    sys.exit(main())
