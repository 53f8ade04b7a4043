"""Replace gateways and engine under load: ``make drill``, or ``python -m tests.drills.rolling_restart``.

Two gateways share one engine on the demo checkpoint. Clients send one report after the other, half of them streamed, to
a gateway whose ``/health/ready`` answers 200, as a balancer does. A request that is refused with 503 and Retry-After is
sent again. Then each gateway is replaced by a new process, and after that the engine is.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tests.drills.kill_engine import body
from tests.support.servers.gateway_server import CHAT, eventually
from tests.support.servers.local_server import LocalServer, server

LAME_DUCK_S = "2"
START_S = 300.0
_SEED = 9_600_000
_POLL_S = 0.1


@dataclass
class Load:
    """Clients that send one report after the other until ``stop`` is set.

    Attributes:
        gateways: the addresses of the current gateways, without ``/v1``.
        request: returns the body of the request with a number.
        outcomes: number of requests by their end: ``complete``, or a description.
        finished: number of complete reports so far.
        resent: number of requests that were refused, with 503 or before they were sent, and sent again.
    """

    gateways: list[str]
    request: Callable[[int], dict[str, object]]
    stop: threading.Event = field(default_factory=threading.Event)
    outcomes: Counter[str] = field(default_factory=Counter)
    resent: int = 0
    _numbers: Iterator[int] = field(default_factory=lambda: iter(range(sys.maxsize)))

    @property
    def finished(self) -> int:
        return self.outcomes["complete"]

    def __call__(self) -> None:
        """Run one client."""
        while not self.stop.is_set():
            self.outcomes[self._report(next(self._numbers))] += 1

    def _report(self, number: int) -> str:
        request = self.request(number)
        while True:
            root = self._ready_gateway(number)
            try:
                answer = httpx.post(root + CHAT, json=request, timeout=300, trust_env=False)
            except httpx.ConnectError:  # nobody got the request: every balancer tries another server
                self.resent += 1
                continue
            except httpx.TransportError as error:
                return repr(error)
            if answer.status_code == 503 and "retry-after" in answer.headers:
                self.resent += 1  # nothing was done, and another server can do it: `error http_503` of nginx
                time.sleep(_POLL_S)
                continue
            end = "data: [DONE]\n\n" if request["stream"] else "}"
            stopped = '"finish_reason":"stop"' in answer.text.replace(": ", ":")
            complete = answer.status_code == 200 and stopped and answer.text.endswith(end)
            return "complete" if complete else f"{answer.status_code} {answer.text[-300:]}"

    def _ready_gateway(self, number: int) -> str:
        while True:
            gateways = [*self.gateways]
            turn = number % len(gateways)
            for root in gateways[turn:] + gateways[:turn]:
                if is_ready(root):
                    return root
            time.sleep(_POLL_S)


def is_ready(root: str) -> bool:
    """Return whether a gateway asks for requests."""
    try:
        return httpx.get(root + "/health/ready", timeout=30, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


@contextlib.contextmanager
def running(load: Load, clients: int) -> Iterator[None]:
    """Run the clients during the block; raise their errors at its end."""
    with ThreadPoolExecutor(clients) as pool:
        futures = [pool.submit(load) for _ in range(clients)]
        try:
            yield
        finally:
            load.stop.set()
        for future in futures:
            future.result()


def replace_each(load: Load, servers: list[LocalServer], start: Callable[[], LocalServer], reports: int) -> None:
    """Stop each gateway with SIGTERM and start another in its place; wait for ``reports`` reports around each."""
    for position, old in enumerate(servers):
        finished = load.finished
        eventually(lambda finished=finished: load.finished >= finished + reports, START_S)  # type: ignore[misc]
        assert old.stop(signal.SIGTERM) == 0
        load.gateways[position] = start().root
    finished = load.finished
    eventually(lambda: load.finished >= finished + reports, START_S)


@contextlib.contextmanager
def engine(log: Path, *flags: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``pedcxr-serve engine`` until the end of the block; yield when it is ready."""
    command = [sys.executable, "-m", "pedcxr_serve", "engine", *flags]
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT) as process:
        try:
            eventually(lambda: "engine ready" in log.read_text() or process.poll() is not None, START_S)
            assert process.poll() is None, log.read_text()
            yield process
        finally:
            process.terminate()


def main() -> int:
    """Run the drill; return 1 if a report was lost."""
    parser = argparse.ArgumentParser("python -m tests.drills.rolling_restart")
    parser.add_argument("--clients", type=int, default=8, choices=range(1, 65), metavar="N")
    clients = parser.parse_args().clients
    load = Load([], lambda number: body(_SEED + number, stream=bool(number % 2)))
    with tempfile.TemporaryDirectory(prefix="drill-") as name, contextlib.ExitStack() as stack:
        folder, secret = Path(name, "run"), str(Path(name, "cache.secret"))
        folder.mkdir(mode=0o700)
        first = contextlib.ExitStack()
        with first:
            process = first.enter_context(engine(Path(name, "engine-1.log"), "--socket-dir", str(folder)))
            flags = ("--socket-dir", str(folder), "--lame-duck-s", LAME_DUCK_S, "--cache-secret-file", secret)

            def start() -> LocalServer:
                return stack.enter_context(server(*flags, "--slots", "16", command="gateway"))

            servers = [start(), start()]
            load.gateways[:] = [one.root for one in servers]
            with running(load, clients):
                replace_each(load, servers, start, 2 * clients)
                print(f"{load.finished} reports while two gateways were replaced, {load.resent} sent again", flush=True)
                before = time.monotonic()
                process.terminate()
                assert process.wait(90) == 0
                stopped = time.monotonic()
                stack.enter_context(engine(Path(name, "engine-2.log"), "--socket-dir", str(folder)))
                finished = load.finished
                eventually(lambda: load.finished >= finished + clients, START_S)
                print(
                    f"engine stopped in {stopped - before:.1f} s, reports again after {time.monotonic() - before:.1f} s"
                )
    lost = load.outcomes.total() - load.finished
    print(f"{load.finished} complete reports, {load.resent} requests refused with 503 and sent again, {lost} lost")
    for outcome, count in load.outcomes.items():
        if outcome != "complete":
            print(f"      FAILURE: {count} x {outcome}")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
