"""``pedcxr export``: the reports of a finished run in another format. No film is sent again."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from hashlib import sha256
from typing import cast

from pedcxr_client import reports
from pedcxr_client.batch import csv_rows, folder, manifest
from pedcxr_client.batch.manifest import Entry
from pedcxr_client.cli import contact_sheet, output
from pedcxr_client.errors import ConfigurationError, InputError, ReportError
from pedcxr_client.films import film
from pedcxr_client.films.film import EncodedImage
from pedcxr_client.films.geometry import Preparation, Profile
from pedcxr_client.reports import csv_table
from pedcxr_client.reports.json_lines import Line
from pedcxr_client.reports.report import DEMO_NOTICE, DISCLAIMER, Report
from pedcxr_client.request.stream_parser import StreamParser

_SUFFIXES = {"text": ".txt", "fhir": ".json", "sr": ".sr.dcm", "pdf": ".pdf.dcm"}
_SINGLE_FILES = {"csv": "reports.csv", "html": "reports.html"}
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_LONGEST_NAME = 100
_EPILOG = """\
csv writes one table, DIR/reports.csv, and html one page with thumbnails, DIR/reports.html; the other formats write one
file per film, named after the film's id. If a film has several reports, the last one counts. A file of the
same content is kept, so that an export can be repeated.

exit codes: 0 every report was exported; 2 usage, configuration or a full disk; 3 lines were left out"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Define the command."""
    summary = "write the reports of a run in another format; sends nothing"
    parser = commands.add_parser("export", help=summary, description=summary, epilog=_EPILOG, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.set_defaults(run=run)
    parser.add_argument("run_file", metavar="RUN.jsonl", help="output of pedcxr batch, or of pedcxr report --json")
    parser.add_argument(
        "--format", choices=(*_SINGLE_FILES, *_SUFFIXES), required=True, help="pdf is DICOM Encapsulated PDF"
    )
    parser.add_argument("-o", "--output", metavar="DIR", required=True, help="folder to write to; created if absent")
    parser.add_argument("--force", action="store_true", help="replace files that exist")
    parser.add_argument(
        "--films",
        metavar="MANIFEST.csv|FOLDER",
        help="for --copy-identity and html: the films, as given to pedcxr batch",
    )
    parser.add_argument(
        "--references",
        metavar="FILE.csv",
        help="fhir: what each report refers to; columns id, subject, based_on, imaging_study, accession, effective",
    )
    parser.add_argument("--allow-outside", action="store_true", help="allow films outside the manifest's folder")
    parser.add_argument(
        "--skip-film-check", action="store_true",
        help="do not check that each film gives the image of its report; for reports of other versions of pedcxr",
    )  # fmt: skip
    output.add_format_options(parser)


def run(options: argparse.Namespace) -> int:
    """Export each report, and print a summary and every line that was left out to stderr."""
    output.check_format_options(options.format, options)
    if options.format != "html" and options.copy_identity is not (options.films is not None):
        raise ConfigurationError("--copy-identity and --films: need each other; give both or none")
    if options.references is not None and options.format != "fhir":
        raise ConfigurationError("--references: valid only with --format fhir")
    export = _Export(options)
    _make_folder(options.output)
    if options.format in _SINGLE_FILES:
        path = os.path.join(options.output, _SINGLE_FILES[options.format])
        rows = export.table() if options.format == "csv" else export.page()
        output.write(path, rows, force=options.force, allow_same=True)
    else:
        export.write_files()
    export.print_summary()
    return InputError.exit_code if export.omitted else 0


def check_page(run_file: str, films: str, path: str) -> None:
    """Check that the page of a run can be written, or replace an earlier page."""
    output.check_page(path, title=contact_sheet.TITLE, others=(run_file, films))


def write_page(run_file: str, films: str, path: str, *, allow_outside: bool) -> None:
    """Write the page of a run and its films, and replace an earlier page. Every film is prepared again."""
    check_page(run_file, films, path)
    options = argparse.Namespace(
        run_file=run_file,
        films=films,
        references=None,
        allow_outside=allow_outside,
        format="html",
        skip_film_check=False,
    )
    output.write(path, _Export(options).page(), force=True, option="--html")


@dataclass(slots=True)
class _Export:
    options: argparse.Namespace
    exported: int = 0
    unchanged: int = 0
    without_report: int = 0
    earlier: int = 0
    omitted: int = 0
    is_demo: bool = False
    films: dict[str, str] = field(default_factory=dict)
    references: dict[str, dict[str, str]] | None = None

    def __post_init__(self) -> None:
        if self.options.references is not None:
            self.references = _read_references(self.options.references)
        if self.options.films is not None:
            self.films = {entry.id: entry.path for entry in _films(self.options)}

    def table(self) -> Iterator[bytes]:
        """Yield the rows of the table, with its header first."""
        yield csv_table.header_row(excel=self.options.excel).encode()
        for line, report in self._reports():
            yield reports.to_csv(report, film_id=line.film_id or "", header=False).encode(errors="backslashreplace")
            self._count(report)

    def page(self) -> Iterator[bytes]:
        """Yield the parts of the page."""
        yield contact_sheet.start().encode()
        for line, report in self._reports():
            try:
                image = self._image(line, report) if self.options.films is not None else None
            except InputError as error:
                self._omit(line, str(error))
                continue
            card = contact_sheet.card(report, film_id=line.film_id, image=image)
            yield card.encode(errors="backslashreplace")
            self._count(report)
        yield contact_sheet.end().encode()

    def write_files(self) -> None:
        for line, report in self._reports():
            try:
                data = self._render(line, report)
            except InputError as error:
                self._omit(line, str(error))
                continue
            path = os.path.join(self.options.output, _file_name(line) + _SUFFIXES[self.options.format])
            try:
                is_new = output.write(path, data, force=self.options.force, allow_same=True)
            except ConfigurationError as error:
                if isinstance(error.__cause__, FileExistsError):
                    error.args = (
                        f"-o: already has another file for line {line.number}; give another folder, or use --force",
                    )
                raise
            self.unchanged += not is_new
            self._count(report)

    def print_summary(self) -> None:
        parts = [f"{self.exported} reports exported"]
        parts += [f"{self.unchanged} of them were there already"] if self.unchanged else []
        parts += [f"{self.earlier} earlier reports of the same films left out"] if self.earlier else []
        parts += [f"{self.without_report} lines without a report"] if self.without_report else []
        parts += [f"{self.omitted} lines left out for the reasons above"] if self.omitted else []
        print(f"pedcxr: {'; '.join(parts)}", file=sys.stderr)
        if self.is_demo:
            print(DEMO_NOTICE, file=sys.stderr)
        print(DISCLAIMER, file=sys.stderr)

    def _reports(self) -> Iterator[tuple[Line, Report]]:
        """Yield each line whose report is the last one of its film and passes today's validation."""
        last: dict[str, int] = {}
        is_empty = True
        for line in reports.read_jsonl(self.options.run_file):
            is_empty = False
            if line.report is not None and line.film_id is not None:
                last[line.film_id] = line.number
        if is_empty:
            raise InputError("the run: contains no line; pass the output file of pedcxr batch")
        for line in reports.read_jsonl(self.options.run_file):
            if line.error is not None:
                self._omit(line, line.error)
            elif line.report is None:
                self.without_report += 1
            elif last.get(line.film_id or "", line.number) != line.number:
                self.earlier += 1
            elif (why := _why_invalid(line.report)) is not None:
                self._omit(line, why)
            else:
                yield line, line.report

    def _render(self, line: Line, report: Report) -> bytes:
        path = ""
        if self.options.copy_identity:
            path = self._path(line)
            if not self.options.skip_film_check:
                self._image(line, report)
        options = self.options
        if self.references is not None:
            if (cells := self.references.get(line.film_id or "")) is None:
                raise InputError("its id is not in --references; add a row for it")
            options = argparse.Namespace(**(vars(options) | cells))
        return output.renderer(options.format, options, path)(report)

    def _path(self, line: Line) -> str:
        path = self.films.get(line.film_id or "")
        if path is None:
            raise InputError("its film is not in --films; give the folder or manifest of the batch")
        return path

    def _image(self, line: Line, report: Report) -> EncodedImage:
        """Return the image of a report, so that no report gets the name or the picture of another patient."""
        image = _prepare(self._path(line), report)
        if image.sha256 != report.image_sha256 and not self.options.skip_film_check:
            raise InputError(
                "its film gives another image than the report had; check --films, or use --skip-film-check"
            )
        return image

    def _count(self, report: Report) -> None:
        self.exported += 1
        self.is_demo = self.is_demo or report.demo

    def _omit(self, line: Line, why: str) -> None:
        self.omitted += 1
        print(f"pedcxr: line {line.number}: {why}; left out", file=sys.stderr)


def _films(options: argparse.Namespace) -> Iterator[Entry]:
    if os.path.isdir(options.films):
        entries = folder.walk(options.films, allow_outside=options.allow_outside)
        return (entry for entry in entries if isinstance(entry, Entry))
    return manifest.read(options.films, allow_outside=options.allow_outside)


def _read_references(path: str) -> dict[str, dict[str, str]]:
    """Return the references of each film by its id. Every row is checked before a report is written."""
    names = [field.name for field in fields(reports.Context)]
    label = "--references"
    references: dict[str, dict[str, str]] = {}
    for line, cells in csv_rows.read(path, label, ("id", *names), required="id"):
        if isinstance(cells, str):
            raise InputError(f"{label}: line {line}: {cells}")
        film_id = cells.pop("id")
        if not film_id:
            raise InputError(f"{label}: line {line}: id is empty")
        if film_id in references:
            raise InputError(f"{label}: line {line}: id is already used on an earlier line; make it unique")
        references[film_id] = {name: value for name, value in cells.items() if value}
        try:
            reports.Context(**references[film_id])
        except ConfigurationError as error:
            raise InputError(f"{label}: line {line}: {error}") from error
    return references


def _make_folder(path: str) -> None:
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        if not os.path.isdir(path):
            raise ConfigurationError("-o: is not a folder; give the name of a folder") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a valid path"
        raise ConfigurationError(f"-o: cannot be created: {reason}; give another folder") from error


def _file_name(line: Line) -> str:
    """Return a file name for a film: its id, with a digest if the id has characters that are unsafe in file names."""
    if line.film_id is None:
        return f"line-{line.number}"
    name = _UNSAFE.sub("_", line.film_id)[:_LONGEST_NAME].lstrip(".")
    digest = sha256(line.film_id.encode(errors="surrogatepass")).hexdigest()[:8]
    return name if name == line.film_id else f"{name}-{digest}"


def _why_invalid(report: Report) -> str | None:
    """Return why a text that an earlier version accepted is no report today, or None."""
    try:
        StreamParser(pieces=[report.text], finish_reason=report.finish_reason).check()
    except ReportError as error:
        return str(error)
    return None


def _prepare(path: str, report: Report) -> EncodedImage:
    """Prepare a film as that of the report was prepared."""
    profile, *rest = report.image_profile.split("+")
    size = next((tuple(map(int, part.split("x"))) for part in rest if re.fullmatch(r"\d+x\d+", part)), None)
    try:
        preparation = Preparation(
            profile=cast("Profile", profile),
            pad_square="square" in rest,
            resize="model" if size is not None else None,
            model_size=cast("tuple[int, int] | None", size),
        )
        return film.prepare(path, preparation)
    except ConfigurationError:
        raise InputError("its image profile is not known to this version; use --skip-film-check") from None
    except InputError:
        raise InputError("its film cannot be read; give the films of the batch") from None
