"""Run ``pedcxr batch`` and read its output."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from pedcxr_client.cli.main import main


def batch(source: Path, out: Path, url: str, *more: str) -> int:
    return main(["batch", str(source), "-o", str(out), "--url", url, "--concurrency", "3", *more])


def lines(out: Path) -> list[dict[str, Any]]:
    data = out.read_bytes()
    assert data.endswith(b"\n") or not data
    return [json.loads(line) for line in data.splitlines()]


def reported(out: Path) -> Counter[str]:
    return Counter(line["id"] for line in lines(out) if "text" in line)


IDS = Counter(f"case {number}" for number in range(12))
