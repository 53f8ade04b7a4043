"""Options that several commands share, and what they describe: films, prompts, the server and its client, metrics."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

from pedcxr_client.checks import rules
from pedcxr_client.client import AsyncClient, Client
from pedcxr_client.errors import ConfigurationError, InputError, RateLimited, Unavailable
from pedcxr_client.films import files
from pedcxr_client.films.geometry import Preparation
from pedcxr_client.metrics.hooks import Hook, HookChain, NullHook
from pedcxr_client.request import prompts
from pedcxr_client.request.film_request import FilmRequest
from pedcxr_client.request.prompts import LONGEST_INDICATION
from pedcxr_client.request.settings import DEFAULT_URL, Timeouts

if TYPE_CHECKING:
    from pedcxr_client.errors import RequestError
    from pedcxr_client.metrics.export import Pushgateway

_KEY_VARIABLE = "PEDCXR_API_KEY"
_METRICS_LINGER_S = 20.0  # longer than Prometheus' usual scrape interval of 15 s
_PRIVACY_WARNING = (
    "pedcxr: privacy: the indication is sent to the server verbatim; it must contain no name, date, number or place. "
    "Reports store only its digest"
)


def add_film_options(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """Add the options that describe a film and its preparation. ``several``: the command takes more than one film."""
    several_films = "; with several films, only where the header states none" if several else ""
    parser.add_argument(
        "--age",
        metavar="AGE",
        help=f"age at the time of the film: 10d, 3w, 18m, 5y (default: from the header{several_films})",
    )
    parser.add_argument(
        "--sex", choices=("M", "F"), help=f"sex of the patient (default: from the header{several_films})"
    )
    if several:
        parser.add_argument(
            "--age-overrides", action="store_true",
            help="use --age and --sex for every film; a film whose header contradicts them is blocked",
        )  # fmt: skip
    parser.add_argument(
        "--views", choices=("any", "frontal"), default="any",
        help="frontal: block laterals and films of unknown view instead of warning (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--assume-chest", action="store_true", help="treat the film as a chest film if its header names no body part"
    )
    parser.add_argument(
        "--allow", metavar="NAME", action="append", default=[],
        help=f"do not let this check block; recorded in the report: {', '.join(rules.NAMES)}",
    )  # fmt: skip
    parser.add_argument(
        "--profile", choices=("display", "ped-train"), default="display",
        help="how grey values are prepared (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--pad-square", action="store_true", help="pad the film with black to a square")
    parser.add_argument(
        "--resize",
        choices=("model",),
        help="stretch to the model's input size; the request body is about 6 times smaller",
    )


@contextmanager
def film_named(file: str) -> Iterator[None]:
    """Name the file in the InputErrors of the block. Messages of the library contain no path: services log them."""
    try:
        yield
    except InputError as error:
        if str(error).startswith("the film: "):
            error.args = (f"{files.printable(file)}: {str(error).removeprefix('the film: ')}",)
        raise


def film_request(
    file: str,
    options: argparse.Namespace,
    *,
    several: bool = False,
    max_tokens: int = 500,
    prompt_profile: prompts.Profile = prompts.CARD,
    indication: str | None = None,
) -> FilmRequest:
    """Return the request for one film that the options describe. ``several``: they describe other films as well."""
    is_default = several and not options.age_overrides
    return FilmRequest(
        file,
        age=None if is_default else options.age,
        sex=None if is_default else options.sex,
        default_age=options.age if is_default else None,
        default_sex=options.sex if is_default else None,
        views=options.views,
        max_tokens=max_tokens,
        assume_chest=options.assume_chest,
        allow=tuple(options.allow),
        preparation=Preparation(profile=options.profile, pad_square=options.pad_square, resize=options.resize),
        prompt_profile=prompt_profile,
        indication=indication,
    )


def add_prompt_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose the wording of the prompt."""
    parser.add_argument(
        "--prompt-profile", choices=tuple(prompts.VERSIONS), default="card",
        help="prompt of the model card, or of its training code with --system-file (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--system-file", metavar="FILE", help="UTF-8 file with the system text of --prompt-profile training"
    )


def add_indication_option(parser: argparse.ArgumentParser) -> None:
    """Add the option for free text about one film."""
    parser.add_argument(
        "--indication", metavar="TEXT",
        help=f"clinical indication, at most {LONGEST_INDICATION} characters; SENT TO THE SERVER VERBATIM",
    )  # fmt: skip


def prompt_profile(options: argparse.Namespace) -> prompts.Profile:
    """Return the prompt profile that the options describe."""
    if options.prompt_profile == "training":
        if options.system_file is None:
            raise ConfigurationError(
                "--prompt-profile training: needs the system text of the training code; add --system-file FILE"
            )
        return prompts.read_training(options.system_file)
    if options.system_file is not None:
        raise ConfigurationError("--system-file: valid only with --prompt-profile training")
    return prompts.CARD


def indication(options: argparse.Namespace) -> str | None:
    """Return the indication, and print the privacy warning to stderr if there is one."""
    if options.indication is not None:
        print(_PRIVACY_WARNING, file=sys.stderr)
    text: str | None = options.indication
    return text


def add_server_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that describe the server and the client's limits, and the metrics options."""
    parser.add_argument("--url", default=DEFAULT_URL, help="URL of the server (default: %(default)s)")
    parser.add_argument(
        "--api-key-env", metavar="NAME", help=f"environment variable that holds the API key (default: {_KEY_VARIABLE})"
    )
    parser.add_argument("--model", metavar="NAME", help="name of the model, if the server offers several")
    parser.add_argument(
        "--max-tokens", metavar="N", type=positive(int), default=500,
        help="maximum length of a report in tokens (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--timeout", metavar="S", type=positive(float), default=Timeouts().total,
        help="seconds for one report, including retries while the server starts (default: %(default)g)",
    )  # fmt: skip
    parser.add_argument("--insecure-http", action="store_true", help="allow plain HTTP to another machine")
    _add_metrics_options(parser)


def connect(options: argparse.Namespace) -> Client:
    """Return the client that the options describe."""
    return Client(**_client_arguments(options), metrics=HookChain(RetryNotice(), options.watch))


def connect_async(options: argparse.Namespace, *, retries: int) -> AsyncClient:
    """Return the asynchronous client that the options describe."""
    return AsyncClient(**_client_arguments(options), retries=retries, metrics=options.watch)


def _client_arguments(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "url": options.url,
        "api_key": api_key(options.api_key_env),
        "model": options.model,
        "timeouts": Timeouts(total=options.timeout),
        "insecure_http": options.insecure_http,
    }


def api_key(variable: str | None) -> str | None:
    """Return the API key from an environment variable, by default ``PEDCXR_API_KEY``, or None if that is not set."""
    key = os.environ.get(variable or _KEY_VARIABLE)
    if variable is not None and not key:
        raise ConfigurationError(f"--api-key-env: {variable} is not set; export it, or remove the option")
    return key or None


def positive(kind: Callable[[str], float]) -> Callable[[str], float]:
    """Return an argparse converter for finite numbers above 0."""

    def convert(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = 0
        if not 0 < value < float("inf"):
            noun = "an integer" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"must be {noun} above 0")
        return value

    return convert


class RetryNotice(NullHook):
    """Prints a line to stderr for each wait while the server is starting or busy."""

    def retrying(self, error: RequestError, wait: float) -> None:
        """Print the reason and the wait in seconds."""
        if isinstance(error, RateLimited | Unavailable):
            print(f"pedcxr: the server is starting or busy; retrying in {max(wait, 1):.0f} s", file=sys.stderr)


def _add_metrics_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("Prometheus metrics (off by default)")
    group.add_argument(
        "--metrics-textfile", metavar="FILE.prom", help="write a file for node_exporter's textfile collector"
    )
    group.add_argument(
        "--metrics-push", metavar="URL", help="push to this Pushgateway, and delete the metrics at the end"
    )
    group.add_argument(
        "--metrics-linger", metavar="S", type=_seconds, default=_METRICS_LINGER_S,
        help="seconds between the last push and the deletion, so that Prometheus can scrape it (default: %(default)g)",
    )  # fmt: skip
    group.add_argument(
        "--metrics-port", metavar="PORT", type=int, help="serve metrics on this port of 127.0.0.1; 0 picks a free port"
    )


@contextmanager
def publish_metrics(options: argparse.Namespace) -> Iterator[Hook]:
    """Yield the hook for a command's client, and publish its metrics during the block and at its end.

    A failure to publish never changes the command's exit code. An option that cannot be used raises at the start of
    the block, before any request.
    """
    if not any(getattr(options, f"metrics_{way}", None) is not None for way in ("textfile", "push", "port")):
        yield NullHook()
        return
    from prometheus_client import CollectorRegistry

    from pedcxr_client.metrics import export
    from pedcxr_client.metrics.prometheus import Metrics

    registry = CollectorRegistry()
    metrics = Metrics(registry)
    with ExitStack() as stack:
        if options.metrics_port is not None:
            address = stack.enter_context(export.serving(registry, options.metrics_port))
            print(f"pedcxr: metrics at {address}", file=sys.stderr)
        if (path := options.metrics_textfile) is not None:
            try:
                export.write(registry, path)
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or "not a valid path"
                raise ConfigurationError(f"--metrics-textfile: cannot be written: {reason}") from error
            warn = _warn_once("--metrics-textfile: cannot be written")
            stack.enter_context(export.repeating(lambda: export.write(registry, path), warn))
        if options.metrics_push is not None:
            gateway = export.Pushgateway(url=options.metrics_push)
            stack.push(lambda kind, _error, _trace: _delete(gateway, 0 if kind is not None else options.metrics_linger))
            warn = _warn_once("--metrics-push: the push failed")
            stack.enter_context(export.repeating(lambda: gateway.push(registry), warn))
        yield metrics


def _warn_once(text: str) -> Callable[[OSError], None]:
    """Return a function that prints the first error only: metrics are published every few seconds for hours."""
    errors: list[OSError] = []

    def warn(error: OSError) -> None:
        if not errors:
            print(f"pedcxr: {text}: {getattr(error, 'reason', None) or error.strerror or error}", file=sys.stderr)
        errors.append(error)

    return warn


def _delete(gateway: Pushgateway, linger: float) -> None:
    with suppress(KeyboardInterrupt):  # Ctrl-C ends the wait, not the deletion
        time.sleep(linger)
    try:
        gateway.delete()
    except OSError as error:
        _warn_once("--metrics-push: the deletion failed")(error)


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 3600:
        raise ValueError
    return value
