"""``pedcxr bench`` as a process of its own, against a server of this machine."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pedcxr_client.bench import results
from tests.support.servers.local_server import LocalServer


class BenchCommand:
    """Runs ``pedcxr bench`` and returns its result.

    Args:
        folder: for the workload file and the result.
        options: of every run.
    """

    def __init__(self, running: LocalServer, folder: Path, *options: str) -> None:
        self.running, self.folder, self._options = running, folder, options

    def __call__(self, mode: str, *options: str, **tables: Mapping[str, object]) -> dict[str, Any]:
        """Run a mode with these tables of the workload file, and print the first line of the report.

        Raises:
            RuntimeError: there is no result.
        """
        workload, out = self.folder / "workload.toml", self.folder / "out.json"
        out.unlink(missing_ok=True)
        lines = []
        for name, values in tables.items():
            lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
        workload.write_text("\n".join([*lines, ""]))
        words = [
            sys.executable, "-m", "pedcxr_client", "bench", mode, "--workload", str(workload), "-o", str(out),
            "--force", "--url", self.running.url, "--metrics-url", self.running.metrics_url,
            "--server-pid", str(self.running.process.pid), *self._options, *options,
        ]  # fmt: skip
        # Linux shares a busy core by session (`man 7 sched`, autogroup), so that the generator is late less often.
        completed = subprocess.run(words, capture_output=True, text=True, check=False, start_new_session=True)
        if completed.returncode not in (0, 1) or not out.exists():
            raise RuntimeError(f"pedcxr bench {mode}: exit code {completed.returncode}\n{completed.stderr[-3000:]}")
        result = results.read(str(out))
        print("\n    ".join(["  " + completed.stdout.partition("\n")[0], *result["reasons"]]), flush=True)
        return result
