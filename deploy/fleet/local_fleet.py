#!/usr/bin/env python3
"""Run N replicas of one command on this machine behind HAProxy or nginx, for trials and drills.

    python3 deploy/fleet/local_fleet.py --replicas 2 --port 8080 -- pedcxr-serve start --device cpu

The command gets ``--port`` and ``--admin-port`` (free ones) and ``--lame-duck-s 2.5``. The balancer runs haproxy.cfg or
nginx.conf of this folder with other addresses and without TLS, on loopback. SIGINT, SIGTERM or SIGHUP stops the
replicas, which complete their requests, then the balancer. A second signal stops the replicas at once, and a third one
kills them. Needs Linux, Python 3.11 and the balancer's program; nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
FILES = {"haproxy": "haproxy.cfg", "nginx": "nginx.conf"}
LAME_DUCK_S = 2.5
STOP_S = 120  # gateway.drain_s and the end of the engine
HURRY_S = 10  # after a second SIGTERM, which ends pedcxr-serve without its requests

_given = itertools.count()
_locks: list[socket.socket] = []
_signals: list[int] = []  # those that `main` received
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # 127.0.0.1 of a proxy is another machine


def free_port() -> int:
    """Return a free port of 127.0.0.1, and another one at each call. No other fleet chooses it from now on.

    It lies below the ports that the kernel gives to outgoing connections: a probe or a client could take one of those
    before the server that needs it has started. Each process begins elsewhere.
    """
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    lowest = max(1024, first - 20_000)
    for _ in range(lowest, first):
        port = lowest + (64 * os.getpid() + next(_given)) % (first - lowest)
        with contextlib.suppress(OSError):
            reserve(port)
            return port
    with socket.create_server(("127.0.0.1", 0)) as plug:
        return int(plug.getsockname()[1])


def reserve(port: int) -> None:
    """Keep a port of 127.0.0.1 from other fleets until this process ends; raise OSError if the port is in use.

    The port alone would not do: it stays free until the models have loaded, and HAProxy would then share it with the
    HAProxy of another fleet (``SO_REUSEPORT``). The lock is a name, not a file: it ends with the process.
    """
    lock = socket.socket(socket.AF_UNIX)
    try:
        lock.bind(f"\0pedcxr-fleet-{port}")
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        lock.close()
        cause = os.strerror(error.errno or 0)
        raise OSError(f"port {port} of 127.0.0.1: {cause}; stop the program that uses it or change the port") from error
    _locks.append(lock)


def render(balancer: str, *, folder: Path, port: int, metrics_port: int, replicas: Sequence[str]) -> str:
    """Return haproxy.cfg or nginx.conf with loopback addresses, no TLS, and its run-time files in a folder.

    Args:
        replicas: ``HOST:PORT`` each.

    Raises:
        ValueError: the shipped file no longer has a line that is replaced here.
    """
    text = (HERE / FILES[balancer]).read_text()
    changes = {
        "haproxy": [
            (r"    user haproxy .*\n    group haproxy\n", ""),  # other users may run it, and the user may be missing
            (r"/run/haproxy/admin\.sock", f"{folder}/admin.sock"),
            (r"bind :::443 .*", f"bind 127.0.0.1:{port}"),
            (r"bind 127\.0\.0\.1:8405", f"bind 127.0.0.1:{metrics_port}"),
            (r"(    server replica\d+ .*\n)+", _lines("    server replica{} {}\n", replicas)),
        ],
        "nginx": [
            (r"user www-data;\n", "user root;\n" if os.geteuid() == 0 else ""),
            (r"pid /run/nginx\.pid;", f"pid {folder}/nginx.pid;"),
            (r"listen \[::\]:443 .*;", f"listen 127.0.0.1:{port};"),
            (r" *ssl_certificate .*\n *ssl_certificate_key .*\n *ssl_protocols .*\n", ""),
            (r"listen 127\.0\.0\.1:8406;", f"listen 127.0.0.1:{metrics_port};"),
            (r"    server_tokens off;\n", f"    server_tokens off;\n{temporary_paths(folder)}"),
            (r"( +server 10\..*\n)+", _lines("        server {1} max_fails=0;\n", replicas)),
        ],
    }
    for pattern, value in changes[balancer]:
        text, count = re.subn(pattern, value.replace("\\", r"\\"), text)
        if count != 1:
            raise ValueError(f"{FILES[balancer]}: expected one match of {pattern!r}, found {count}")
    return text


def _lines(line: str, replicas: Sequence[str]) -> str:
    return "".join(line.format(number, address) for number, address in enumerate(replicas))


def temporary_paths(folder: Path) -> str:
    """Return the lines that let nginx write its temporary files to a folder."""
    names = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    return "".join(f"    {name}_temp_path {folder}/{name};\n" for name in names)


@dataclass
class Replica:
    """One server process that can be started again on the same ports."""

    command: Sequence[str]
    port: int
    admin_port: int
    log: Path
    env: Mapping[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Address of the API, without a path."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def metrics_url(self) -> str:
        """Address for Prometheus."""
        return f"http://127.0.0.1:{self.admin_port}/metrics"

    def start(self) -> None:
        """Start the process; `ready` tells when it serves."""
        words = ["--port", str(self.port), "--admin-port", str(self.admin_port), "--lame-duck-s", str(LAME_DUCK_S)]
        at = self.command.index("--") if "--" in self.command else len(self.command)
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(  # noqa: S603 - the command is the caller's
                [*self.command[:at], *words, *self.command[at:]],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.env},
                start_new_session=True,  # Ctrl-C must reach this script only, which stops the replicas in order
            )

    def ready(self) -> bool:
        """Return whether ``/health/ready`` answers 200. Raise RuntimeError if the process has ended."""
        if self.process is not None and not self.running:
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])
            raise RuntimeError(f"{self.log}: the replica ended with status {self.process.returncode}\n{tail}")
        return _status(f"{self.url}/health/ready") == 200

    def stop(self, timeout_s: float = STOP_S) -> int:
        """Send SIGTERM and wait; return the exit status."""
        assert self.process is not None
        self.terminate()
        return self.process.wait(timeout_s)

    def terminate(self) -> None:
        """Send SIGTERM to the process if it runs."""
        if self.process is not None and self.running:
            self.process.terminate()

    @property
    def running(self) -> bool:
        """Whether the process runs."""
        return self.process is not None and self.process.poll() is None

    def kill(self) -> None:
        """Send SIGKILL to the process and all its children, as if the machine had lost power."""
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)


class Balancer:
    """HAProxy or nginx with the file of this folder, on loopback.

    Args:
        port: of the API; 0 = a free one.

    Raises:
        OSError: the port is in use.

    Attributes:
        url: address, without a path.
        metrics_url: HAProxy: for Prometheus; nginx: ``stub_status``.
    """

    def __init__(self, kind: str, folder: Path, *, port: int = 0) -> None:
        self._kind, self._folder = kind, folder
        if port:
            reserve(port)
        self._port, self._metrics_port = port or free_port(), free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"http://127.0.0.1:{self._port}"
        self.metrics_url = f"http://127.0.0.1:{self._metrics_port}/{'metrics' if kind == 'haproxy' else 'stub_status'}"

    def configure(self, replicas: Sequence[Replica]) -> None:
        """Write the balancer's file; `start` or `reload` makes it effective."""
        text = render(
            self._kind,
            folder=self._folder,
            port=self._port,
            metrics_port=self._metrics_port,
            replicas=[f"127.0.0.1:{replica.port}" for replica in replicas],
        )
        (self._folder / FILES[self._kind]).write_text(text)

    def start(self) -> None:
        """Start the process; return when it has a replica to send requests to."""
        path = self._folder / FILES[self._kind]
        command = {
            "haproxy": ["haproxy", "-W", "-db", "-f", str(path)],
            "nginx": ["nginx", "-c", str(path), "-p", str(self._folder), "-g", "daemon off;"],
        }[self._kind]
        with self.log.open("ab") as out:
            self._process = subprocess.Popen(  # noqa: S603
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )
        wait_until(self._ready, 30)

    def reload(self) -> None:
        """Read the file again, as the service unit of the balancer does."""
        assert self._process is not None
        self._process.send_signal(signal.SIGUSR2 if self._kind == "haproxy" else signal.SIGHUP)

    def stop(self) -> None:
        """End the process; requests in flight get 5 s."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()

    @property
    def log(self) -> Path:
        """File with the requests and errors of the balancer."""
        return self._folder / f"{self._kind}.log"

    def _ready(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(f"{self._kind} ended:\n{self.log.read_text()}")
        return _status(f"{self.url}/health/ready") == 200


class LocalFleet:
    """Replicas on free ports. ``folder`` gets their logs and usage databases."""

    def __init__(self, command: Sequence[str], count: int, folder: Path) -> None:
        self.replicas = [
            Replica(
                command,
                free_port(),
                free_port(),
                folder / f"replica{number}.log",
                {
                    "CUDA_VISIBLE_DEVICES": str(number),
                    "VLLM_CPU_OMP_THREADS_BIND": _cores(number, count),
                    "PEDCXR_REPLICA": f"replica{number}",
                    "PEDCXR_GATEWAY_USAGE_DB": str(folder / f"usage{number}.sqlite"),
                },
            )
            for number in range(count)
        ]

    def start(self, timeout_s: float = 900) -> None:
        """Start all replicas; return when they are ready."""
        for replica in self.replicas:
            replica.start()
        for replica in self.replicas:
            wait_until(replica.ready, timeout_s)

    def rolling_restart(self) -> None:
        """Stop and start each replica in turn; the next one stops when the previous one is ready."""
        for replica in self.replicas:
            replica.stop()
            replica.start()
            wait_until(replica.ready, 900)
            time.sleep(LAME_DUCK_S)  # the balancer's probe must see it before the next one leaves

    def stop(self) -> None:
        """Stop all replicas. No process is left, even if KeyboardInterrupt ends the wait."""
        try:
            self._terminate(STOP_S, signals=2)
        finally:
            try:
                self._terminate(HURRY_S, signals=3)
            finally:
                for replica in self.replicas:
                    if replica.running:
                        replica.kill()

    def _terminate(self, timeout_s: float, *, signals: int) -> None:
        for replica in self.replicas:
            replica.terminate()
        with contextlib.suppress(TimeoutError):
            wait_until(lambda: not any(replica.running for replica in self.replicas), timeout_s, signals=signals)


def _cores(number: int, count: int) -> str:
    """Return the cores of one of several replicas on a CPU: vLLM alone would bind all of them to the same core."""
    cores = sorted(os.sched_getaffinity(0))
    return ",".join(map(str, cores[number::count] or [cores[number % len(cores)]]))


@contextlib.contextmanager
def running(
    command: Sequence[str], count: int, kinds: Sequence[str] = ("haproxy",), *, port: int = 0
) -> Iterator[tuple[LocalFleet, dict[str, Balancer]]]:
    """Run a fleet behind one or more balancers until the end of the block, its files in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="fleet-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        balancers = {kind: Balancer(kind, folder, port=port) for kind in kinds}
        fleet = LocalFleet(command, count, folder)
        for balancer in balancers.values():
            stack.callback(balancer.stop)
        stack.callback(fleet.stop)
        fleet.start()
        for balancer in balancers.values():
            balancer.configure(fleet.replicas)
            balancer.start()
        yield fleet, balancers


def wait_until(condition: Callable[[], bool], timeout_s: float, *, signals: int = 1) -> None:
    """Poll a condition until it is true.

    Raises:
        TimeoutError: it is still false after the time limit.
        KeyboardInterrupt: `main` has received that many signals. Their handler raises nothing, because an exception
            between the start of a process and the next line would leave the process behind.
    """
    end = time.monotonic() + timeout_s
    while not condition():
        if len(_signals) >= signals:
            raise KeyboardInterrupt
        if time.monotonic() > end:
            raise TimeoutError(f"not reached within {timeout_s:g} s")
        time.sleep(0.05)


def _status(url: str) -> int:
    try:
        with _opener.open(url, timeout=2) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def main() -> int:
    """Run a fleet until a signal.

    Returns:
        0; 1 if the replicas or the balancer do not start; 2 if a program is missing or the port is in use.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--replicas", type=int, default=2, choices=range(1, 65), metavar="N")
    parser.add_argument("--balancer", choices=sorted(FILES), default="haproxy")
    parser.add_argument("--port", type=int, default=8080, help="of the balancer, on 127.0.0.1 (default 8080)")
    parser.add_argument("command", nargs="+", help="after --: the command of one replica, without ports")
    args = parser.parse_args()
    if not 0 < args.port < 65_536:
        parser.error("--port: must be between 1 and 65,535")
    if shutil.which(args.balancer) is None:
        return _failed(f"{args.balancer} is not installed (Debian, Ubuntu: apt-get install {args.balancer})", 2)
    if shutil.which(args.command[0]) is None:
        return _failed(f"{args.command[0]}: command not found; name its path, or activate its virtual environment", 2)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup, or a background job of a shell
            signal.signal(number, lambda number, _: _signals.append(number))
    try:
        with running(args.command, args.replicas, [args.balancer], port=args.port) as (fleet, balancers):
            balancer = balancers[args.balancer]
            print(f"API      {balancer.url}/v1\nbalancer {balancer.metrics_url}")
            for replica in fleet.replicas:
                print(f"replica  {replica.url}  metrics {replica.metrics_url}", flush=True)
            wait_until(lambda: False, math.inf)
    except KeyboardInterrupt:
        pass
    except (RuntimeError, TimeoutError) as error:
        return _failed(f"the fleet does not start: {error}", 1)
    except OSError as error:
        return _failed(str(error), 2)
    return 0


def _failed(message: str, status: int) -> int:
    print(message, file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
