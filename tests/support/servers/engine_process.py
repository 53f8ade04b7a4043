"""A `FakeEngine` in its own process: ``python -m tests.support.servers.engine_process SOCKET STARTS GAP``.

``STARTS`` is a file to which each start appends a line. If its first line is ``fail 2``, the two starts after the first
fail. With the variables of `access.prepare`, the engine runs apart from its gateways. On SIGUSR1, if the file ``dead``
exists beside the socket, ``/health`` answers 503 and other requests get 500.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from pedcxr_serve.engine import access
from pedcxr_serve.engine.access import EngineAccess
from pedcxr_serve.engine.vllm_main import die_with_parent
from pedcxr_serve.vllm_plugin import refusals
from tests.support.servers.fake_engine import Answer, FakeEngine


def main(uds: Path, starts: Path, gap: float) -> None:
    lines = starts.read_text().split("\n") if starts.exists() else ["fail 0"]
    starts.write_text("\n".join([*lines, "start"]))
    if lines.count("start") in range(1, 1 + int(lines[0].split()[1])):
        sys.exit("ERROR 11-24 00:00:00 [fake.py:1] no memory left")
    middleware = EngineAccess if access.FOLDER_VARIABLE in os.environ else None
    with FakeEngine(uds=uds, middleware=middleware) as engine:
        refusal = {"message": refusals.mark("film_refused", "has 16 bits"), "type": "X", "param": None, "code": 400}
        engine.reply(Answer(), Answer(status=400, error=refusal))  # the warm-up report, and the film to refuse
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
