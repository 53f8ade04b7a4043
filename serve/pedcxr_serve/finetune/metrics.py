"""The losses of a training: a JSON line per logged step, and a line of progress for a person."""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_NAMES = {"loss": "loss", "eval_loss": "validation_loss", "learning_rate": "learning_rate", "grad_norm": "grad_norm"}
_LOSSES = ("loss", "validation_loss")


class MetricsFile:
    """Appends to ``metrics.jsonl``. The file never leaves the folder: no reporting service gets it.

    Attributes:
        losses: For each kind of loss, its values in order, those of the file included.
    """

    def __init__(self, path: Path) -> None:
        self.losses: dict[str, list[float]] = defaultdict(list)
        if path.exists():
            for line in path.read_text().splitlines():
                self._note(json.loads(line))
        self._file = path.open("a", buffering=1)
        self._start: tuple[int, float] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._file.close()

    def add(self, step: int, steps: int, epoch: float, logs: dict[str, Any]) -> None:
        """Write the values of a step that have a name here, and print the losses."""
        values = {name: float(logs[key]) for key, name in _NAMES.items() if key in logs}
        if not values:
            return
        line = {"step": step, "epoch": round(epoch, 4), "time": round(time.time(), 3), **values}
        self._file.write(json.dumps(line) + "\n")
        self._note(line)
        text = "  ".join(f"{name} {values[name]:.4f}" for name in _LOSSES if name in values)
        if text:
            print(f"step {step}/{steps}  {text}{self._remaining(step, steps)}", file=sys.stderr, flush=True)

    def _note(self, line: dict[str, Any]) -> None:
        for name in _LOSSES:
            if name in line:
                self.losses[name].append(line[name])

    def _remaining(self, step: int, steps: int) -> str:
        now = time.monotonic()
        if self._start is None:
            self._start = step, now
        first, start = self._start
        if step in (first, steps):
            return ""
        seconds = (now - start) / (step - first) * (steps - step)
        return f"  {seconds / 60:.0f} min left" if seconds >= 60 else f"  {seconds:.0f} s left"
