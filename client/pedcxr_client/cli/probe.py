"""``pedcxr probe``: does the model behind a server look at the film?"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from pedcxr_client.cli import film_options, prompt_options
from pedcxr_client.cli import options as _server
from pedcxr_client.errors import ReportError
from pedcxr_client.request import payload

if TYPE_CHECKING:
    from pedcxr_client.evaluation.image_probe import Probe, Probed, Tally
    from pedcxr_client.films.film import EncodedImage

IGNORED = 5
_SAYS = "ask about each film as it is, again, black, mirrored and with the next film's pixels: the reports must change"
_CODES = """\
exit codes: 0 the reports follow the film; 2 usage or configuration; 3 a film was refused; 4 the server failed;
5 a probe changed no report: the model does not look at the film. Give several films, some with findings"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command."""
    parser = commands.add_parser("probe", help=_SAYS, description=_SAYS, epilog=_CODES, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.set_defaults(run=run)
    parser.add_argument("files", metavar="FILE", nargs="+", help="films: DICOM, PNG, JPEG or other image files")
    film_options.add(parser)
    prompt_options.add(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    _server.add(parser)


def run(options: argparse.Namespace) -> int:
    """Print a line for each film, and what it comes to."""
    from pedcxr_client.evaluation import image_probe

    profile = prompt_options.profile(options)
    requests = [
        film_options.request(file, options, max_tokens=options.max_tokens, prompt_profile=profile)
        for file in options.files
    ]
    with _server.connect(options) as client:
        asks_size = any(request.preparation.asks_size for request in requests)
        size = client.model().image_size if asks_size else None
        images = [payload.prepare(request, size).image for request in requests]

        def ask(at: int, image: EncodedImage) -> str:
            try:
                return client._report(replace(requests[at], film=image)).text
            except ReportError as error:  # a black film may well be one that the model has nothing to say of
                return error.text

        films = list(image_probe.run(images, ask))
    found = image_probe.tallies(films)
    failings = image_probe.failings(found)
    if options.json:
        _print_json(options.files, films, found, failings)
    else:
        _print_table(options.files, films, found, failings)
    return IGNORED if failings else 0


def _print_json(files: list[str], films: list[Probed], found: dict[Probe, Tally], failings: list[str]) -> None:
    listed = [{"file": file, **asdict(film)} for file, film in zip(files, films, strict=True)]
    print(json.dumps({"films": listed, "probes": {p: asdict(one) for p, one in found.items()}, "failings": failings}))


def _print_table(files: list[str], films: list[Probed], found: dict[Probe, Tally], failings: list[str]) -> None:
    from pedcxr_client.evaluation.image_probe import PROBES
    from pedcxr_client.evaluation.text_tables import grid

    words = {True: "changed", False: "same", None: "-"}
    shown = [file.encode(errors="backslashreplace").decode() for file in files]
    rows = [[file, *(words[film.changed[p]] for p in PROBES)] for file, film in zip(shown, films, strict=True)]
    total = ["changed", *(f"{found[p].changed} of {found[p].asked}" for p in PROBES)]
    print(grid([["film", *PROBES], *rows, total]))
    if found["again"].changed:
        print("asked again, the model writes something else: its reports are not repeatable")
    for line in failings or ["the reports follow the film"]:
        print(line)
