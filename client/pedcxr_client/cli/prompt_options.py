"""The options of every command that words a prompt, and what they make."""

from __future__ import annotations

import argparse
import sys

from pedcxr_client.errors import ConfigurationError
from pedcxr_client.request import prompts
from pedcxr_client.request.prompts import LONGEST_INDICATION

_WARNING = (
    "pedcxr: privacy: the indication is sent to the server word for word; put no name, date, number or place in it. "
    "Reports keep its digest only"
)


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose the form of the words."""
    parser.add_argument(
        "--prompt-profile", choices=tuple(prompts.VERSIONS), default="card",
        help="the sentence of the model card, or of its training code with --system-file (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--system-file", metavar="FILE", help="the system text of --prompt-profile training, UTF-8")


def add_indication(parser: argparse.ArgumentParser) -> None:
    """Add the option for free words about one film."""
    parser.add_argument(
        "--indication", metavar="TEXT",
        help=f"why the film was taken, at most {LONGEST_INDICATION} characters; LEAVES THIS MACHINE as it is",
    )  # fmt: skip


def profile(options: argparse.Namespace) -> prompts.Profile:
    """The profile that the options describe.

    Raises:
        ConfigurationError: if they contradict each other, or the file cannot be used.
    """
    if options.prompt_profile == "training":
        if options.system_file is None:
            raise ConfigurationError(
                "--prompt-profile training: needs the system text of the training code: --system-file"
            )
        return prompts.read_training(options.system_file)
    if options.system_file is not None:
        raise ConfigurationError("--system-file: belongs to --prompt-profile training")
    return prompts.CARD


def indication(options: argparse.Namespace) -> str | None:
    """The indication, with its warning on stderr each time there is one."""
    if options.indication is not None:
        print(_WARNING, file=sys.stderr)
    text: str | None = options.indication
    return text
