"""``pedcxr report``: one film, one report."""

from __future__ import annotations

import argparse
import sys
import unicodedata
from typing import TYPE_CHECKING

from pedcxr_client.cli import film_options, prompt_options
from pedcxr_client.cli import form as _form
from pedcxr_client.cli import options as _server
from pedcxr_client.errors import ConfigurationError
from pedcxr_client.reports.report import Report

if TYPE_CHECKING:
    from pedcxr_client.client import ReportStream
    from pedcxr_client.request.film_request import FilmRequest

_DESCRIPTION = "Draft reports of paediatric chest films. Research use only, not for diagnosis."
_EXIT_CODES = """\
exit codes: 0 done; 2 usage or configuration; 3 the film or the prompt was refused;
4 the server could not be reached, failed, or wrote no finished report; 130 interrupted"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command."""
    parser = commands.add_parser(
        "report", help="write the report of one film", description=_DESCRIPTION, epilog=_EXIT_CODES, allow_abbrev=False
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.set_defaults(run=run)
    parser.add_argument("file", metavar="FILE", help="the film: DICOM, PNG, JPEG or another image file")
    film_options.add(parser)
    prompt_options.add(parser)
    prompt_options.add_indication(parser)
    _form.add(parser)
    parser.add_argument(
        "--dry-run", action="store_true",
        help="print the JSON of the request and send no film; with --stream, of the one that is answered as a stream",
    )  # fmt: skip
    _server.add(parser)


def run(options: argparse.Namespace) -> int:
    """Print the report on stdout or write its file, and what goes with it on stderr."""
    form = _form.form(options)
    request = film_options.request(
        options.file,
        options,
        max_tokens=options.max_tokens,
        prompt_profile=prompt_options.profile(options),
        indication=prompt_options.indication(options),
    )
    if options.dry_run:
        if form is not None:
            raise ConfigurationError("--dry-run: prints the request; leave --format, --json and -o out")
        return _print_payload(request, options)
    with _server.connect(options) as client, client._stream(request) as stream:
        if options.stream:
            _print_pieces(stream)
        for _ in stream:
            pass
        report = stream.report
    if form is not None and form.path is not None:
        try:
            _form.save(form, report)
        except ConfigurationError:
            print(report.text)  # it was written with some effort
            raise
    elif form is not None:
        print(form.render(report).decode(), end="")
    elif not options.stream:
        print(report.text, end="" if report.text.endswith("\n") else "\n")
    sys.stdout.flush()
    _print_remarks(report)
    return 0


def _print_payload(request: FilmRequest, options: argparse.Namespace) -> int:
    with _server.connect(options) as client:
        print(client._payload(request, stream=options.stream).decode())
    return 0


def _print_pieces(stream: ReportStream) -> None:
    piece = ""
    try:
        for piece in stream:
            print(_harmless(piece), end="", flush=True)
    finally:
        if piece and not piece.endswith("\n"):
            print(flush=True)


def _harmless(piece: str) -> str:
    """A piece without what would command a terminal: it is shown before anybody has judged the text."""
    return "".join(
        "\ufffd" if unicodedata.category(letter) == "Cc" and letter not in "\n\t" else letter for letter in piece
    )


def _print_remarks(report: Report) -> None:
    for check in report.checks:
        if check.allowed or (check.status == "warn" and check.from_header):
            print(f"pedcxr: {'allowed' if check.allowed else 'mind'}: {check.name}: {check.why}", file=sys.stderr)
    for notice in report.notices:
        print(notice, file=sys.stderr)
