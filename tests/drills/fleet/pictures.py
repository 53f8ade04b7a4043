"""Draw the dashboards of deploy/monitoring from real runs: ``make pictures`` writes docs/fleet/*.svg.

``service``, ``tenants`` and ``fleet``: two replicas with fake engines behind HAProxy, which three tenants use. One of
them floods the fleet, and one replica is killed and started again. ``engine``: a server with real vLLM and the demo
checkpoint. A real Prometheus scrapes with the shipped files, and answers the queries of the dashboards. Grafana takes
no part. Arguments name the dashboards to draw.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import httpx

from pedcxr_client.bench.charts import Series, lines
from pedcxr_serve.gateway.auth import api_keys
from tests.drills.fleet.sheet import sheet
from tests.support.films import phantom_films
from tests.support.paths import ROOT
from tests.support.scripts import load_script
from tests.support.servers.watched_fleet import MONITORING, load_on, watched

local_fleet = load_script(ROOT / "deploy/fleet/local_fleet.py")
OUT = ROOT / "docs/fleet"
STEP_S = 4
WARM_UP_S = 20  # until every panel has data
NO_ALERTMANAGER = "127.0.0.1:9"
FAKE = [sys.executable, "-m", "tests.support.servers.replica", "start", "--max-waiting", "24"]
FAKE_ENGINE = ["--", "--slots", "8", "--pieces", "20", "--gap", "0.1"]
REAL = [sys.executable, "-m", "pedcxr_serve", "start", "--device", "cpu"]


def draw(name: str, address: str, start: float, names: dict[str, str]) -> None:
    """Write the picture of a dashboard.

    Args:
        address: of Prometheus.
        start: of the run, Unix time; the picture ends now.
        names: legible names of instances.
    """
    board = json.loads((MONITORING / f"dashboards/{name}.json").read_text())
    charts = []
    for panel in board["panels"]:
        series = [
            one
            for target in panel["targets"]
            for one in _series(address, target["expr"], target["legendFormat"], start)
        ]
        series = [Series(names.get(one.name, one.name), one.points) for one in series]
        unit = _UNITS[panel["fieldConfig"]["defaults"]["unit"]]
        charts.append((panel["title"], lines(series, "minutes", unit, gap=0.1)))
    path = OUT / f"{name}.svg"
    path.write_text(sheet(charts))
    print(f"{path.relative_to(ROOT)}: {len(charts)} panels, {path.stat().st_size / 1000:.0f} kB", flush=True)


_UNITS = {"reqps": "per second", "ops": "per second", "s": "seconds", "percentunit": "share", "short": "number"}


def _series(address: str, expr: str, legend: str, start: float) -> list[Series]:
    words = {"query": expr, "start": start, "end": time.time(), "step": STEP_S}
    page = httpx.get(f"http://{address}/api/v1/query_range", params=words, trust_env=False).raise_for_status().json()
    return [
        Series(
            re.sub(r"\{\{(\w+)\}\}", lambda name, labels=one["metric"]: labels.get(name[1], ""), legend),
            [
                (round((float(at) - start) / 60, 3), float(value))
                for at, value in one["values"]
                if value not in _NO_NUMBER
            ],
        )
        for one in page["data"]["result"]
    ]


_NO_NUMBER = {"NaN", "+Inf", "-Inf"}


def draw_fleet(names: Sequence[str], minutes: float) -> None:
    """Run the fleet with fake engines, and draw dashboards of it."""
    with tempfile.TemporaryDirectory(prefix="pictures-") as name, ExitStack() as stack:
        folder = Path(name)
        file = folder / "tenants.toml"
        file.write_text("[tenant.clinic]\nweight = 3\n[tenant.ward]\n[tenant.research]\nrequests_per_minute = 20\n")
        keys = {tenant: api_keys.new(file, tenant) for tenant in ("clinic", "ward", "research")}
        command = [*FAKE, "--tenants", str(file), *FAKE_ENGINE]
        fleet, balancers = stack.enter_context(local_fleet.running(command, 2))
        balancer = balancers["haproxy"]
        address = stack.enter_context(watched(folder, fleet, balancer, NO_ALERTMANAGER))

        def users(tenant: str, count: int, stack: ExitStack) -> None:
            stack.enter_context(load_on(balancer.url, count, key=keys[tenant], pause_s=0.5, film_bytes=20_000))

        for tenant, count in (("clinic", 6), ("ward", 4), ("research", 2)):
            users(tenant, count, stack)
        time.sleep(WARM_UP_S)
        start, part = time.time(), 60 * minutes / 6
        time.sleep(2 * part)
        with ExitStack() as flood:
            users("ward", 60, flood)
            time.sleep(part)
        time.sleep(part)
        killed = fleet.replicas[1]
        killed.kill()
        time.sleep(part)
        killed.start()
        local_fleet.wait_until(killed.ready, 300)
        time.sleep(part)
        for name in names:
            draw(name, address, start, _instances(fleet))


def draw_engine(minutes: float) -> None:
    """Run a real server, and draw the dashboard of its engine."""
    with tempfile.TemporaryDirectory(prefix="pictures-") as name, ExitStack() as stack:
        fleet, balancers = stack.enter_context(local_fleet.running(REAL, 1))
        balancer = balancers["haproxy"]
        address = stack.enter_context(watched(Path(name), fleet, balancer, NO_ALERTMANAGER))
        time.sleep(WARM_UP_S)
        start = time.time()
        for users in (2, 24, 6):

            def make_body(stream: bool) -> bytes:
                return json.dumps(phantom_films.fresh().body(stream=stream)).encode()

            with load_on(balancer.url, users, make_body=make_body) as load:
                time.sleep(20 * minutes)
            print(f"engine: {users} users: {load.summary()}", flush=True)
        draw("engine", address, start, _instances(fleet))


def _instances(fleet: object) -> dict[str, str]:
    replicas = fleet.replicas  # type: ignore[attr-defined]
    kinds = ("", " running", " waiting", " prompt", " output", " p95")
    return {
        f"127.0.0.1:{replica.admin_port}{kind}": f"replica{number}{kind}"
        for number, replica in enumerate(replicas)
        for kind in kinds
    }


def main() -> int:
    """Draw the dashboards."""
    parser = argparse.ArgumentParser("python -m tests.drills.fleet.pictures")
    fake = ["service", "tenants", "fleet"]
    parser.add_argument("names", nargs="*", metavar="NAME", help="service, tenants, fleet or engine; default: all")
    parser.add_argument("--minutes", type=float, default=9, help="length of the run of the fleet; of vLLM: a third")
    args = parser.parse_args()
    names = args.names or [*fake, "engine"]
    if unknown := set(names) - {*fake, "engine"}:
        parser.error(f"unknown: {', '.join(unknown)}")
    if chosen := [name for name in fake if name in names]:
        draw_fleet(chosen, args.minutes)
    if "engine" in names:
        draw_engine(args.minutes / 3)
    return 0


if __name__ == "__main__":
    sys.exit(main())
