"""``pedcxr inspect``: show films, their checks, and what would be sent."""

from __future__ import annotations

import argparse
import json

from pedcxr_client.cli import options as shared
from pedcxr_client.errors import ConfigurationError, InputError


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Define the command."""
    summary = "show films, whether they may be sent, and what would be sent; sends nothing"
    codes = "exit codes: 0 every film could be sent; 2 usage; 3 a film is blocked or cannot be read"
    parser = commands.add_parser("inspect", help=summary, description=summary, epilog=codes, allow_abbrev=False)
    parser.set_defaults(run=run)
    parser.add_argument("files", metavar="FILE", nargs="+", help="films: DICOM, PNG, JPEG or other image files")
    shared.add_film_options(parser, several=True)
    shared.add_prompt_options(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object per film")
    parser.add_argument("--preview", metavar="OUT.png", help="save the image that would be sent, for one film")


def run(options: argparse.Namespace) -> int:
    """Print details of one film, a table of several, or JSON."""
    from pedcxr_client.checks import inspection

    if options.preview is not None and len(options.files) > 1:
        raise ConfigurationError("--preview: shows one film; give one FILE")
    profile = shared.prompt_profile(options)
    films = []
    for file in options.files:
        request = shared.film_request(file, options, several=len(options.files) > 1, prompt_profile=profile)
        films.append(inspection.inspect_request(request))
        if options.json:
            print(json.dumps(films[-1].as_dict()), flush=True)
    if not options.json:
        print(inspection.sheet(films[0]) if len(films) == 1 else inspection.table(films))
    if options.preview is not None:
        inspection.save(films[0], options.preview)
    return InputError.exit_code if any(film.blocked for film in films) else 0
