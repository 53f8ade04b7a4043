"""Longer drills of a fleet with fake engines: ``make drill-fleet``.

``linear``: 1, 2, 4 and 8 replicas behind HAProxy. The others run behind HAProxy and behind nginx. ``restart``: all
replicas in turn at 70 % load. ``kill``: one of two replicas at 35 requests per second. ``cable``: two replicas and a
balancer in network namespaces of their own; the cable of one is cut for 15 s. It needs root and the command ip, and is
skipped without them. Each drill prints what it saw; the exit status is 1 if a figure is missed. Arguments name drills.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.support.paths import ROOT
from tests.support.scripts import load_script
from tests.support.servers.fleet_load import Killing, Load, drive, under_load

local_fleet = load_script(ROOT / "deploy/fleet/local_fleet.py")
PYTHON = [sys.executable, "-m", "tests.support.servers.replica", "start"]


async def _measured(url: str, users: int, seconds: float) -> Load:
    load = Load()
    driver = asyncio.create_task(drive(url, users, load))
    await asyncio.sleep(seconds)
    load.stop.set()
    await driver
    return load


def linear() -> list[str]:
    """Return what is wrong with the rates of 1, 2, 4 and 8 replicas: each must be 95 % of linear.

    The fake engines wait, and compute nothing. So this shows that the balancer fills every slot of every replica. It
    shows neither how much work a machine can carry, nor how GPUs scale.
    """
    failures, single = [], 0.0
    for count in (1, 2, 4, 8):
        # Reports of 2 s on 3 slots: the load that 8 replicas add to this machine is small.
        command = [*PYTHON, "--", "--slots", "3", "--pieces", "10", "--gap", "0.2"]
        with local_fleet.running(command, count) as (_, balancers):
            load = asyncio.run(_measured(balancers["haproxy"].url, 6 * count, 30))
        ends = sorted(one.end for one in load.outcomes)
        rate = (len(ends) - 1) / (ends[-1] - ends[0])
        single = single or rate
        print(f"linear: {count} replicas: {rate:.2f} reports/s, {rate / single / count:.0%} of linear", flush=True)
        if load.failures or rate < 0.95 * count * single:
            failures.append(f"{count} replicas: {load.summary()}")
    return failures


def restart() -> list[str]:
    """Return what went wrong while all replicas were restarted: none may be lost, p99 at most twice the steady one."""
    failures = []
    for kind in ("haproxy", "nginx"):
        command = [*PYTHON, "--", "--slots", "8", "--pieces", "10", "--gap", "0.1"]
        with local_fleet.running(command, 2, [kind]) as (fleet, balancers):
            url = balancers[kind].url

            async def both(url: str = url, fleet: object = fleet) -> tuple[Load, Load]:
                steady = await _measured(url, 11, 30)
                during = Load()
                driver = asyncio.create_task(drive(url, 11, during))
                await asyncio.to_thread(fleet.rolling_restart)  # type: ignore[attr-defined]
                during.stop.set()
                await driver
                return steady, during

            steady, during = asyncio.run(both())
        ratio = during.p99 / steady.p99
        print(f"restart: {kind}: steady {steady.summary()}\n         restart {during.summary()}; p99 {ratio:.1f} x")
        if during.failures or ratio > 2:
            failures.append(f"{kind}: {during.summary()}")
    return failures


def kill() -> list[str]:
    """Return what went wrong when one of two replicas was killed at 35 requests per second or more.

    Only what the replica had open may be lost or sent again, and every other request may take 1 s at most.
    """
    failures = []
    for kind in ("haproxy", "nginx"):
        command = [*PYTHON, "--", "--slots", "8", "--pieces", "10", "--gap", "0.02"]
        with local_fleet.running(command, 2, [kind]) as (fleet, balancers):
            killing, load = Killing(fleet.replicas[1], fleet.replicas[:1]), Load()
            urls = {kind: balancers[kind].url}
            asyncio.run(under_load(urls, {kind: load}, 12, killing, before=400, after=400))
            faults = killing.faults(load)
        before = [one for one in load.outcomes if one.end < killing.at]
        rate = len(before) / (before[-1].end - before[0].start)
        others = max(one.seconds for one in load.outcomes if one.kind == "ok" and not one.resent)
        print(f"kill: {kind}: {rate:.0f} requests/s, {killing.opened} open: {load.summary()}; others <= {others:.2f} s")
        if rate < 35 or others > 1:
            faults.append(f"{rate:.0f} requests/s, the others took {others:.2f} s")
        failures += [f"{kind}: {fault}" for fault in faults]
    return failures


def cable() -> list[str]:
    """Return what went wrong while the cable of one replica was cut: each request must end within 12 s.

    The kernel of nginx has the TCP times of docs/fleet/scale-out.md, which HAProxy sets itself.
    """
    if os.geteuid() or shutil.which("ip") is None:
        print("cable: skipped, needs root and the command ip (Debian: iproute2)")
        return []
    times = re.findall(r"net\.ipv4\.\w+=\d+", (ROOT / "docs/fleet/scale-out.md").read_text())
    return [
        *_cable("haproxy", ["haproxy", "-db", "-f"], []),
        *_cable("nginx", ["nginx", "-g", "daemon off;", "-c"], times),
    ]


def _cable(kind: str, command: Sequence[str], kernel: Sequence[str]) -> list[str]:
    with tempfile.TemporaryDirectory(prefix="cable-") as name, _hosts(("a", "b", "lb", "client")) as address_of:
        folder = Path(name)
        tenants = folder / "tenants.toml"
        tenants.write_text("[tenant.drill]\n")
        key = subprocess.run(
            [sys.executable, "-m", "pedcxr_serve", "keys", "new", "drill", "--tenants", str(tenants)],
            capture_output=True, text=True, check=True,
        ).stdout.splitlines()[0]  # fmt: skip
        cfg = local_fleet.render(
            kind, folder=folder, port=8000, metrics_port=8405, replicas=[f"{address_of[one]}:8000" for one in "ab"]
        )
        file = folder / local_fleet.FILES[kind]
        file.write_text(cfg.replace("127.0.0.1:8000", f"{address_of['lb']}:8000"))
        for setting in kernel:
            subprocess.run(_in("lb", ["sysctl", "-qw", setting]), check=True)
        with contextlib.ExitStack() as stack:
            for one in "ab":
                words = ["--host", address_of[one], "--port", "8000", "--admin-port", "8001", "--tenants", str(tenants)]
                words += ["--usage-db", str(folder / f"{one}.sqlite"), "--", "--pieces", "20", "--gap", "0.05"]
                stack.enter_context(_in_host(one, [*PYTHON, *words], folder / f"{one}.log"))
            stack.enter_context(_in_host("lb", [*command, str(file)], folder / "lb.log"))
            client = [sys.executable, "-m", "tests.drills.fleet.cable_client", f"http://{address_of['lb']}:8000", key]
            process = subprocess.Popen(_in("client", client), stdout=subprocess.PIPE, text=True, cwd=ROOT)
            assert process.stdout is not None
            assert process.stdout.readline() == "running\n"
            time.sleep(5)
            _ip("-n", "pedcxr-net", "link", "set", "v-b", "down")
            time.sleep(15)
            _ip("-n", "pedcxr-net", "link", "set", "v-b", "up")
            out = process.communicate(timeout=120)[0]
            print(f"cable: {kind}: {out}", end="", flush=True)
            return [] if process.returncode == 0 else [f"{kind}: {out}"]


@contextlib.contextmanager
def _hosts(names: Sequence[str]) -> Iterator[dict[str, str]]:
    """Make network namespaces with a bridge; yield the address of each."""
    spaces = ["net", *names]
    addresses = {name: f"10.77.0.{10 + number}" for number, name in enumerate(names)}
    try:
        for name in spaces:
            _ip("netns", "add", f"pedcxr-{name}")
            _ip("-n", f"pedcxr-{name}", "link", "set", "lo", "up")
        _ip("-n", "pedcxr-net", "link", "add", "br0", "type", "bridge")
        _ip("-n", "pedcxr-net", "link", "set", "br0", "up")
        for name in names:
            peer = ["type", "veth", "peer", "name", "eth0", "netns", f"pedcxr-{name}"]
            _ip("-n", "pedcxr-net", "link", "add", f"v-{name}", *peer)
            _ip("-n", "pedcxr-net", "link", "set", f"v-{name}", "master", "br0", "up")
            _ip("-n", f"pedcxr-{name}", "addr", "add", f"{addresses[name]}/24", "dev", "eth0")
            _ip("-n", f"pedcxr-{name}", "link", "set", "eth0", "up")
        yield addresses
    finally:
        for name in spaces:
            subprocess.run(["ip", "netns", "del", f"pedcxr-{name}"], check=False, stderr=subprocess.DEVNULL)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def _in(host: str, command: Sequence[str]) -> list[str]:
    return ["ip", "netns", "exec", f"pedcxr-{host}", *command]


@contextlib.contextmanager
def _in_host(host: str, command: Sequence[str], log: Path) -> Iterator[None]:
    with log.open("wb") as out:
        process = subprocess.Popen(_in(host, command), stdout=out, stderr=subprocess.STDOUT, cwd=ROOT)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


DRILLS: dict[str, Callable[[], list[str]]] = {"linear": linear, "restart": restart, "kill": kill, "cable": cable}


def main() -> int:
    """Run the drills; return 1 if a figure was missed."""
    parser = argparse.ArgumentParser("python -m tests.drills.fleet.drills")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(DRILLS)}; default: all")
    names = parser.parse_args().names or list(DRILLS)
    if unknown := set(names) - set(DRILLS):
        parser.error(f"unknown: {', '.join(unknown)}")
    failures = [failure for name in names for failure in DRILLS[name]()]
    for failure in failures:
        print(f"FAILURE: {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
