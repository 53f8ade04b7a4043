"""Run ``pedcxr batch`` and read its output."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from PIL import Image

from pedcxr_client.cli.main import main


def batch(source: Path, out: Path, url: str, *more: str) -> int:
    return main(["batch", str(source), "-o", str(out), "--url", url, "--concurrency", "3", *more])


def lines(out: Path) -> list[dict[str, Any]]:
    data = out.read_bytes()
    assert data.endswith(b"\n") or not data
    return [json.loads(line) for line in data.splitlines()]


def reported(out: Path) -> Counter[str]:
    return Counter(line["id"] for line in lines(out) if "text" in line)


def write_films(folder: Path, count: int, prefix: str = "") -> Path:
    """Write that many different films, named by their number, into a new folder, and return the folder."""
    folder.mkdir()
    for number in range(count):
        Image.linear_gradient("L").rotate(number).save(folder / f"{prefix}{number}.png")
    return folder


IDS = Counter(f"case {number}" for number in range(12))
