"""``pedcxr batch``: a manifest or a folder of films, a line each."""

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
from pedcxr_client.batch.manifest import Entry, LeftOut
from pedcxr_client.cli import options as shared
from pedcxr_client.errors import InputError, RequestError
from pedcxr_client.reports.report import DEMO_NOTICE, DISCLAIMER

if TYPE_CHECKING:
    from tqdm import tqdm

    from pedcxr_client.batch.output_file import Journal
    from pedcxr_client.batch.runner import Plan, Tally

_EPILOG = """\
A manifest is CSV with a header: path (from the manifest's folder), and if you like id, age, sex, assume_chest, allow.
A folder is walked to its leaves; magic bytes decide what is a film, and a film's id is its path in the folder.
OUT.jsonl gets a line a film, on the disk before it counts. Run the same command again after Ctrl-C, a crash or an
outage: films that have a report are not sent again, films that failed are.

exit codes: 0 every film has a report; 2 usage or configuration; 3 films were refused, the others have a report;
4 the server failed or stayed away; 130 interrupted"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command."""
    says = "write reports of many films into one file, and go on where the last run stopped"
    parser = commands.add_parser("batch", help=says, description=says, epilog=_EPILOG, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.set_defaults(run=run)
    parser.add_argument("films", metavar="MANIFEST.csv|FOLDER", help="which films")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("-o", "--output", metavar="OUT.jsonl", help="made, or gone on with")
    where.add_argument("--dry-run", action="store_true", help="list the films, and what is none and why; sends nothing")
    parser.add_argument(
        "--concurrency", metavar="N", type=shared.above_zero(int), default=8,
        help="films under way at once (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--give-up-after", metavar="S", type=shared.above_zero(float), default=900.0,
        help="seconds to wait for a server that went away or asks to come back later (default: %(default)g)",
    )  # fmt: skip
    parser.add_argument("--allow-outside", action="store_true", help="take films from outside the manifest's folder")
    parser.add_argument("--progress", action="store_true", help="show the bar even where stderr is no terminal")
    shared.add_film_options(parser)
    shared.add_prompt_options(parser)
    shared.add_server_options(parser)


def run(options: argparse.Namespace) -> int:
    """Report what has no report yet; a summary on stderr at the end, however it comes."""
    from pedcxr_client.batch.output_file import Journal
    from pedcxr_client.batch.runner import Tally

    plan = _plan(options)
    if options.dry_run:
        return _list(options)
    total, left_out = _survey(options)
    tally, began = Tally(), time.monotonic()
    with Journal(options.output) as journal, _bar(total, shown=options.progress or sys.stderr.isatty()) as bar:
        try:
            asyncio.run(_run(options, plan, journal, tally, bar))
        finally:
            bar.close()
            _summarize(tally, left_out, time.monotonic() - began)
    return RequestError.exit_code if tally.failed else InputError.exit_code if tally.refused else 0


async def _run(options: argparse.Namespace, plan: Plan, journal: Journal, tally: Tally, bar: tqdm[Never]) -> None:
    from pedcxr_client.batch.runner import Batch

    def settled(had_work: bool) -> None:
        if had_work:
            bar.update()
        elif bar.total is not None:
            bar.total -= 1  # so that rate and time left are those of the films that there is something to do about

    def away(error: RequestError) -> None:
        says = f"pedcxr: the server is away or busy ({type(error).__name__}); waiting up to {plan.patience:g} s for it"
        bar.write(says, file=sys.stderr)

    async with shared.connect_async(options, retries=0) as client:
        films = (entry for entry in _entries(options) if isinstance(entry, Entry))
        await Batch(client, journal, plan, tally, settled=settled, away=away).run(films)


def _plan(options: argparse.Namespace) -> Plan:
    from pedcxr_client.batch.runner import Plan

    one = shared.film_request("", options, max_tokens=options.max_tokens, prompt_profile=shared.prompt_profile(options))
    asked = one.caller_facts()  # what is wrong for every film alike is said at once
    return Plan(
        age=asked.age,
        sex=asked.sex,
        assume_chest=one.assume_chest,
        allow=tuple(one.allow),
        max_tokens=one.max_tokens,
        preparation=one.preparation,
        prompt_profile=one.prompt_profile,
        concurrency=options.concurrency,
        patience=options.give_up_after,
    )


def _entries(options: argparse.Namespace) -> Iterator[Entry | LeftOut]:
    if os.path.isdir(options.films):
        return folder.walk(options.films, allow_outside=options.allow_outside, leave=options.output)
    return manifest.read(options.films, allow_outside=options.allow_outside)


def _survey(options: argparse.Namespace) -> tuple[int, Counter[str]]:
    """How many films there are, and how many files of a folder are none, by reason."""
    if not os.path.isdir(options.films):
        return manifest.check(options.films, allow_outside=options.allow_outside), Counter()
    left_out: Counter[str] = Counter()
    total = 0
    for entry in _entries(options):
        if isinstance(entry, LeftOut):
            left_out[entry.reason] += 1
        else:
            total += 1
    return total, left_out


def _list(options: argparse.Namespace) -> int:
    if not os.path.isdir(options.films):
        manifest.check(options.films, allow_outside=options.allow_outside)
    for entry in _entries(options):
        print(f"left out\t{entry.id}\t{entry.reason}" if isinstance(entry, LeftOut) else f"film\t{entry.id}")
    return 0


def _bar(total: int, *, shown: bool) -> tqdm[Never]:
    from tqdm import tqdm

    return tqdm(total=total, unit=" films", dynamic_ncols=True, file=sys.stderr, disable=not shown)


def _summarize(tally: Tally, left_out: Counter[str], seconds: float) -> None:
    pace = f" in {seconds:.0f} s, {tally.written / seconds:.1f} a second" if tally.written else ""
    counts = [f"{tally.written} reports written{pace}"]
    counts += [f"{tally.before} had one before"] if tally.before else []
    counts += [f"{tally.refused} refused"] if tally.refused else []
    counts += [f"{tally.failed} failed; run it again to try those"] if tally.failed else []
    print(f"pedcxr: {'; '.join(counts)}", file=sys.stderr)
    for reason, count in left_out.most_common():
        print(f"pedcxr: left out: {count} x {reason} (--dry-run lists them)", file=sys.stderr)
    if tally.demo:
        print(DEMO_NOTICE, file=sys.stderr)
    print(DISCLAIMER, file=sys.stderr)
