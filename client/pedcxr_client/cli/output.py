"""The format of a report and its file. A new file has mode 0600 and replaces another only with ``--force``."""

from __future__ import annotations

import argparse
import os
import stat
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pedcxr_client import reports
from pedcxr_client.errors import ConfigurationError
from pedcxr_client.reports import dicom_header, fhir
from pedcxr_client.reports.report import Report

# Options that are valid with one format only.
_FORMAT_OF_OPTION = {"subject": "fhir", "preliminary": "fhir", "copy_identity": "sr"}


@dataclass(frozen=True, slots=True, repr=False)
class Output:
    """How a report is rendered, and the file to write, or None for stdout."""

    render: Callable[[Report], bytes]
    path: str | None
    force: bool

    def save(self, report: Report) -> None:
        """Write the report to its file."""
        assert self.path is not None
        write(self.path, self.render(report), force=self.force)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for the format and the file."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--stream", action="store_true", help="print the text while the model writes it")
    group.add_argument(
        "--format", choices=("text", "json", "csv", "fhir", "sr"),
        help="output format, with notices and provenance; sr needs -o",
    )  # fmt: skip
    group.add_argument("--json", action="store_const", const="json", dest="format", help="same as --format json")
    parser.add_argument("-o", "--output", metavar="OUT", help="write the report to this file, readable by you only")
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")
    parser.add_argument("--subject", metavar="REF", help="fhir: reference to the patient, such as Patient/123")
    parser.add_argument("--preliminary", action="store_true", help="fhir: use status preliminary instead of partial")
    parser.add_argument(
        "--copy-identity", action="store_true", help="sr: copy patient and study from FILE, which must be DICOM"
    )


def from_options(options: argparse.Namespace) -> Output | None:
    """Return the output that the options describe, or None for the bare text on stdout.

    All options are validated here, before any request is sent.
    """
    name = options.format or ("text" if options.output is not None else None)
    for option, owner in _FORMAT_OF_OPTION.items():
        if getattr(options, option) and name != owner:
            raise ConfigurationError(f"--{option.replace('_', '-')}: valid only with --format {owner}")
    if options.output is not None and options.stream:
        raise ConfigurationError("-o: cannot be combined with --stream, which prints to the terminal; remove one")
    if options.output is not None:
        check(options.output, film=options.file, force=options.force)
    elif options.force:
        raise ConfigurationError("--force: valid only with -o")
    elif name == "sr":
        raise ConfigurationError("--format sr: is a binary format; give a file to write: -o OUT.dcm")
    if name is None:
        return None
    return Output(_renderer(name, options), options.output, options.force)


def _renderer(name: str, options: argparse.Namespace) -> Callable[[Report], bytes]:
    if name == "sr":
        dicom_header.require_pydicom()
        identity = reports.identity_of(options.file) if options.copy_identity else None
        return lambda report: reports.to_sr(report, identity=identity)
    if name == "fhir":
        fhir.check_subject(options.subject)
        subject, preliminary = options.subject, options.preliminary
        return lambda report: (reports.to_fhir(report, subject=subject, preliminary=preliminary) + "\n").encode()
    text_formats: dict[str, Callable[[Report], str]] = {
        "text": reports.to_text,
        "json": reports.to_jsonl,
        "csv": reports.to_csv,
    }
    return lambda report: text_formats[name](report).encode()


def check(path: str, *, film: str, force: bool) -> None:
    """Check that a report can be written to a path, before any request is sent."""
    try:
        if not Path(path).parent.is_dir():
            raise ConfigurationError("-o: its folder does not exist; create the folder first")
        status = os.lstat(path) if os.path.lexists(path) else None
        if status is not None and os.path.exists(film) and os.path.exists(path) and os.path.samefile(path, film):
            raise ConfigurationError("-o: is the film itself; give another file name")
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"-o: cannot be written: {_reason(error)}") from error
    if status is not None and not stat.S_ISREG(status.st_mode):
        raise ConfigurationError("-o: exists and is not a regular file; give another file name")
    if status is not None and not force:
        raise ConfigurationError("-o: already exists; give another file name, or use --force to replace it")


def write(path: str, data: bytes, *, force: bool) -> None:
    """Write a file atomically, with mode 0600. Without ``force``, fail if the file appeared since `check`."""
    try:
        file, temporary = tempfile.mkstemp(prefix=".pedcxr-", dir=Path(path).parent)  # with mode 0600
        try:
            with os.fdopen(file, "wb") as stream:
                stream.write(data)
            if force:
                os.replace(temporary, path)
            else:
                os.link(temporary, path)  # unlike rename, link fails if the target exists
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"-o: cannot be written: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or "not a valid path"
