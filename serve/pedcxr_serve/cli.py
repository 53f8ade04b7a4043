"""The command ``pedcxr-serve``.

Exit codes: 0 success, 1 `promote` says no, 2 usage or configuration, 3 checkpoint, audit log or training data
rejected, 4 engine or training, 130 Ctrl-C before the server runs or during a training, 141 closed output.
"""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
from collections.abc import Callable, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

from pedcxr_serve.checkpoint import adapter, download, inspect
from pedcxr_serve.checkpoint.inspect import Checkpoint
from pedcxr_serve.config import load, secret_file
from pedcxr_serve.config.environment import CONFIG_VARIABLE
from pedcxr_serve.config.settings import SCHEMA, ServeConfig
from pedcxr_serve.errors import AuditError, ConfigError, EngineError, ServeError
from pedcxr_serve.gateway.accounting import audit, usage_report
from pedcxr_serve.gateway.auth import api_keys
from pedcxr_serve.planner import adapters, capacity, devices, measurement, plan

_DRY_RUN_SOCKET = Path("/run/pedcxr/engine.sock")
_TENANTS = Path("tenants.toml")
_CAPACITY = ("rate", "slo_ttft", "slo_e2e", "price", "tokens", "measured")  # options of `plan` that are no settings
_SLO_TTFT, _SLO_E2E = 2.0, 15.0  # seconds
_SERVERS = ("start", "demo", "engine", "gateway")
_PATH_ERRORS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR)
"""A path is wrong or closed to this user: another start does not help, unlike with a full disk."""
_TRAINING = {
    "finetune": "train a model or an adapter on films and reports",
    "merge": "merge an adapter into its base, as a checkpoint that vLLM loads",
}
_REFERENCE_HEADER = (
    "# serve.toml: settings of pedcxr-serve at their defaults. Environment variables such as PEDCXR_GATEWAY_PORT\n"
    "# override them, and command-line options such as --port override both.\n"
)


_THRESHOLDS: dict[str, tuple[type, str]] = {
    "min_films": (int, "films that must have a report on both sides (default 30)"),
    "max_more_failures": (int, "films without a usable report, beyond those of OLD (default 0)"),
    "min_exact": (float, "share of equal reports, for the same weights (default 0.98)"),
    "min_same_findings": (float, "share of films with the same findings, without a reference (default 0.95)"),
    "max_length_ratio": (float, "ratio of the mean lengths in words, in either direction (default 1.5)"),
    "margin": (float, "allowed loss of sensitivity and specificity for any abnormality (default 0.05)"),
    "alpha": (float, "level of the test for a finding that became worse (default 0.05)"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code. Errors are printed without a traceback."""
    options, vllm_options = split(list(sys.argv[1:] if argv is None else argv))
    if options[:1] and options[0] in _SERVERS:
        # Until the event loop installs its own handler, SIGHUP would end the process, and systemd would not start it
        # again. Unlike SIG_IGN, child processes do not inherit a handler.
        signal.signal(signal.SIGHUP, _ignore)
    args = _parser(options[:1]).parse_args(options)
    try:
        code = _run(args, vllm_options)
        sys.stdout.flush()
        return code
    except EngineError as error:
        for line in error.tail:
            print(f"engine | {line}", file=sys.stderr)
        print(f"pedcxr-serve: {error}", file=sys.stderr)
        return error.exit_code
    except ServeError as error:
        print(f"pedcxr-serve: {error}", file=sys.stderr)
        return error.exit_code
    except _Terminated:
        return 0
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # What is still buffered would raise again when Python exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        if error.errno not in _PATH_ERRORS or error.filename is None:
            raise
        print(f"pedcxr-serve: {error.filename}: {error.strerror}", file=sys.stderr)
        return ConfigError.exit_code


def parse(words: Sequence[str]) -> ServeConfig:
    """Return the configuration that a command line selects; see `config.load.load` for the errors."""
    options, vllm_options = split(list(words))
    return _config(_parser().parse_args(options), vllm_options)


def split(words: list[str]) -> tuple[list[str], list[str]]:
    """Return the words before ``--`` and those after it."""
    at = words.index("--") if "--" in words else len(words)
    return words[:at], words[at + 1 :]


def _config(args: argparse.Namespace, vllm_options: list[str]) -> ServeConfig:
    own = {"command", "config", "dry_run", *_CAPACITY}
    overrides = {key: value for key, value in vars(args).items() if key not in own}
    if vllm_options:
        overrides["engine.extra_args"] = vllm_options
    config = getattr(args, "config", None) or os.environ.get(CONFIG_VARIABLE)
    return load.load(Path(config) if config else None, overrides, os.environ)


def _run(args: argparse.Namespace, vllm_options: list[str]) -> int:
    if args.command == "keys":
        print(_keys(args), end="")
        return 0
    if args.command == "audit":
        key = audit.key_from(os.environ)
        return _verify(args.files, key)
    if args.command == "usage":
        token = secret_file.read(args.token_file) if args.token_file else ""
        print(usage_report.report(args.sources, args.since.isoformat() if args.since else "", token), end="")
        return 0
    if args.command == "promote":
        return _promote(args, vllm_options)
    if args.command in _TRAINING:
        from pedcxr_serve.finetune import command

        run: Callable[[argparse.Namespace], int] = getattr(command, args.command)
        return run(args)
    if args.command == "config":
        print(_REFERENCE_HEADER + SCHEMA.toml(), end="")
        return 0
    config = _config(args, vllm_options)
    if args.command == "check-config":
        return _check_config(config)
    if args.command == "check":
        return _check(config)
    if args.command == "plan" or getattr(args, "dry_run", False):
        return _plan(config, args)
    return _serve(config, args.command)


def _keys(args: argparse.Namespace) -> str:
    if args.action == "new":
        key = api_keys.new(args.tenants, args.name, expires=args.expires)
        return f"{key}\nThis key of {args.name} is shown once; {args.tenants} holds its digest only.\n"
    if args.action == "revoke":
        return f"revoked a key of {api_keys.revoke(args.tenants, args.digest)}\n"
    return api_keys.table(args.tenants)


def _verify(files: Sequence[Path], key: bytes) -> int:
    """Check each audit log, also after one that is not intact; return the exit code."""
    code = 0
    for file in files:
        try:
            print(audit.verify(file, key), flush=True)
        except AuditError as error:
            print(f"pedcxr-serve: {error}", file=sys.stderr)
            code = error.exit_code
    return code


def _check_config(config: ServeConfig) -> int:
    from pedcxr_serve.launcher import config_check  # loads the gateway, which the other commands do not need

    results = config_check.check(config, os.environ)
    print(config_check.render(results))
    return 2 if any(result.error for result in results) else 0


def _check(config: ServeConfig) -> int:
    checkpoint = inspect.inspect(download.resolve(config.model, config.revision))
    print(inspect.table(checkpoint))
    loaded = adapters.inspect(config, checkpoint)
    for name, one in loaded.items():
        print("\n" + adapter.table(name, one))
    if not (checkpoint.ready and all(one.ready for one in loaded.values())):
        return 3
    if config.require_promotion or any(entry.require_promotion for entry in config.adapters.values()):
        from pedcxr_serve.launcher import promotion_file

        promotion_file.require(config, checkpoint.folder, loaded)
        print("\npromotion          as required")
    return 0


def _plan(config: ServeConfig, args: argparse.Namespace) -> int:
    folder = download.resolve(config.model, config.revision)
    checkpoint = inspect.inspect(folder)
    inspect.require_ready(checkpoint)
    device = devices.detect(config.engine.device)
    loaded = adapters.inspect(config, checkpoint)
    adapters.require_ready(loaded)
    engine_plan = plan.make(
        checkpoint, device, config, model_dir=folder, socket=_DRY_RUN_SOCKET, served_adapters=loaded
    )
    rows = _capacity_rows(engine_plan, checkpoint, args) if args.command == "plan" else ()
    print(plan.render(engine_plan, *rows))
    return 0


def _capacity_rows(
    engine_plan: plan.EnginePlan, checkpoint: Checkpoint, args: argparse.Namespace
) -> tuple[tuple[str, str], ...]:
    shape = checkpoint.shape
    assert shape is not None  # `plan.make` refuses a checkpoint without
    measured = measurement.read(args.measured) if args.measured else None
    rows = capacity.measured_rows(engine_plan, shape, measured) if measured else ()
    if args.rate is None:
        for name in ("tokens", "price", "slo_ttft", "slo_e2e"):
            if getattr(args, name) is not None:
                raise ConfigError(f"--{name.replace('_', '-')}: needs --rate, the load to plan for")
        return rows
    objectives = capacity.Objectives(args.rate, args.slo_ttft or _SLO_TTFT, args.slo_e2e or _SLO_E2E, args.price)
    if measured is None:
        part = capacity.replica(engine_plan, shape, (args.tokens or engine_plan.new_tokens,))
        sized = capacity.size(engine_plan, shape, part, objectives)
        return (*rows, *capacity.rows(engine_plan, part, sized, objectives))
    part = fitted = capacity.measured_replica(engine_plan, shape, measured)
    if args.tokens:
        part = capacity.with_tokens(engine_plan, shape, fitted, args.tokens)
    limit = capacity.measured_limit(part, fitted, measured)
    sized = capacity.size(engine_plan, shape, part, objectives, limit)
    return (*rows, *capacity.rows(engine_plan, part, sized, objectives, measured, fitted))


def _serve(config: ServeConfig, command: str) -> int:
    # Imported here because they load the HTTP servers, which the other commands do not need.
    from pedcxr_serve.launcher import engine, start

    signal.signal(signal.SIGTERM, _terminate)  # until the event loop installs its own handlers
    if command == "engine":
        engine.serve(config)
    elif command == "gateway":
        start.gateway(config)
    elif command == "demo":
        from pedcxr_serve.demo import walkthrough

        start.start(config, work=walkthrough.run)
    else:
        start.start(config)
    return 0


def _promote(args: argparse.Namespace, batch_options: list[str]) -> int:
    from pedcxr_serve.launcher import promote, promotion, promotion_file

    signal.signal(signal.SIGTERM, _terminate)
    settings = load.load(args.config, {})
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out: {args.out}: {error.strerror}") from error
    old = promote.resolve("old", args.against, settings, args.base, args.out)
    new = promote.resolve("new", args.new, old.settings or settings, args.base, args.out)
    thresholds = promotion.Thresholds(
        **{name: value for name in _THRESHOLDS if (value := getattr(args, name)) is not None}
    )
    decision = promote.run(new, old, args.films, args.reference, thresholds, batch_options)
    promotion_file.write(args.out / "promotion.json", decision.as_dict(), new=new.source, old=old.source)
    print(promotion.table(decision))
    return 0 if decision.promote else 1


class _Terminated(BaseException):
    """SIGTERM before the event loop of a server runs."""


def _ignore(_number: int, _frame: FrameType | None) -> None:
    """Do nothing: the files are read after this, or watched."""


def _terminate(_number: int, _frame: FrameType | None) -> None:
    raise _Terminated


def _parser(selected: Sequence[str] = ()) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pedcxr-serve",
        description="Serve draft reports of paediatric chest films, each for a professional to review.",
    )
    parser.add_argument("--version", action="version", version=f"pedcxr {version('pedcxr')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in (
        ("start", "start a server; without a model: the demo checkpoint on 127.0.0.1:8000"),
        ("check", "print the state of a checkpoint; reads headers only"),
        ("check-config", "check settings and the files that they name, and start nothing"),
        ("plan", "print the memory plan of a device and the exact vLLM command"),
        ("demo", "start a server with the demo checkpoint, report three films, stop"),
        ("engine", "run the engine alone, in --socket-dir or at --listen with --key-file, for gateways"),
        ("gateway", "run a gateway in front of the engine at --engine, which another process runs"),
    ):
        command = commands.add_parser(
            name, help=text, description=text + ".", epilog="Words after -- are passed to `vllm serve` unchanged."
        )
        _add_settings(command)
        if name == "plan":
            _add_capacity(command)
        if name not in ("check", "check-config", "gateway"):
            command.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    commands.add_parser("config", help="print a commented serve.toml with every setting at its default")
    _add_promote(commands)
    for name, text in _TRAINING.items():
        command = commands.add_parser(name, help=text, description=text + ".")
        if name in selected:  # the options of the client load its packages, which the other commands do not need
            from pedcxr_serve.finetune import command as training

            getattr(training, f"add_{name}_options")(command)
    _add_keys(commands)
    _add_audit(commands)
    _add_usage(commands)
    return parser


def _add_settings(command: argparse.ArgumentParser) -> None:
    command.add_argument("--config", type=Path, metavar="FILE", help="a TOML file; `pedcxr-serve config` prints one")
    for field in SCHEMA.walk(by_name=False):
        if field.children or list in field.types:
            continue
        names = [load.option_name(field.path)] + (["--gpu"] if field.path == "engine.device" else [])
        text = field.description.replace("%", "%%")
        if bool in field.types:
            action = argparse.BooleanOptionalAction
            command.add_argument(*names, dest=field.path, default=None, action=action, help=text)
            continue
        default = "" if field.default in ("", None) else f" (default {field.default})"
        kind = "NUMBER" if float in field.types else "INTEGER" if int in field.types else "TEXT"
        metavar = "|".join(field.choices) or kind
        command.add_argument(*names, dest=field.path, metavar=metavar, help=text + default)


def _add_capacity(command: argparse.ArgumentParser) -> None:
    load_group = command.add_argument_group("capacity", "How many replicas a load needs; docs/operations.md explains.")
    for name, metavar, text in (
        ("--rate", "R", "reports per second; adds the number of replicas, what limits them, and their latency"),
        ("--slo-ttft", "SECONDS", f"limit of the 95th percentile of the time to first token (default {_SLO_TTFT:g})"),
        ("--slo-e2e", "SECONDS", f"limit of the 95th percentile of the time of a report (default {_SLO_E2E:g})"),
        ("--price", "PRICE", "of one replica per hour, in any currency; adds the price of 1,000 reports"),
    ):
        load_group.add_argument(name, type=_positive, metavar=metavar, help=text)
    load_group.add_argument(
        "--tokens", type=_tokens, metavar="N", help="tokens of a report (default: as measured or engine.max_new_tokens)"
    )
    load_group.add_argument(
        "--from",
        dest="measured",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="results of `pedcxr bench` or `vllm bench serve` on this device, instead of the roofline's times",
    )


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError("must be a positive number")
    return value


def _tokens(text: str) -> int:
    value = int(text)
    if not 0 < value <= 131_072:
        raise argparse.ArgumentTypeError("must be an integer between 1 and 131,072")
    return value


def _date(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError("must be a date such as 2027-06-30") from None


def _add_keys(commands: Any) -> None:
    keys = commands.add_parser("keys", help="create, list and revoke the API keys in tenants.toml")
    actions = keys.add_subparsers(dest="action", required=True, metavar="ACTION")
    new = actions.add_parser("new", help="create a key; it is shown once and stored as a digest")
    new.add_argument("name", help="name of the tenant; a new tenant is created")
    new.add_argument("--expires", type=_date, metavar="YYYY-MM-DD", help="last valid day, in UTC")
    table = actions.add_parser("list", help="list tenants and the first digits of their keys' digests")
    revoke = actions.add_parser("revoke", help="remove a key; takes effect on a running server within 1 s")
    revoke.add_argument("digest", help="first digits of the key's digest, as `keys list` prints them")
    for action in (new, table, revoke):
        action.add_argument(
            "--tenants", type=Path, default=_TENANTS, metavar="FILE", help="the file (default tenants.toml)"
        )


def _add_promote(commands: Any) -> None:
    text = "report the same films with a new and an old model, adapter or configuration, and decide by thresholds"
    command = commands.add_parser(
        "promote", help=text, description=text + ".",
        epilog="Words after -- are passed to `pedcxr batch`. Exit codes: 0 yes, 1 no, 2 usage, 3 and 4 as `start`.",
    )  # fmt: skip
    sources = "a model, the folder of an adapter, serve.toml, or RUN.jsonl of `pedcxr batch`"
    command.add_argument("new", metavar="NEW", help=sources)
    command.add_argument("--against", required=True, metavar="OLD", help=sources)
    command.add_argument("--films", required=True, type=Path, metavar="FOLDER|MANIFEST.csv", help="the films")
    command.add_argument(
        "--reference", type=Path, metavar="FILE.csv", help="reference standard of the films, as for `pedcxr eval`"
    )
    command.add_argument("--base", metavar="MODEL", help="model of an adapter; default: that of OLD or --config")
    command.add_argument("--config", type=Path, metavar="FILE", help="engine settings for models and adapters")
    command.add_argument(
        "--out", type=Path, default=Path("promotion"), metavar="FOLDER",
        help="folder for promotion.json and the reports (default promotion)",
    )  # fmt: skip
    for name, (kind, text) in _THRESHOLDS.items():
        metavar = "INTEGER" if kind is int else "NUMBER"
        command.add_argument("--" + name.replace("_", "-"), type=kind, metavar=metavar, help=text)


def _add_audit(commands: Any) -> None:
    command = commands.add_parser("audit", help="check an audit log")
    actions = command.add_subparsers(dest="action", required=True, metavar="ACTION")
    verify = actions.add_parser(
        "verify", help=f"report changed or removed lines; {audit.KEY_VARIABLE} holds the key of the log"
    )
    verify.add_argument("files", type=Path, nargs="+", metavar="FILE", help="the log of each server")


def _add_usage(commands: Any) -> None:
    command = commands.add_parser("usage", help="add up the usage of several servers, by day and tenant")
    text = "a usage database, or the URL of an admin port, such as http://127.0.0.1:8001"
    command.add_argument("sources", nargs="+", metavar="SOURCE", help=text)
    command.add_argument("--since", type=_date, metavar="YYYY-MM-DD", help="first day, UTC")
    text = "file with the token of the admin ports (gateway.admin_token_file)"
    command.add_argument("--token-file", type=Path, metavar="FILE", help=text)
