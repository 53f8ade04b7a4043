"""The options that say in which form a report is written, and where to."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

from pedcxr_client import reports
from pedcxr_client.cli import output
from pedcxr_client.errors import ConfigurationError
from pedcxr_client.reports import dicom_sr, fhir
from pedcxr_client.reports.report import Report

_OWN = {"subject": "fhir", "preliminary": "fhir", "copy_identity": "sr"}
"""Options that belong to one form."""


@dataclass(frozen=True, slots=True, repr=False)
class Form:
    """What is made of a report.

    Attributes:
        render: makes it.
        is_text: whether a terminal can show it.
        path: the file to write, or None for stdout.
        force: replace that file.
    """

    render: Callable[[Report], bytes]
    is_text: bool
    path: str | None
    force: bool


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    one = parser.add_mutually_exclusive_group()
    one.add_argument("--stream", action="store_true", help="print the text as it is written")
    one.add_argument(
        "--format", choices=("text", "json", "csv", "fhir", "sr"), help="with notices and origin; sr needs -o"
    )
    one.add_argument("--json", action="store_const", const="json", dest="format", help="short for --format json")
    parser.add_argument("-o", "--output", metavar="OUT", help="write it there, for you alone to read")
    parser.add_argument("--force", action="store_true", help="replace OUT")
    parser.add_argument("--subject", metavar="REF", help="fhir: whose report it is, such as Patient/123")
    parser.add_argument("--preliminary", action="store_true", help="fhir: status preliminary instead of partial")
    parser.add_argument(
        "--copy-identity", action="store_true", help="sr: copy patient and study from FILE, which must be DICOM"
    )


def form(options: argparse.Namespace) -> Form | None:
    """What the options ask for; None for the bare text. All that can be wrong is so before a server is asked.

    Raises:
        ConfigurationError: if they contradict each other, or the file cannot be written.
        InputError: if an identity is to be copied and FILE has none.
    """
    name = options.format or ("text" if options.output is not None else None)
    for option, owner in _OWN.items():
        if getattr(options, option) and name != owner:
            raise ConfigurationError(f"--{option.replace('_', '-')}: belongs to --format {owner}")
    if options.output is not None and options.stream:
        raise ConfigurationError("-o: --stream shows the text on the terminal; leave one of them out")
    if options.output is not None:
        output.check(options.output, film=options.file, force=options.force)
    elif options.force:
        raise ConfigurationError("--force: belongs to -o")
    elif name == "sr":
        raise ConfigurationError("--format sr: is no text; say where to write it: -o OUT.dcm")
    if name is None:
        return None
    return Form(_renderer(name, options), name != "sr", options.output, options.force)


def save(made: Form, report: Report) -> None:
    """Write the file.

    Raises:
        ConfigurationError: if it cannot be written.
    """
    assert made.path is not None
    output.write(made.path, made.render(report), force=made.force)


def _renderer(name: str, options: argparse.Namespace) -> Callable[[Report], bytes]:
    if name == "sr":
        dicom_sr.require_pydicom()
        identity = reports.identity_of(options.file) if options.copy_identity else None
        return lambda report: reports.to_sr(report, identity=identity)
    if name == "fhir":
        fhir.check_subject(options.subject)
        subject, preliminary = options.subject, options.preliminary
        return lambda report: (reports.to_fhir(report, subject=subject, preliminary=preliminary) + "\n").encode()
    plain: dict[str, Callable[[Report], str]] = {
        "text": reports.to_text,
        "json": reports.to_jsonl,
        "csv": reports.to_csv,
    }
    return lambda report: plain[name](report).encode()
