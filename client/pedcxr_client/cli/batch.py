"""``pedcxr batch``: reports of a manifest or a folder of films, one line per film."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Never

from pedcxr_client.batch import folder, manifest
from pedcxr_client.batch.manifest import Entry, SkippedFile
from pedcxr_client.cli import export
from pedcxr_client.cli import options as shared
from pedcxr_client.errors import ConfigurationError, InputError, RequestError
from pedcxr_client.reports.report import DEMO_NOTICE, DISCLAIMER

if TYPE_CHECKING:
    from tqdm import tqdm

    from pedcxr_client.batch.output_file import OutputFile
    from pedcxr_client.batch.runner import BatchCounts, BatchSettings
    from pedcxr_client.batch.study_selection import StudySelection

_EPILOG = """\
A manifest is a CSV file with a header: path (relative to the manifest's folder), and optionally id, age, sex,
assume_chest, allow. Its separator is a comma, a semicolon or a tab, and its encoding UTF-8 or UTF-16. A folder is
searched recursively; magic bytes decide what is a film, and a film's id is its path in the folder. OUT.jsonl gets one
line per film, synced to disk before the film counts. After Ctrl-C, a crash or an outage, run the same command again:
films with a report are skipped, failed films are retried. A film that is listed twice is sent once.

--one-per-study reads all headers first and reports one film of each StudyInstanceUID: a film that no check of its
header blocks, frontal rather than of unknown projection rather than lateral; among these a film that has a report,
then PA before AP before other views, then the lowest id. OUT.jsonl states the reason for every other film of the study.
A film without a header or a StudyInstanceUID is a study of its own.

exit codes: 0 every film has a report; 2 usage or configuration; 3 films were refused, all others have a report;
4 the server failed or stayed unavailable, or a film was not read for lack of a decoder or of memory; 130 interrupted"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Define the command."""
    summary = "write reports of many films to one file, or resume an earlier run"
    parser = commands.add_parser("batch", help=summary, description=summary, epilog=_EPILOG, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.set_defaults(run=run)
    parser.add_argument("films", metavar="MANIFEST.csv|FOLDER", help="the films")
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("-o", "--output", metavar="OUT.jsonl", help="output file; an existing one is resumed")
    target.add_argument(
        "--dry-run", action="store_true", help="list the films, and other files with the reason; sends nothing"
    )
    parser.add_argument(
        "--concurrency", metavar="N", type=shared.positive(int), default=8,
        help="maximum number of films processed at the same time (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--give-up-after", metavar="S", type=shared.positive(float), default=900.0,
        help="seconds to wait for a server that is unavailable or asks to retry later (default: %(default)g)",
    )  # fmt: skip
    parser.add_argument(
        "--one-per-study", action="store_true", help="report one film of each study, frontal if there is one; see below"
    )
    parser.add_argument(
        "--redo", action="store_true",
        help="report all films with the server's model although OUT.jsonl has reports of another model or revision",
    )  # fmt: skip
    parser.add_argument(
        "--html",
        metavar="OUT.html",
        help="at the end, write a page with each film, its report and its warnings; replaces an earlier page only",
    )
    parser.add_argument("--allow-outside", action="store_true", help="allow films outside the manifest's folder")
    parser.add_argument("--progress", action="store_true", help="show a progress bar even if stderr is not a terminal")
    shared.add_film_options(parser, several=True)
    shared.add_prompt_options(parser)
    shared.add_server_options(parser)


def run(options: argparse.Namespace) -> int:
    """Report every film that has no report yet, and print a summary to stderr at the end of the run."""
    from pedcxr_client.batch.output_file import OutputFile
    from pedcxr_client.batch.runner import BatchCounts

    settings = _settings(options)
    if options.html is not None and (options.dry_run or not options.html.endswith(".html")):
        raise ConfigurationError("--html: give a name that ends in .html, and no --dry-run")
    if options.dry_run:
        return _list(options, settings)
    if options.html is not None:
        export.check_page(options.output, options.films, options.html)
    total, skip_counts = _count_films(options)
    counts, start = BatchCounts(), time.monotonic()
    show_bar = options.progress or sys.stderr.isatty()
    with OutputFile(options.output) as output:
        if output.lock_notice is not None:
            print(f"pedcxr: {output.lock_notice}", file=sys.stderr)
        selection = _selection(options, settings, total, output) if options.one_per_study else None
        bar = _progress_bar(total, " films", visible=show_bar)
        try:
            asyncio.run(_run(options, settings, output, counts, selection, bar))
        finally:
            bar.close()
            _print_summary(counts, skip_counts, time.monotonic() - start)
    if options.html is not None:
        export.write_page(options.output, options.films, options.html, allow_outside=options.allow_outside)
    return RequestError.exit_code if counts.failures else InputError.exit_code if counts.refusals else 0


async def _run(
    options: argparse.Namespace,
    settings: BatchSettings,
    output: OutputFile,
    counts: BatchCounts,
    selection: StudySelection | None,
    bar: tqdm[Never],
) -> None:
    from pedcxr_client.batch.runner import Batch

    def on_film(is_new: bool) -> None:
        if is_new:
            bar.update()
        elif bar.total is not None:
            bar.total -= 1  # so that rate and remaining time cover only the films of this run

    def on_outage(error: RequestError) -> None:
        text = f"the server is unavailable or busy ({type(error).__name__}); waiting up to {settings.patience:g} s"
        bar.write(f"pedcxr: {text}", file=sys.stderr)

    async with shared.connect_async(options, retries=0) as client:
        films = (entry for entry in _entries(options) if isinstance(entry, Entry))
        batch = Batch(client, output, settings, counts, selection, on_film=on_film, on_outage=on_outage)
        await batch.run(films)


def _settings(options: argparse.Namespace) -> BatchSettings:
    from pedcxr_client.batch.runner import BatchSettings

    template = shared.film_request(
        "", options, several=True, max_tokens=options.max_tokens, prompt_profile=shared.prompt_profile(options)
    )
    facts = template.caller_facts()  # raises here, before any film, if an option is wrong for every film
    return BatchSettings(
        age=facts.age,
        sex=facts.sex,
        default_age=facts.default_age,
        default_sex=facts.default_sex,
        views=facts.views,
        assume_chest=template.assume_chest,
        allow=tuple(template.allow),
        max_tokens=template.max_tokens,
        preparation=template.preparation,
        prompt_profile=template.prompt_profile,
        concurrency=options.concurrency,
        patience=options.give_up_after,
        redo=options.redo,
    )


def _selection(
    options: argparse.Namespace, settings: BatchSettings, total: int, output: OutputFile | None
) -> StudySelection:
    from pedcxr_client.batch.study_selection import LARGEST_STUDY, StudySelection

    selection = StudySelection(
        lambda entry: settings.request(entry, b"").caller_facts(),
        reported=output.reported_ids if output is not None else (),
        refused=output.refused_ids if output is not None else (),
    )
    films = (entry for entry in _entries(options) if isinstance(entry, Entry))
    with _progress_bar(total, " headers", visible=options.progress or sys.stderr.isatty()) as bar:
        for _ in selection.read(films, threads=options.concurrency):
            bar.update()
    if selection.largest_study > LARGEST_STUDY:
        print(
            f"pedcxr: --one-per-study: {selection.largest_study} films have the same StudyInstanceUID; check that "
            "de-identification did not write one UID into the films of several examinations",
            file=sys.stderr,
        )
    return selection


def _entries(options: argparse.Namespace) -> Iterator[Entry | SkippedFile]:
    if os.path.isdir(options.films):
        return folder.walk(options.films, allow_outside=options.allow_outside, exclude=options.output)
    return manifest.read(options.films, allow_outside=options.allow_outside)


def _count_films(options: argparse.Namespace) -> tuple[int, Counter[str]]:
    if not os.path.isdir(options.films):
        return manifest.check(options.films, allow_outside=options.allow_outside), Counter()
    skip_counts: Counter[str] = Counter()
    total = 0
    for entry in _entries(options):
        if isinstance(entry, SkippedFile):
            skip_counts[entry.reason] += 1
        else:
            total += 1
    return total, skip_counts


def _list(options: argparse.Namespace, settings: BatchSettings) -> int:
    total, _ = _count_films(options)
    selection = _selection(options, settings, total, None) if options.one_per_study else None
    for entry in _entries(options):
        if isinstance(entry, SkippedFile):
            print(f"left out\t{entry.id}\t{entry.reason}")
        elif selection is not None and (reason := selection.reason_to_skip(entry)) is not None:
            print(f"left out\t{entry.id}\t{reason}")
        else:
            print(f"film\t{entry.id}")
    return 0


def _progress_bar(total: int, unit: str, *, visible: bool) -> tqdm[Never]:
    from tqdm import tqdm

    return tqdm(total=total, unit=unit, dynamic_ncols=True, file=sys.stderr, disable=not visible)


def _print_summary(counts: BatchCounts, skip_counts: Counter[str], seconds: float) -> None:
    reports = counts.new_reports
    pace = f" in {seconds:.0f} s, {reports / seconds:.1f} per second" if reports else ""
    parts = [f"{reports} reports written{pace}"]
    parts += [f"{counts.earlier_reports} already had a report"] if counts.earlier_reports else []
    parts += [f"{counts.refusals} refused"] if counts.refusals else []
    parts += [f"{counts.failures} failed; run the same command again to retry them"] if counts.failures else []
    print(f"pedcxr: {'; '.join(parts)}", file=sys.stderr)
    for text, count in counts.skipped.most_common():
        print(f"pedcxr: skipped: {count} x {text}", file=sys.stderr)
    for reason, count in skip_counts.most_common():
        print(f"pedcxr: left out: {count} x {reason} (--dry-run lists them)", file=sys.stderr)
    if counts.is_demo:
        print(DEMO_NOTICE, file=sys.stderr)
    print(DISCLAIMER, file=sys.stderr)
