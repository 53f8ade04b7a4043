"""The format of a report and its file. A new file has mode 0600 and replaces another only with ``--force``."""

from __future__ import annotations

import argparse
import filecmp
import os
import stat
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pedcxr_client import reports
from pedcxr_client.errors import ConfigurationError
from pedcxr_client.reports import dicom_header
from pedcxr_client.reports.report import Report

_HEAD_BYTES = 4096  # of a page; they contain its title
# The formats with which each option is valid.
_FORMATS_OF_OPTION = {
    "subject": ("fhir",),
    "based_on": ("fhir",),
    "imaging_study": ("fhir",),
    "accession": ("fhir",),
    "effective": ("fhir",),
    "preliminary": ("fhir",),
    "copy_identity": ("sr", "pdf", "fhir"),
    "patient_name": ("sr", "pdf"),
    "new": ("sr", "pdf"),
    "excel": ("csv",),
}


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
    """Add the options for the format and the file of one report."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--stream", action="store_true", help="print the text while the model writes it")
    group.add_argument(
        "--format", choices=("text", "json", "csv", "fhir", "sr", "pdf"),
        help="output format, with notices and provenance; sr and pdf need -o",
    )  # fmt: skip
    group.add_argument("--json", action="store_const", const="json", dest="format", help="same as --format json")
    parser.add_argument("-o", "--output", metavar="OUT", help="write the report to this file, readable by you only")
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")
    parser.add_argument("--subject", metavar="REF", help="fhir: reference to the patient, such as Patient/123")
    parser.add_argument("--based-on", metavar="REF", help="fhir: reference to the order, such as ServiceRequest/7")
    parser.add_argument(
        "--imaging-study", metavar="REF", help="fhir: reference to the study, ImagingStudy/9 or a Study Instance UID"
    )
    parser.add_argument("--accession", metavar="NO", help="fhir: accession number of the order")
    parser.add_argument("--effective", metavar="TIME", help="fhir: time of the film, such as 2026-11-24")
    parser.add_argument(
        "--patient-name", metavar="NAME", help="sr, pdf: with --copy-identity, replaces the film's name"
    )
    add_format_options(parser)


def add_format_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that hold for one report and for many."""
    parser.add_argument("--preliminary", action="store_true", help="fhir: use status preliminary instead of partial")
    parser.add_argument(
        "--copy-identity", action="store_true",
        help="sr, pdf: copy patient and study from the film, which must be DICOM; fhir: study, accession and time",
    )  # fmt: skip
    parser.add_argument("--new", action="store_true", help="sr, pdf: a new series, not the one that is always the same")
    parser.add_argument("--excel", action="store_true", help="csv: start with a byte order mark, for Excel")


def from_options(options: argparse.Namespace) -> Output | None:
    """Return the output that the options describe, or None for the bare text on stdout.

    All options are validated here, before any request is sent.
    """
    name = options.format or ("text" if options.output is not None else None)
    check_format_options(name, options)
    if options.output is not None and options.stream:
        raise ConfigurationError("-o: cannot be combined with --stream, which prints to the terminal; remove one")
    if options.output is not None:
        check(options.output, film=options.file, force=options.force)
    elif options.force:
        raise ConfigurationError("--force: valid only with -o")
    elif name in ("sr", "pdf"):
        raise ConfigurationError(f"--format {name}: is a binary format; give a file to write: -o OUT.dcm")
    if name is None:
        return None
    if name == "pdf" and options.output.lower().endswith(".pdf"):
        if options.copy_identity or options.new:
            raise ConfigurationError("--copy-identity, --new: need DICOM; name the file OUT.dcm instead of OUT.pdf")
        return Output(reports.to_pdf, options.output, options.force)
    return Output(renderer(name, options, options.file), options.output, options.force)


def check_format_options(name: str | None, options: argparse.Namespace) -> None:
    """Check that each option is valid with the format."""
    for option, formats in _FORMATS_OF_OPTION.items():
        if getattr(options, option, None) and name not in formats:
            raise ConfigurationError(f"--{option.replace('_', '-')}: valid only with --format {', '.join(formats)}")
    if getattr(options, "patient_name", None) and not options.copy_identity:
        raise ConfigurationError("--patient-name: valid only with --copy-identity")


def renderer(name: str, options: argparse.Namespace, film: str) -> Callable[[Report], bytes]:
    """Return the function that renders reports of a film; its DICOM file is read here, if its identity is copied."""
    identity = None
    if options.copy_identity:
        identity = reports.identity_of(film, patient_name=getattr(options, "patient_name", None))
    if name in ("sr", "pdf"):
        dicom_header.require_pydicom()
        to_dicom = reports.to_sr if name == "sr" else reports.to_dicom_pdf
        return lambda report: to_dicom(report, identity=identity, new=options.new)
    if name == "fhir":
        names = ("subject", "based_on", "imaging_study", "accession", "effective")
        context = reports.Context(**{name: getattr(options, name, None) for name in names})
        context = context if identity is None else reports.context_of(identity, context)
        preliminary = options.preliminary
        return lambda report: (reports.to_fhir(report, context=context, preliminary=preliminary) + "\n").encode()
    text_formats: dict[str, Callable[[Report], str]] = {
        "text": reports.to_text,
        "json": reports.to_jsonl,
        "csv": lambda report: reports.to_csv(report, excel=options.excel),
    }
    return lambda report: text_formats[name](report).encode()


def check(path: str, *, film: str, force: bool, option: str = "-o") -> None:
    """Check that a file can be written to the path of an option, before any request is sent."""
    try:
        if not Path(path).parent.is_dir():
            raise ConfigurationError(f"{option}: its folder does not exist; create the folder first")
        if not os.access(Path(path).parent, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
            raise ConfigurationError(f"{option}: its folder cannot be written; check its owner, mode and file system")
        status = os.lstat(path) if os.path.lexists(path) else None
        if status is not None and os.path.exists(film) and os.path.exists(path) and os.path.samefile(path, film):
            raise ConfigurationError(f"{option}: is the film itself; give another file name")
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{option}: cannot be written: {_reason(error)}") from error
    if status is not None and not stat.S_ISREG(status.st_mode):
        raise ConfigurationError(f"{option}: exists and is not a regular file; give another file name")
    if status is not None and not force:
        raise ConfigurationError(f"{option}: already exists; give another file name, or use --force to replace it")


def check_page(path: str, *, title: str, others: Iterable[str]) -> None:
    """Check that a page can be written to ``--html``, which replaces only an earlier page of this title.

    Args:
        others: files of the command, none of which is the page.
    """
    check(path, film="", force=True, option="--html")
    if os.path.realpath(path) in map(os.path.realpath, others):
        raise ConfigurationError("--html: is another file of this command; give another file name")
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD_BYTES)
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigurationError(f"--html: cannot be read: {_reason(error)}") from error
    if head and f"<title>{title}</title>".encode() not in head:
        raise ConfigurationError("--html: already exists and is no page of this command; give another file name")


def write(
    path: str, data: bytes | Iterable[bytes], *, force: bool, allow_same: bool = False, option: str = "-o"
) -> bool:
    """Write a file atomically, with mode 0600, and return whether it is new.

    Without ``force``, fail if the file exists. With ``allow_same``, a file of the same content is no failure.
    """
    try:
        file, temporary = tempfile.mkstemp(prefix=".pedcxr-", dir=Path(path).parent)  # with mode 0600
        try:
            with os.fdopen(file, "wb") as stream:
                stream.writelines([data] if isinstance(data, bytes) else data)
            if force:
                os.replace(temporary, path)
                return True
            try:
                os.link(temporary, path)  # unlike rename, link fails if the target exists
            except FileExistsError:
                if allow_same and filecmp.cmp(temporary, path, shallow=False):
                    return False
                raise
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{option}: cannot be written: {_reason(error)}") from error
    return True


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or "not a valid path"
