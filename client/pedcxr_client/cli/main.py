"""The command ``pedcxr``: parse arguments, run a command, map errors to exit codes.

Only the requested output goes to stdout; everything else goes to stderr.
"""

from __future__ import annotations

import argparse
import errno
import io
import os
import sys
from collections.abc import Callable, Sequence

from pedcxr_client.cli import batch, bench, evaluate, export, inspect, probe, report
from pedcxr_client.cli import options as shared
from pedcxr_client.errors import ConfigurationError, ConnectionFailed, PedcxrError, RequestError, TruncatedReport
from pedcxr_client.types import __version__

_INTERRUPTED, _BROKEN_PIPE = 130, 141
_FULL = (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # what a write to stdout may raise

_COMMANDS = (report, batch, export, inspect, evaluate, probe, bench)


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``pedcxr`` and return its exit code: 0 done, 2 usage or configuration, 3 input, 4 server, 130 Ctrl-C."""
    try:
        options = _parser().parse_args(argv)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A report may contain characters that the terminal cannot encode.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return _exit_code_of(lambda: _run(options))
    except KeyboardInterrupt:
        return _INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "pedcxr",
        description="Draft reports of paediatric chest films. Research use only, not for diagnosis.",
        epilog="exit codes: 0 done; 2 usage or configuration; 3 a film or a prompt was refused; 4 the server failed; "
        "130 interrupted; see COMMAND --help",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"pedcxr {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in _COMMANDS:
        command.add(commands)
    return parser


def _run(options: argparse.Namespace) -> int:
    with shared.publish_metrics(options) as options.watch:
        code: int = options.run(options)
        sys.stdout.flush()  # show the report before waiting for the last metrics scrape
    return code


def _exit_code_of(command: Callable[[], int]) -> int:
    try:
        code = command()
        sys.stdout.flush()
    except PedcxrError as error:
        print(f"pedcxr: {error}", file=sys.stderr)
        for line in _hints(error):
            print(f"pedcxr: {line}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        if error.filename is None and error.errno not in _FULL:
            raise
        # The interpreter flushes stdout again at exit, which would print the error once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return _BROKEN_PIPE
        print(f"pedcxr: {error.filename or 'stdout'}: {error.strerror or error}", file=sys.stderr)
        return ConfigurationError.exit_code
    return code


def _hints(error: PedcxrError) -> list[str]:
    if isinstance(error, TruncatedReport):
        return ["raise the limit with --max-tokens; --stream shows the unfinished text"]
    if isinstance(error, RequestError) and not isinstance(error, ConnectionFailed) and error.request_id:
        return [f"request id {error.request_id}"]
    return []
