"""``pedcxr eval``: score a run against reference reports. Reads local files and sends nothing."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from pedcxr_client.cli import output

_SUMMARY = "score the reports of a run against references: findings, text overlap, subgroups, another run"
_EXIT_CODES = "exit codes: 0 done; 2 usage, or a package is missing; 3 a file cannot be used"


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Define the command."""
    parser = commands.add_parser("eval", help=_SUMMARY, description=_SUMMARY, epilog=_EXIT_CODES, allow_abbrev=False)
    parser.set_defaults(run=run)
    parser.add_argument("run_file", metavar="RUN.jsonl", type=Path, help="output file of pedcxr batch")
    parser.add_argument(
        "reference", metavar="REFERENCE.csv", type=Path,
        help='columns "id" and "reference" (report text), or "id" and findings (1, 0, empty); optional: '
        "age, sex, view, patient, study",
    )  # fmt: skip
    parser.add_argument(
        "--against", metavar="OTHER.jsonl", type=Path, help="compare with another run on the same films"
    )
    parser.add_argument(
        "--uncertain", choices=("positive", "negative"), default="positive",
        help="how to count a finding that the text calls possible (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--lexicon", metavar="FILE.toml", type=Path, help="use this lexicon of findings and negation")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.add_argument(
        "--html",
        metavar="OUT.html",
        type=Path,
        help="also write a page with a chart and the ids of disagreements; replaces an earlier page only",
    )


def run(options: argparse.Namespace) -> int:
    """Print the scores as tables or JSON."""
    from pedcxr_client.evaluation import html_page, lexicon, references, runs, scoring, text_tables

    if options.html is not None:
        files = (options.run_file, options.reference, options.against, options.lexicon)
        output.check_page(str(options.html), title=html_page.TITLE, others=map(str, filter(None, files)))
    words = lexicon.load(options.lexicon or lexicon.SHIPPED)
    reports = runs.read(options.run_file)
    reference = references.read(options.reference, tuple(words.findings))
    other = None if options.against is None else runs.read(options.against)
    result = scoring.evaluate(reports, reference, words, uncertain=options.uncertain, against=other)
    if options.html is not None:
        output.write(str(options.html), html_page.html(result).encode(), force=True, option="--html")
    print(json.dumps(result.as_dict()) if options.json else text_tables.text(result))
    return 0
