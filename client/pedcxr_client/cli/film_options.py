"""The options of every command that takes a film, and what they make."""

from __future__ import annotations

import argparse

from pedcxr_client.checks import rules
from pedcxr_client.films.geometry import Preparation
from pedcxr_client.request.film_request import FilmRequest
from pedcxr_client.request.prompts import CARD, Profile


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what a film is and what is done to it."""
    parser.add_argument(
        "--age", metavar="AGE", help="at the time of the film: 10d, 3w, 18m, 5y (default: the header's)"
    )
    parser.add_argument("--sex", choices=("M", "F"), help="default: the header's")
    parser.add_argument("--assume-chest", action="store_true", help="it shows a chest, should its header not say")
    parser.add_argument(
        "--allow", metavar="NAME", action="append", default=[],
        help=f"a check that must not block, recorded in the report: {', '.join(rules.NAMES)}",
    )  # fmt: skip
    parser.add_argument("--profile", choices=("display", "ped-train"), default="display", help="default: %(default)s")
    parser.add_argument("--pad-square", action="store_true", help="add black until the film is square")
    parser.add_argument("--resize", choices=("model",), help="stretch it to the model's input: a body 6 times smaller")


def request(
    file: str,
    options: argparse.Namespace,
    *,
    max_tokens: int = 500,
    prompt_profile: Profile = CARD,
    indication: str | None = None,
) -> FilmRequest:
    """What the options ask for of a film."""
    return FilmRequest(
        file,
        age=options.age,
        sex=options.sex,
        max_tokens=max_tokens,
        assume_chest=options.assume_chest,
        allow=tuple(options.allow),
        preparation=Preparation(profile=options.profile, pad_square=options.pad_square, resize=options.resize),
        prompt_profile=prompt_profile,
        indication=indication,
    )
