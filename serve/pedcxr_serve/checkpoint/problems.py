"""Reading the small JSON files of a model folder, and what is wrong with them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

__all__ = ["Problem", "read_json"]

_LIMIT = 32 << 20


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding: "{where} {what}: {remedy}". `block` means that serving would fail or be wrong."""

    severity: Literal["block", "warn"]
    where: str
    what: str
    remedy: str


def read_json(path: Path, problems: list[Problem]) -> dict[str, Any] | None:
    """The JSON object in a file; None when it is absent, or unusable (which is then among `problems`)."""
    try:
        with path.open("rb") as file:
            raw = file.read(_LIMIT + 1)
        if len(raw) > _LIMIT:
            raise ValueError("is larger than 32 MiB")
        value = json.loads(raw)
    except FileNotFoundError:
        return None
    except OSError as error:
        what, remedy = f"cannot be read ({error.strerror})", "mend its permissions"
    except (ValueError, RecursionError) as error:
        what, remedy = f"is not valid JSON ({error})", "download the file again"
    else:
        if isinstance(value, dict):
            return value
        what, remedy = "is not a JSON object", "download the file again"
    problems.append(Problem("block", path.name, what, remedy))
    return None
