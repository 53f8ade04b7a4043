"""The command ``pedcxr``. The report, and nothing else, goes to stdout; everything else to stderr."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from . import __version__
from ._errors import (
    ConfigurationError,
    ConnectionFailed,
    PedcxrError,
    RateLimited,
    RequestError,
    TruncatedReport,
    Unavailable,
)
from ._settings import DEFAULT_URL, Timeouts
from .client import Client
from .hook import Silent
from .report import DISCLAIMER

if TYPE_CHECKING:
    from .report import Report

_KEY_VARIABLE = "PEDCXR_API_KEY"
_INTERRUPTED, _BROKEN_PIPE = 130, 141

_DESCRIPTION = "Draft reports of paediatric chest films. Research use only, not for diagnosis."
_EXIT_CODES = """\
exit codes: 0 done; 2 usage or configuration; 3 the film or the prompt was refused;
4 the server could not be reached, failed, or wrote no finished report; 130 interrupted"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``pedcxr`` and return its exit code: 0 done, 2 usage or configuration, 3 input, 4 server, 130 Ctrl-C."""
    try:
        options = _parser().parse_args(argv)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a model may write what the terminal cannot show
    try:
        return _guarded(lambda: _report(options))
    except KeyboardInterrupt:
        return _INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("pedcxr", description=_DESCRIPTION, epilog=_EXIT_CODES, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--version", action="version", version=f"pedcxr {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    report = commands.add_parser(
        "report", help="write the report of one film", description=_DESCRIPTION, epilog=_EXIT_CODES, allow_abbrev=False
    )
    report.formatter_class = argparse.RawDescriptionHelpFormatter
    report.add_argument("file", metavar="FILE", help="the film: PNG, JPEG or another image file")
    report.add_argument("--age", metavar="AGE", help="at the time of the film: 10d, 3w, 18m, 5y")
    report.add_argument("--sex", choices=("M", "F"))
    form = report.add_mutually_exclusive_group()
    form.add_argument("--stream", action="store_true", help="print the text as it is written")
    form.add_argument("--json", action="store_true", help="print one JSON object with all that is known")
    report.add_argument("--url", default=DEFAULT_URL, help="the server (default: %(default)s)")
    report.add_argument(
        "--api-key-env", metavar="NAME", help=f"environment variable that holds the API key (default: {_KEY_VARIABLE})"
    )
    report.add_argument("--model", metavar="NAME", help="needed only if the server offers several")
    report.add_argument("--max-tokens", metavar="N", type=_above_zero(int), default=500, help="default: %(default)s")
    report.add_argument(
        "--timeout", metavar="S", type=_above_zero(float), default=Timeouts().total,
        help="seconds for everything, waiting for a starting server included (default: %(default)g)",
    )  # fmt: skip
    report.add_argument("--insecure-http", action="store_true", help="allow plain http to another machine")
    return parser


def _above_zero(kind: Callable[[str], float]) -> Callable[[str], float]:
    def convert(text: str) -> float:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise ValueError
        return value

    convert.__name__ = "number above 0"
    return convert


def _guarded(command: Callable[[], None]) -> int:
    """Run a command: no traceback, and quiet where nobody reads on."""
    try:
        command()
        sys.stdout.flush()
    except PedcxrError as error:
        print(f"pedcxr: {error}", file=sys.stderr)
        for line in _more(error):
            print(f"pedcxr: {line}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # The interpreter flushes stdout once more on its way out, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    return 0


def _more(error: PedcxrError) -> list[str]:
    if isinstance(error, TruncatedReport):
        return ["--max-tokens sets it, and --stream shows the unfinished text"]
    if isinstance(error, RequestError) and not isinstance(error, ConnectionFailed) and error.request_id:
        return [f"request id {error.request_id}"]
    return []


def _report(options: argparse.Namespace) -> None:
    with Client(
        options.url,
        api_key=_api_key(options.api_key_env),
        model=options.model,
        timeouts=Timeouts(total=options.timeout),
        insecure_http=options.insecure_http,
        metrics=_Patience(),
    ) as client:
        show = _streamed if options.stream else _whole
        report = show(client, options)
    if options.json:
        print(json.dumps(report.as_dict(), ensure_ascii=False))
    elif not options.stream:
        print(report.text, end="" if report.text.endswith("\n") else "\n")
    sys.stdout.flush()
    if report.demo:
        print("demo model: synthetic, not a medical report", file=sys.stderr)
    print(DISCLAIMER, file=sys.stderr)


def _whole(client: Client, options: argparse.Namespace) -> Report:
    return client.report(options.file, age=options.age, sex=options.sex, max_tokens=options.max_tokens)


def _streamed(client: Client, options: argparse.Namespace) -> Report:
    with client.stream(options.file, age=options.age, sex=options.sex, max_tokens=options.max_tokens) as stream:
        piece = ""
        try:
            for piece in stream:
                print(piece, end="", flush=True)
        finally:
            if piece and not piece.endswith("\n"):
                print(flush=True)
        return stream.report


def _api_key(variable: str | None) -> str | None:
    key = os.environ.get(variable or _KEY_VARIABLE)
    if variable is not None and not key:
        raise ConfigurationError(f"--api-key-env: {variable} is not set; export it, or leave the option out")
    return key or None


class _Patience(Silent):
    """Says why nothing happens while the client waits for a server that asked to come back later."""

    def retrying(self, error: RequestError, wait: float) -> None:
        if isinstance(error, RateLimited | Unavailable):
            print(f"pedcxr: the server is starting or busy; trying again in {max(wait, 1):.0f} s", file=sys.stderr)
