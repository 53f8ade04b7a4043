"""A `FakeEngine` in a process of its own, to be killed: ``python -m tests.support.engine_process SOCKET STARTS GAP``.

``STARTS`` is a file that gets a line a start; a word in its first line, ``fail 2``, makes the next two starts fail.
Its ``/health`` answers 503, and everything else 500, once the file ``dead`` lies beside the socket.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from pedcxr_serve.engine.vllm_main import die_with_parent
from tests.support.fake_engine import Answer, FakeEngine


def main(uds: Path, starts: Path, gap: float) -> None:
    told = starts.read_text().split("\n") if starts.exists() else ["fail 0"]
    starts.write_text("\n".join([*told, "start"]))
    if told.count("start") in range(1, 1 + int(told[0].split()[1])):
        sys.exit("ERROR 11-24 00:00:00 [fake.py:1] no memory left")
    with FakeEngine(uds=uds) as engine:
        engine.reply(Answer())  # the warm-up report
        engine.answer = Answer(gap=gap)
        print("INFO 11-24 00:00:00 [fake.py:2] Starting vLLM server", flush=True)
        signal.sigwait({signal.SIGTERM, signal.SIGUSR1})
        if not (uds.parent / "dead").exists():
            return
        engine.health_status, engine.answer = 503, Answer(status=500)
        signal.sigwait({signal.SIGTERM})


if __name__ == "__main__":
    die_with_parent()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1})
    main(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]))
