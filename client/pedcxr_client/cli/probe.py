"""``pedcxr probe``: test whether the reports of a server depend on the film."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from pedcxr_client.cli import options as shared
from pedcxr_client.errors import ReportError
from pedcxr_client.request import payload

if TYPE_CHECKING:
    from pedcxr_client.evaluation.image_probe import Probe, ProbeResult, Tally
    from pedcxr_client.films.film import EncodedImage
    from pedcxr_client.request.film_request import FilmRequest

IGNORED = 5
_SUMMARY = "report each film unchanged, again, black, mirrored and with the next film's pixels; compare the texts"
_EXIT_CODES = """\
Give several films, some of them with findings.

exit codes: 0 the reports depend on the film; 2 usage or configuration; 3 a film was refused; 4 the server failed;
5 a probe changed no report: the model ignores the film"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Define the command."""
    parser = commands.add_parser("probe", help=_SUMMARY, description=_SUMMARY, epilog=_EXIT_CODES, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.set_defaults(run=run)
    parser.add_argument("files", metavar="FILE", nargs="+", help="films: DICOM, PNG, JPEG or other image files")
    shared.add_film_options(parser, several=True)
    shared.add_prompt_options(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    shared.add_server_options(parser)


def run(options: argparse.Namespace) -> int:
    """Print one row per film, and the verdict."""
    from pedcxr_client.evaluation import image_probe, lexicon

    profile = shared.prompt_profile(options)
    several, max_tokens = len(options.files) > 1, options.max_tokens
    requests = [
        shared.film_request(file, options, several=several, max_tokens=max_tokens, prompt_profile=profile)
        for file in options.files
    ]
    with shared.connect(options) as client:
        asks_size = any(request.preparation.asks_size for request in requests)
        size = client.model().image_size if asks_size else None
        images = [_prepare(file, request, size) for file, request in zip(options.files, requests, strict=True)]

        def request_text(index: int, image: EncodedImage) -> str:
            try:
                return client._report(replace(requests[index], film=image)).text
            except ReportError as error:  # an invalid text is expected for a black film, and is compared as well
                return error.text

        films = list(image_probe.run(images, request_text, lexicon.load()))
    tallies = image_probe.tallies(films)
    failings = image_probe.failings(tallies)
    if options.json:
        _print_json(options.files, films, tallies, failings)
    else:
        _print_table(options.files, films, tallies, failings)
    return IGNORED if failings else 0


def _prepare(file: str, request: FilmRequest, size: tuple[int, int] | None) -> EncodedImage:
    with shared.film_named(file):
        return payload.prepare(request, size).image


def _print_json(files: list[str], films: list[ProbeResult], tallies: dict[Probe, Tally], failings: list[str]) -> None:
    rows = [{"file": file, **asdict(film)} for file, film in zip(files, films, strict=True)]
    probes = {probe: asdict(tally) for probe, tally in tallies.items()}
    print(json.dumps({"films": rows, "probes": probes, "failings": failings}))


def _print_table(files: list[str], films: list[ProbeResult], tallies: dict[Probe, Tally], failings: list[str]) -> None:
    from pedcxr_client.evaluation.image_probe import PROBES
    from pedcxr_client.evaluation.text_tables import grid

    words = {True: "changed", False: "same", None: "-"}
    names = [file.encode(errors="backslashreplace").decode() for file in files]
    rows = [[file, *(words[film.changed[p]] for p in PROBES)] for file, film in zip(names, films, strict=True)]
    total = ["changed", *(f"{tallies[p].changed} of {tallies[p].asked}" for p in PROBES)]
    again = ["again, same films", *(str(tallies[p].again) for p in PROBES)]
    print(grid([["film", *PROBES], *rows, total, *([again] if tallies["again"].changed else [])]))
    if tallies["again"].changed:
        print("the same request gives different texts: the reports are not reproducible")
    for line in failings or ["the reports depend on the film"]:
        print(line)
