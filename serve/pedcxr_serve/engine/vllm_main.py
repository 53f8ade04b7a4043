"""The child process: vLLM's own ``serve``, on either of its distributions.

``vllm serve`` itself fails on the CPU one, since its ``cli/main.py`` asks for the version of a distribution named
``vllm`` (vLLM 0.32). The steps below are those of that file. Imports stay inside `main`: vLLM spawns processes that
import this module again.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1


def main(argv: Sequence[str]) -> None:
    """Run ``vllm <argv>`` with our plugin, where ``argv[0]`` is ``"serve"``, until the server has stopped."""
    die_with_parent()
    # Not the first place that loads the plugin, but the one where its failure still is an ordinary traceback.
    from pedcxr_serve.vllm_plugin import register

    register()
    stock(argv)


def stock(argv: Sequence[str]) -> None:
    """Run ``vllm <argv>`` as it is."""
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    from vllm.logger import configure_logging_from_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    cli_env_setup()
    parser = FlexibleArgumentParser(prog="vllm")
    command = ServeSubcommand()
    command.subparser_init(parser.add_subparsers(dest="subparser", required=True))
    args = parser.parse_args(list(argv))
    configure_logging_from_args(args)
    command.validate(args)
    command.cmd(args)


def die_with_parent() -> None:
    """Ask Linux for SIGTERM when the launcher dies, even by ``kill -9``: an engine nobody reaches holds a GPU."""
    launcher = os.environ.get("PEDCXR_LAUNCHER_PID")
    if launcher is None or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if str(os.getppid()) != launcher:  # it died before the line above
        os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main(sys.argv[1:])
