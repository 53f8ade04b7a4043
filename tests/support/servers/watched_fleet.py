"""A fleet under load that a real Prometheus scrapes with the files of deploy/monitoring."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support import real_tools
from tests.support.paths import ROOT
from tests.support.servers.fleet_load import Load, drive

MONITORING = ROOT / "deploy/monitoring"


def targets(fleet: Any) -> str:
    return ", ".join(f'"127.0.0.1:{replica.admin_port}"' for replica in fleet.replicas)


@contextmanager
def watched(folder: Path, fleet: Any, balancer: Any, alertmanager: str) -> Iterator[str]:
    """Run Prometheus with the shipped files, other addresses, short intervals, and alerts that fire at once."""
    (folder / "rules.yml").write_text(re.sub(r'for: "\w+"', 'for: "0s"', (MONITORING / "rules.yml").read_text()))
    config = (MONITORING / "prometheus.yml").read_text()
    for old, new in (
        ('"127.0.0.1:8100", "127.0.0.1:8101"', targets(fleet)),
        ("127.0.0.1:8405", balancer.metrics_url.split("/")[2]),
        ("127.0.0.1:9093", alertmanager),
        ("scrape_interval: 15s, evaluation_interval: 15s", "scrape_interval: 1s, evaluation_interval: 1s"),
    ):
        assert old in config
        config = config.replace(old, new)
    with real_tools.prometheus(config, folder) as address:
        yield address


@contextmanager
def load_on(url: str, users: int, **options: Any) -> Iterator[Load]:
    """Drive a fleet from a thread during the block, with the options of `drive`."""
    load, loop = Load(), asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_until_complete, args=(drive(url, users, load, **options),))
    thread.start()
    try:
        yield load
    finally:
        loop.call_soon_threadsafe(load.stop.set)
        thread.join()
        loop.close()
