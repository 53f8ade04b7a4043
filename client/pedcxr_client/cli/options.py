"""The options that commands share, and what they describe: films, prompts, the server and its client, metrics."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from pedcxr_client.async_client import AsyncClient
from pedcxr_client.checks import rules
from pedcxr_client.client import Client
from pedcxr_client.errors import ConfigurationError, RateLimited, Unavailable
from pedcxr_client.films.preparation import Preparation
from pedcxr_client.metrics.hooks import Hook, HookChain, NullHook
from pedcxr_client.request import prompts
from pedcxr_client.request.film_request import FilmRequest
from pedcxr_client.request.free_text import LONGEST_INDICATION
from pedcxr_client.request.settings import DEFAULT_URL, Timeouts

if TYPE_CHECKING:
    from pedcxr_client.errors import RequestError
    from pedcxr_client.metrics.export import Pushgateway

_KEY_VARIABLE = "PEDCXR_API_KEY"
_DEMO_MODEL = "pedcxr-demo"
_METRICS_LINGER_S = 20.0  # a scrape every 15 s, and a little
_PRIVACY_WARNING = (
    "pedcxr: privacy: the indication is sent to the server word for word; put no name, date, number or place in it. "
    "Reports keep its digest only"
)


def add_film_options(parser: argparse.ArgumentParser) -> None:
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


def film_request(
    file: str,
    options: argparse.Namespace,
    *,
    max_tokens: int = 500,
    prompt_profile: prompts.Profile = prompts.CARD,
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


def add_prompt_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose the form of the words."""
    parser.add_argument(
        "--prompt-profile", choices=tuple(prompts.VERSIONS), default="card",
        help="the sentence of the model card, or of its training code with --system-file (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--system-file", metavar="FILE", help="the system text of --prompt-profile training, UTF-8")


def add_indication_option(parser: argparse.ArgumentParser) -> None:
    """Add the option for free words about one film."""
    parser.add_argument(
        "--indication", metavar="TEXT",
        help=f"why the film was taken, at most {LONGEST_INDICATION} characters; LEAVES THIS MACHINE as it is",
    )  # fmt: skip


def prompt_profile(options: argparse.Namespace) -> prompts.Profile:
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
        print(_PRIVACY_WARNING, file=sys.stderr)
    text: str | None = options.indication
    return text


def add_server_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where the server is and how it is asked."""
    parser.add_argument("--url", default=DEFAULT_URL, help="the server (default: %(default)s)")
    parser.add_argument(
        "--api-key-env", metavar="NAME", help=f"environment variable that holds the API key (default: {_KEY_VARIABLE})"
    )
    parser.add_argument("--model", metavar="NAME", help="needed only if the server offers several")
    parser.add_argument("--max-tokens", metavar="N", type=above_zero(int), default=500, help="default: %(default)s")
    parser.add_argument(
        "--timeout", metavar="S", type=above_zero(float), default=Timeouts().total,
        help="seconds for everything, waiting for a starting server included (default: %(default)g)",
    )  # fmt: skip
    parser.add_argument("--insecure-http", action="store_true", help="allow plain http to another machine")
    _add_metrics_options(parser)


def connect(options: argparse.Namespace) -> Client:
    """The client that the options describe.

    Raises:
        ConfigurationError: if one of them cannot be used.
    """
    return Client(
        options.url,
        api_key=api_key(options.api_key_env),
        model=options.model,
        timeouts=Timeouts(total=options.timeout),
        insecure_http=options.insecure_http,
        metrics=HookChain(Patience(), options.watch),
    )


def connect_async(options: argparse.Namespace, *, retries: int) -> AsyncClient:
    """The same for asyncio.

    Raises:
        ConfigurationError: if one of the options cannot be used.
    """
    return AsyncClient(
        options.url,
        api_key=api_key(options.api_key_env),
        model=options.model,
        timeouts=Timeouts(total=options.timeout),
        retries=retries,
        insecure_http=options.insecure_http,
        metrics=options.watch,
    )


def api_key(variable: str | None) -> str | None:
    """The key from the environment variable of this name, or of the usual one; None if that is not set.

    Raises:
        ConfigurationError: if the variable that was named is not set.
    """
    key = os.environ.get(variable or _KEY_VARIABLE)
    if variable is not None and not key:
        raise ConfigurationError(f"--api-key-env: {variable} is not set; export it, or leave the option out")
    return key or None


def above_zero(kind: Callable[[str], float]) -> Callable[[str], float]:
    """A converter of argparse for finite numbers above 0."""

    def convert(text: str) -> float:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise ValueError
        return value

    convert.__name__ = "number above 0"
    return convert


class Patience(NullHook):
    """Says why nothing happens while the client waits for a server that asked to come back later."""

    def retrying(self, error: RequestError, wait: float) -> None:
        """Tell the terminal."""
        if isinstance(error, RateLimited | Unavailable):
            print(f"pedcxr: the server is starting or busy; trying again in {max(wait, 1):.0f} s", file=sys.stderr)


def _add_metrics_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    group = parser.add_argument_group("metrics for Prometheus, none of which is on by default")
    group.add_argument("--metrics-textfile", metavar="FILE.prom", help="keep a page there for node_exporter")
    group.add_argument("--metrics-push", metavar="URL", help="push to this Pushgateway, and delete in the end")
    group.add_argument(
        "--metrics-linger", metavar="S", type=_seconds, default=_METRICS_LINGER_S,
        help="seconds between the last push and the deletion, for a scrape to happen (default: %(default)g)",
    )  # fmt: skip
    group.add_argument("--metrics-port", metavar="PORT", type=int, help="answer scrapes on 127.0.0.1; 0: any free port")


@contextmanager
def publish_metrics(options: argparse.Namespace) -> Iterator[Hook]:
    """The hook that watches a command's client; what it saw is published while the block runs and at its end.

    Nothing that goes wrong at publishing changes how the command ends.

    Raises:
        ConfigurationError: an option cannot be used; nothing was asked of a server yet.
    """
    if not any(getattr(options, f"metrics_{way}", None) is not None for way in ("textfile", "push", "port")):
        yield NullHook()
        return
    from prometheus_client import CollectorRegistry

    from pedcxr_client.metrics import export
    from pedcxr_client.metrics.prometheus import Metrics

    registry = CollectorRegistry()
    metrics = Metrics(registry, models={options.model or _DEMO_MODEL})
    with ExitStack() as stack:
        if options.metrics_port is not None:
            address = stack.enter_context(export.serving(registry, options.metrics_port))
            print(f"pedcxr: metrics at {address}", file=sys.stderr)
        if (path := options.metrics_textfile) is not None:
            try:
                export.write(registry, path)
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or "is no path"
                raise ConfigurationError(f"--metrics-textfile: cannot be written: {reason}") from error
            failed = _complaint("--metrics-textfile: not written")
            stack.enter_context(export.repeating(lambda: export.write(registry, path), failed))
        if options.metrics_push is not None:
            gateway = export.Pushgateway(url=options.metrics_push)
            stack.push(lambda kind, _error, _trace: _forget(gateway, 0 if kind is not None else options.metrics_linger))
            failed = _complaint("--metrics-push: the Pushgateway did not take them")
            stack.enter_context(export.repeating(lambda: gateway.push(registry), failed))
        yield metrics


def _complaint(what: str) -> Callable[[OSError], None]:
    """Says so once; a run of hours would say it a thousand times."""
    said: list[OSError] = []

    def complain(error: OSError) -> None:
        if not said:
            print(f"pedcxr: {what}: {getattr(error, 'reason', None) or error.strerror or error}", file=sys.stderr)
        said.append(error)

    return complain


def _forget(gateway: Pushgateway, linger: float) -> None:
    with suppress(KeyboardInterrupt):  # which ends the waiting
        time.sleep(linger)
    try:
        gateway.delete()
    except OSError as error:
        _complaint("--metrics-push: not deleted")(error)


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 3600:
        raise ValueError
    return value
