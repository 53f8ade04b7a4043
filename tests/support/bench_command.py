"""``pedcxr bench`` as a process of its own, against a server of this machine."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pedcxr_client.bench import results
from tests.support.servers.local_server import LocalServer

# Linux shares a busy core by session (`man 7 sched`, autogroup). The generator goes first, if root runs it: what it
# sends late is not the load that it states.
_FIRST = '{ echo -15 > /proc/self/autogroup; } 2>/dev/null; exec "$@"'


class BenchCommand:
    """Runs ``pedcxr bench`` and returns its result.

    Args:
        url: of the server, with ``/v1``.
        pages: metrics pages, one of each replica.
        folder: for the workload file and the result.
        options: of every run.

    Attributes:
        result_file: of the last run.
    """

    def __init__(self, url: str, pages: Sequence[str], folder: Path, *options: str) -> None:
        self._options = ["--url", url, *(word for page in pages for word in ("--metrics-url", page)), *options]
        self._workload, self.result_file = folder / "workload.toml", folder / "out.json"

    @classmethod
    def of(cls, running: LocalServer, folder: Path, *options: str) -> BenchCommand:
        """Return the command for a server of this machine, whose processes are measured too."""
        return cls(running.url, [running.metrics_url], folder, "--server-pid", str(running.process.pid), *options)

    def __call__(
        self, mode: str, *options: str, **tables: Mapping[str, object] | Sequence[Mapping[str, object]]
    ) -> dict[str, Any]:
        """Run a mode with these tables of the workload file, and print the first line of the report.

        Raises:
            RuntimeError: there is no result.
        """
        self.result_file.unlink(missing_ok=True)
        lines = []
        for name, table in tables.items():
            head, entries = (f"[{name}]", [table]) if isinstance(table, Mapping) else (f"[[{name}]]", table)
            for values in entries:
                lines.append(head)
                lines += [f"{key} = {json.dumps(value)}" for key, value in values.items()]
        self._workload.write_text("\n".join([*lines, ""]))
        words = [
            sys.executable, "-m", "pedcxr_client", "bench", mode, "--workload", str(self._workload),
            "-o", str(self.result_file), "--force", *self._options, *options,
        ]  # fmt: skip
        completed = subprocess.run(
            ["sh", "-c", _FIRST, "sh", *words], capture_output=True, text=True, check=False, start_new_session=True
        )
        if completed.returncode not in (0, 1) or not self.result_file.exists():
            raise RuntimeError(f"pedcxr bench {mode}: exit code {completed.returncode}\n{completed.stderr[-3000:]}")
        result = results.read(str(self.result_file))
        print("\n    ".join(["  " + completed.stdout.partition("\n")[0], *result["reasons"]]), flush=True)
        return result
