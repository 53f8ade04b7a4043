"""Run the scenarios of one client: python SCRIPT URL KEY FILM.

Each line of the input names a scenario, and each line of the output is a result as JSON.

A scenario is a function of the script. Its result is what the client returns to its caller, or the client's exception.
"""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

URL, KEY, FILM = sys.argv[1:4]
DATA = Path(FILM).read_bytes()
BASE64 = base64.b64encode(DATA).decode()
DATA_URL = f"data:image/png;base64,{BASE64}"
MODEL = "pedcxr-demo"
PROMPT = "Generate a report."
QUESTION = "Is there an effusion?"
TEXT_FIRST = [{"type": "text", "text": PROMPT}, {"type": "image_url", "image_url": {"url": DATA_URL}}]
"""How most pages about images show it: the text before the image."""

os.environ.update(LANGSMITH_TRACING="false", LITELLM_TELEMETRY="False", LITELLM_LOCAL_MODEL_COST_MAP="True")


def serve(functions: dict[str, Any]) -> None:
    """Answer until the end of standard input."""
    results, sys.stdout = sys.stdout, sys.stderr  # a client's own prints are no result
    print(json.dumps("ready"), file=results, flush=True)
    for line in sys.stdin:
        try:
            result = {"returned": functions[line.strip()]()}
        except Exception as error:
            result = {"raised": list(_chain(error))}
        print(json.dumps(result), file=results, flush=True)


def _chain(error: BaseException | None) -> Iterator[dict[str, Any]]:
    """Describe an exception and its causes, the outermost first."""
    while error is not None:
        body = getattr(error, "body", None)
        yield {
            "type": type(error).__name__,
            "status": getattr(error, "status_code", None),
            "code": getattr(error, "code", None) or (body.get("code") if isinstance(body, dict) else None),
            "message": str(error)[:300],
        }
        error = error.__cause__ or error.__context__
