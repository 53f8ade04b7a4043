"""The command ``pedcxr-serve``. Exit codes: 0 done, 2 usage or configuration, 3 checkpoint or log refused, 4 engine."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from types import FrameType

from pedcxr_serve import cli_records
from pedcxr_serve.checkpoint import download, inspect
from pedcxr_serve.config import load
from pedcxr_serve.errors import EngineError, ServeError
from pedcxr_serve.planner import devices, plan

_DRY_SOCKET = Path("/run/pedcxr/engine.sock")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; its exit code. Errors are told in words, never as a traceback."""
    words = list(sys.argv[1:] if argv is None else argv)
    own, extra = split(words)
    args = _parser().parse_args(own)
    try:
        return _run(args, load.load(None, {}) if args.command in ("keys", "audit") else _settings(args, extra))
    except EngineError as error:
        for line in error.tail:
            print(f"engine | {line}", file=sys.stderr)
        print(f"pedcxr-serve: {error}", file=sys.stderr)
        return error.exit_code
    except ServeError as error:
        print(f"pedcxr-serve: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 0
    except BrokenPipeError:
        sys.stderr.close()
        return 0


def parse(words: Sequence[str]) -> load.ServeConfig:
    """The settings that a command line stands for.

    Raises:
        ConfigError: as `config.load` does.
    """
    own, extra = split(list(words))
    return _settings(_parser().parse_args(own), extra)


def split(words: list[str]) -> tuple[list[str], list[str]]:
    """The words before ``--`` and those behind it."""
    at = words.index("--") if "--" in words else len(words)
    return words[:at], words[at + 1 :]


def _settings(args: argparse.Namespace, extra: list[str]) -> load.ServeConfig:
    flags = {key: value for key, value in vars(args).items() if key not in ("command", "config", "dry_run")}
    return load.load(getattr(args, "config", None), flags | ({"engine.extra_args": extra} if extra else {}))


def _run(args: argparse.Namespace, settings: load.ServeConfig) -> int:
    if args.command in ("keys", "audit"):
        print(cli_records.run(args), end="")
        return 0
    if args.command == "config":
        print(load.reference(), end="")
        return 0
    if args.command == "check":
        return _check(settings)
    if args.command == "plan" or args.dry_run:
        return _plan(settings)
    return _start(settings, demo=args.command == "demo")


def _check(settings: load.ServeConfig) -> int:
    found = inspect.inspect(download.resolve(settings.model, settings.revision))
    print(inspect.table(found))
    return 0 if found.ready else 3


def _plan(settings: load.ServeConfig) -> int:
    folder = download.resolve(settings.model, settings.revision)
    found = inspect.inspect(folder)
    inspect.require_ready(found)
    machine = devices.detect(settings.engine.device)
    print(plan.render(plan.make(found, machine, settings, model_dir=folder, socket=_DRY_SOCKET)))
    return 0


def _start(settings: load.ServeConfig, *, demo: bool) -> int:
    # What follows imports the servers, which `check` and `plan` do without.
    from pedcxr_serve.launcher import start

    signal.signal(signal.SIGTERM, _leave)  # until the event loop has handlers of its own
    start.start(settings, demo=demo)
    return 0


def _leave(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pedcxr-serve",
        description="Serve draft reports of paediatric chest films, each for a professional to review.",
    )
    parser.add_argument("--version", action="version", version=f"pedcxr {version('pedcxr')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in (
        ("start", "start a server; without a model: the demo checkpoint on 127.0.0.1:8000"),
        ("check", "print the state of a checkpoint; reads headers only"),
        ("plan", "print what a machine will hold and the exact vLLM command"),
        ("demo", "start a server on the demo checkpoint, write reports of three films, stop"),
    ):
        command = commands.add_parser(
            name, help=text, description=text + ".", epilog="Words after -- go to vLLM's serve unchanged."
        )
        _add_settings(command)
        command.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    commands.add_parser("config", help="print a commented serve.toml with every setting at its default")
    cli_records.add_commands(commands)
    return parser


def _add_settings(command: argparse.ArgumentParser) -> None:
    command.add_argument("--config", type=Path, metavar="FILE", help="a TOML file; `pedcxr-serve config` prints one")
    for option in load.options():
        if option.kind == "list":
            continue
        names = [option.flag, "--gpu"] if option.key == "engine.device" else [option.flag]
        if option.kind == "bool":
            command.add_argument(
                *names, dest=option.key, default=None, action=argparse.BooleanOptionalAction, help=option.doc
            )
            continue
        default = "" if option.optional or option.default in ("", None) else f" (default {option.default})"
        command.add_argument(
            *names,
            dest=option.key,
            metavar="|".join(option.choices) or option.kind.upper(),
            help=option.doc.replace("%", "%%") + default,
        )
