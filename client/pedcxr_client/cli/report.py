"""``pedcxr report``: one film, one report."""

from __future__ import annotations

import argparse
import sys
import unicodedata
from typing import TYPE_CHECKING

from pedcxr_client.cli import options as shared
from pedcxr_client.cli import output as report_output
from pedcxr_client.errors import ConfigurationError
from pedcxr_client.reports.report import Report

if TYPE_CHECKING:
    from pedcxr_client.client import ReportStream
    from pedcxr_client.request.film_request import FilmRequest

_DESCRIPTION = "Draft a report of one paediatric chest film. Research use only, not for diagnosis."
_EXIT_CODES = """\
exit codes: 0 done; 2 usage or configuration; 3 the film or the prompt was refused;
4 the server is unreachable, failed, or returned no complete report; 130 interrupted"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Define the command."""
    parser = commands.add_parser(
        "report", help="write the report of one film", description=_DESCRIPTION, epilog=_EXIT_CODES, allow_abbrev=False
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.set_defaults(run=run)
    parser.add_argument("file", metavar="FILE", help="the film: DICOM, PNG, JPEG or another image file")
    shared.add_film_options(parser)
    shared.add_prompt_options(parser)
    shared.add_indication_option(parser)
    report_output.add_options(parser)
    parser.add_argument(
        "--dry-run", action="store_true",
        help="print the JSON request body without sending it; with --stream, the body of a streaming request",
    )  # fmt: skip
    shared.add_server_options(parser)


def run(options: argparse.Namespace) -> int:
    """Print the report to stdout or write its file; print warnings and notices to stderr."""
    output = report_output.from_options(options)
    request = shared.film_request(
        options.file,
        options,
        max_tokens=options.max_tokens,
        prompt_profile=shared.prompt_profile(options),
        indication=shared.indication(options),
    )
    if options.dry_run:
        if output is not None:
            raise ConfigurationError("--dry-run: prints the request; remove --format, --json and -o")
        return _print_payload(request, options)
    with shared.film_named(options.file), shared.connect(options) as client, client._stream(request) as stream:
        if options.stream:
            _print_pieces(stream)
        for _ in stream:
            pass
        report = stream.report
    if output is not None and output.path is not None:
        try:
            output.save(report)
        except ConfigurationError:
            print(report.text)  # do not lose a report that the server has written
            raise
    elif output is not None:
        print(output.render(report).decode(), end="")
    elif not options.stream:
        print(report.text, end="" if report.text.endswith("\n") else "\n")
    sys.stdout.flush()
    _print_remarks(report)
    return 0


def _print_payload(request: FilmRequest, options: argparse.Namespace) -> int:
    with shared.film_named(options.file), shared.connect(options) as client:
        print(client._payload(request, stream=options.stream).decode())
    return 0


def _print_pieces(stream: ReportStream) -> None:
    piece = ""
    try:
        for piece in stream:
            print(_without_control_characters(piece), end="", flush=True)
    finally:
        if piece and not piece.endswith("\n"):
            print(flush=True)


def _without_control_characters(piece: str) -> str:
    # A terminal may execute control characters, and streamed text is printed before it is validated.
    return "".join(
        "\ufffd" if unicodedata.category(letter) == "Cc" and letter not in "\n\t" else letter for letter in piece
    )


def _print_remarks(report: Report) -> None:
    for check in report.checks:
        if check.allowed or (check.status == "warn" and check.from_header):
            label = "allowed" if check.allowed else "warning"
            print(f"pedcxr: {label}: {check.name}: {check.why}", file=sys.stderr)
    for notice in report.notices:
        print(notice, file=sys.stderr)
