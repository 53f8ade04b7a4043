"""``pedcxr eval``: measure a run against its references. Reads files only; sends no requests."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from pedcxr_client.errors import ConfigurationError

if TYPE_CHECKING:
    from pedcxr_client.evaluation.references import Reference
    from pedcxr_client.evaluation.runs import Run

_SAYS = "how well the reports of a run agree with references: findings, words, groups, another run"
_CODES = "exit codes: 0 done; 2 usage, or a package is missing; 3 a file cannot be used"


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command."""
    parser = commands.add_parser("eval", help=_SAYS, description=_SAYS, epilog=_CODES, allow_abbrev=False)
    parser.set_defaults(run=run)
    parser.add_argument("run_file", metavar="RUN.jsonl", type=Path, help="what pedcxr batch wrote")
    parser.add_argument(
        "reference", metavar="REFERENCE.csv", type=Path,
        help='columns "id" and "reference" (texts), or "id" and findings (1, 0, empty); also age, sex, view',
    )  # fmt: skip
    parser.add_argument("--against", metavar="OTHER.jsonl", type=Path, help="compare with another run of the films")
    parser.add_argument(
        "--uncertain", choices=("positive", "negative"), default="positive",
        help='what a finding counts as that a text calls possible (default: %(default)s)',
    )  # fmt: skip
    parser.add_argument("--lexicon", metavar="FILE.toml", type=Path, help="another lexicon of findings and negation")
    parser.add_argument(
        "--with", dest="others", choices=("radgraph", "radeval"), action="append", default=[],
        help="another project's scores too, where it is installed; it downloads weights",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.add_argument("--html", metavar="OUT.html", type=Path, help="write a page with a chart too")


def run(options: argparse.Namespace) -> int:
    """Print the tables, or JSON."""
    from pedcxr_client.evaluation import html_page, lexicon, references, runs, scoring, text_tables

    words = lexicon.load(options.lexicon or lexicon.SHIPPED)
    this = runs.read(options.run_file)
    right = references.read(options.reference, tuple(words.findings))
    other = None if options.against is None else runs.read(options.against)
    result = scoring.evaluate(this, right, words, uncertain=options.uncertain, against=other)
    scores = _others(options.others, this, right)
    if options.html is not None:
        _write(options.html, html_page.html(result))
    if options.json:
        print(json.dumps(result.as_dict() | {"others": scores}))
        return 0
    print(text_tables.text(result))
    for name, found in scores.items():
        print(f"\n{name}: " + ", ".join(f"{key} {value:.3f}" for key, value in found.items()))
    return 0


def _others(names: list[str], this: Run, right: Reference) -> dict[str, dict[str, float]]:
    from pedcxr_client.evaluation import text_overlap

    if names and not right.has_text:
        raise ConfigurationError("--with: compares texts; the reference needs the column reference")
    pairs = [
        (this.reports[name].text, row.text)
        for name, row in right.rows.items()
        if name in this.reports and row.text is not None
    ]
    return {
        name: text_overlap.package_scores(name, [one for one, _ in pairs], [two for _, two in pairs]) for name in names
    }


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"--html {path}: {error.strerror or 'cannot be written'}") from error
