"""The command ``pedcxr``. The report, and nothing else, goes to stdout; everything else to stderr."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from . import __version__, gate
from ._errors import (
    ConfigurationError,
    ConnectionFailed,
    InputError,
    PedcxrError,
    RateLimited,
    RequestError,
    TruncatedReport,
    Unavailable,
)
from ._settings import DEFAULT_URL, Timeouts
from .age import Age
from .client import Client
from .hook import Silent
from .preparation import Preparation
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
        return _guarded(lambda: options.run(options))
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
    report.set_defaults(run=_report)
    report.add_argument("file", metavar="FILE", help="the film: DICOM, PNG, JPEG or another image file")
    _add_film_options(report)
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
    _add_inspect(commands)
    return parser


def _add_inspect(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    says = "show what films are, whether they may be sent, and what would be; sends nothing"
    codes = "exit codes: 0 all would be sent; 2 usage; 3 one is blocked or cannot be read"
    inspect = commands.add_parser("inspect", help=says, description=says, epilog=codes, allow_abbrev=False)
    inspect.set_defaults(run=_inspect)
    inspect.add_argument("files", metavar="FILE", nargs="+", help="films: DICOM, PNG, JPEG or other image files")
    _add_film_options(inspect)
    inspect.add_argument("--json", action="store_true", help="print one JSON object a film")
    inspect.add_argument("--preview", metavar="OUT.png", help="write what would be sent of one film")


def _add_film_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--age", metavar="AGE", help="at the time of the film: 10d, 3w, 18m, 5y (default: the header's)"
    )
    parser.add_argument("--sex", choices=("M", "F"), help="default: the header's")
    parser.add_argument("--assume-chest", action="store_true", help="it shows a chest, should its header not say")
    parser.add_argument(
        "--allow", metavar="NAME", action="append", default=[],
        help=f"a check that must not block, recorded in the report: {', '.join(gate.NAMES)}",
    )  # fmt: skip
    parser.add_argument("--profile", choices=("display", "ped-train"), default="display", help="default: %(default)s")
    parser.add_argument("--pad-square", action="store_true", help="add black until the film is square")
    parser.add_argument("--resize", choices=("model",), help="stretch it to the model's input: a body 6 times smaller")


def _above_zero(kind: Callable[[str], float]) -> Callable[[str], float]:
    def convert(text: str) -> float:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise ValueError
        return value

    convert.__name__ = "number above 0"
    return convert


def _guarded(command: Callable[[], int]) -> int:
    """Run a command: no traceback, and quiet where nobody reads on."""
    try:
        code = command()
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
    return code


def _more(error: PedcxrError) -> list[str]:
    if isinstance(error, TruncatedReport):
        return ["--max-tokens sets it, and --stream shows the unfinished text"]
    if isinstance(error, RequestError) and not isinstance(error, ConnectionFailed) and error.request_id:
        return [f"request id {error.request_id}"]
    return []


def _inspect(options: argparse.Namespace) -> int:
    from . import _inspect

    if options.preview is not None and len(options.files) > 1:
        raise ConfigurationError("--preview: shows one film; give one FILE")
    asked, preparation = _asked(options), _preparation(options)
    films = []
    for file in options.files:
        films.append(_inspect.inspect(file, asked, preparation))
        if options.json:
            print(json.dumps(films[-1].as_dict()), flush=True)
    if not options.json:
        print(_inspect.sheet(films[0]) if len(films) == 1 else _inspect.table(films))
    if options.preview is not None:
        _inspect.save(films[0], options.preview)
    return InputError.exit_code if any(film.blocked for film in films) else 0


def _asked(options: argparse.Namespace) -> gate.Asked:
    age = None if options.age is None else Age.parse(options.age)
    return gate.Asked(age=age, sex=options.sex, assume_chest=options.assume_chest, allow=options.allow)


def _preparation(options: argparse.Namespace) -> Preparation:
    return Preparation(profile=options.profile, pad_square=options.pad_square, resize=options.resize)


def _report(options: argparse.Namespace) -> int:
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
    for check in report.checks:
        if check.allowed or (check.status == "warn" and check.from_header):
            print(f"pedcxr: {'allowed' if check.allowed else 'mind'}: {check.name}: {check.why}", file=sys.stderr)
    if report.demo:
        print("demo model: synthetic, not a medical report", file=sys.stderr)
    print(DISCLAIMER, file=sys.stderr)
    return 0


def _whole(client: Client, options: argparse.Namespace) -> Report:
    return client.report(
        options.file,
        age=options.age,
        sex=options.sex,
        max_tokens=options.max_tokens,
        assume_chest=options.assume_chest,
        allow=options.allow,
        preparation=_preparation(options),
    )


def _streamed(client: Client, options: argparse.Namespace) -> Report:
    with client.stream(
        options.file,
        age=options.age,
        sex=options.sex,
        max_tokens=options.max_tokens,
        assume_chest=options.assume_chest,
        allow=options.allow,
        preparation=_preparation(options),
    ) as stream:
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
