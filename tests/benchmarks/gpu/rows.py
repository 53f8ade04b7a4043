"""Measured rows, one line of JSON each, which survive a run that is cut off, and what a server's log says."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_LOG_FACTS = {
    "attention": r"Using (?:AttentionBackendEnum\.)?([A-Z][A-Z_]+) (?:attention )?backend",
    "vision_attention": r"Using (?:AttentionBackendEnum\.)?([A-Z][A-Z_]+) for MMEncoderAttention",
    "kv_tokens": r"GPU KV cache size: ([\d,]+) tokens",
    "graphs": r"[Ss]etting cudagraph_mode=(?:CUDAGraphMode\.)?(\w+)",
    "compile_s": r"torch\.compile took ([\d.]+) s",
}
"""What vLLM 0.32 logs about a start."""


@dataclass(frozen=True, slots=True)
class Rows:
    """The file of the rows."""

    path: Path

    def add(self, part: str, **values: Any) -> None:
        """Append a row and print its short values."""
        with self.path.open("a") as file:
            file.write(json.dumps({"part": part, **values}) + "\n")
        short = {name: value for name, value in values.items() if not isinstance(value, (dict, list))}
        print(part, *(f"{name} {value}" for name, value in short.items()), sep="  ", flush=True)

    def read(self) -> list[dict[str, Any]]:
        """Return all rows, [] before the first."""
        return [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.exists() else []


def facts(log: Path) -> dict[str, str]:
    """Return what a server's log says about its start, the last of each kind."""
    text = log.read_text(errors="replace")
    found = {name: re.findall(pattern, text) for name, pattern in _LOG_FACTS.items()}
    return {name: matches[-1] for name, matches in found.items() if matches}
