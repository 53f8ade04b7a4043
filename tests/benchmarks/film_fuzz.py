"""``make fuzz MINUTES=10``: films that nobody foresaw, in a child that may use 1 GiB and 5 seconds a film.

A film that crashes, hangs or exhausts the child stays in a file; its path is printed, and the exit code is 1.
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
ROUND = 300  # films of a kind, then the next kind
HANG = 60.0  # seconds on the clock, should a film wait instead of work


def work(seconds: float, seed: int, evidence: Path, examples: int) -> None:
    """The child: draw films until the time is over or one of them fails."""
    resource.setrlimit(resource.RLIMIT_AS, (GIB, GIB))
    from hypothesis import HealthCheck, Phase, Verbosity, given, settings
    from hypothesis import seed as seeded

    from tests.support.film_bytes import KINDS, SLOWEST, outcome

    def check(data: bytes) -> None:
        evidence.write_bytes(data)
        faulthandler.dump_traceback_later(HANG, exit=True)
        signal.setitimer(signal.ITIMER_PROF, 2 * SLOWEST)  # ends the process, in the middle of a decoder too
        outcome(data)
        signal.setitimer(signal.ITIMER_PROF, 0)
        faulthandler.cancel_dump_traceback_later()
        nonlocal films
        films += 1

    films, until = 0, time.monotonic() + seconds
    while time.monotonic() < until:
        for drawn in KINDS.values():
            bounds = settings(
                max_examples=examples, deadline=None, database=None, verbosity=Verbosity.quiet,
                suppress_health_check=list(HealthCheck), phases=[Phase.generate],
            )  # fmt: skip
            seeded(seed)(bounds(given(drawn)(check)))()
            seed += 1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"{films} films in {seconds:.0f} s, at most {peak} MiB")


def main() -> int:
    """Run the child, and say how it ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4)), help="default: another each time")
    parser.add_argument("--examples", type=int, default=ROUND, help="films of a kind in a round")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        work(60 * options.minutes, options.seed, options.child, options.examples)
        return 0
    evidence = Path(tempfile.mkdtemp(prefix="pedcxr-fuzz-"), "film")
    # Threads of numpy's libraries reserve memory that nothing here uses.
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", "-m", __spec__.name, *sys.argv[1:]]
    command += ["--seed", str(options.seed), "--child", evidence]
    code = subprocess.run(command, env=environment, check=False).returncode
    if code:
        print(f"seed {options.seed}: ended with {code}; the film: {evidence}", file=sys.stderr)
        return 1
    evidence.unlink()
    evidence.parent.rmdir()
    return 0


if __name__ == "__main__":
    sys.exit(main())
