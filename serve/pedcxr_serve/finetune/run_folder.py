"""The output folder of a training: its lock, its record, its states, and the result, which appears at once or not.

::

    DIR/run.json        what the training was started with; a run with the same settings continues
    DIR/metrics.jsonl   one line per logged step
    DIR/films/          the prepared films, until the training is complete
    DIR/states/         the last states (weights, optimizer, random numbers), until the training is complete
    DIR/training.json   the record of a complete training, beside the adapter or the checkpoint
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pedcxr_serve.errors import ConfigError

RECORD = "training.json"
COMPLETE = "complete"
"""A file in a state that was written completely."""


@contextmanager
def opened(folder: Path) -> Iterator[None]:
    """Create the folder if necessary, and lock it against other trainings until the end of the block.

    Raises:
        ConfigError: Another training uses the folder, it holds a finished training or other files, or it cannot be
            written.
    """
    if (folder / RECORD).exists():
        raise ConfigError(f"--out {folder}: holds a finished training. Give another folder.")
    if folder.is_dir() and not (folder / "run.lock").exists() and any(folder.iterdir()):
        raise ConfigError(f"--out {folder}: holds other files. Give a new or empty folder.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / "run.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(f"--out {folder}: cannot be written ({error.strerror}). Give another folder.") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise ConfigError(
            f"--out {folder}: another training is using this folder. Wait for it, or give another folder."
        ) from error
    try:
        if (folder / RECORD).exists():  # written since the first look
            raise ConfigError(f"--out {folder}: holds a finished training. Give another folder.")
        yield
    finally:
        os.close(lock)


def begin(folder: Path, run: dict[str, Any]) -> None:
    """Record what the training starts with, or check that an interrupted training started with the same.

    Raises:
        ConfigError: The folder holds a training with other settings, data, base or package versions.
    """
    path = folder / "run.json"
    run = json.loads(json.dumps(run))
    if not path.exists():
        write_json(path, run)
        return
    before = json.loads(path.read_text())
    if changed := sorted(_differences(before, run)):
        raise ConfigError(
            f"--out {folder}: holds an interrupted training that started with other values ({', '.join(changed)}). "
            "Start it as before, or give another folder."
        )


def _differences(one: dict[str, Any], other: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key in one.keys() | other.keys():
        before, now = one.get(key), other.get(key)
        if isinstance(before, dict) and isinstance(now, dict):
            yield from _differences(before, now, f"{prefix}{key}.")
        elif before != now:
            yield prefix + key


def last_state(folder: Path) -> Path | None:
    """Return the newest complete state, or None. Incomplete states, of a run that was killed, are removed."""
    states = sorted((folder / "states").glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    for state in states:
        if not (state / COMPLETE).exists():
            shutil.rmtree(state)
    return next((state for state in reversed(states) if state.exists()), None)


def publish(folder: Path, staged: Path, record: dict[str, Any]) -> None:
    """Move the files of ``staged`` into the folder, the record last, and remove films and states.

    ``staged`` is on the same file system, so that no step needs space.
    """
    write_json(staged / RECORD, record)
    for path in sorted(staged.iterdir(), key=lambda path: path.name == RECORD):
        path.replace(folder / path.name)
    staged.rmdir()
    for name in ("films", "states"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("run.json", "run.lock"):
        (folder / name).unlink(missing_ok=True)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON file atomically."""
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(json.dumps(value, indent=2) + "\n")
    temporary.replace(path)


def keep_metrics_until(path: Path, step: int) -> None:
    """Remove the lines of steps that a continued training repeats."""
    if path.exists():
        lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        text = "".join(line for line in lines if json.loads(line)["step"] <= step)
        temporary = path.with_name(path.name + ".new")
        temporary.write_text(text)
        temporary.replace(path)
