"""``pedcxr bench``: load tests whose figures count, against any server with the OpenAI API."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pedcxr_client.cli import options as shared
from pedcxr_client.cli import output
from pedcxr_client.errors import ConfigurationError, NotFound, RequestError, ServerFailed
from pedcxr_client.request.settings import DEFAULT_URL
from pedcxr_client.types import ServedModel

if TYPE_CHECKING:
    from pedcxr_client.bench.bodies import Supply
    from pedcxr_client.bench.run import Knee, Record
    from pedcxr_client.bench.schedule import Stage
    from pedcxr_client.bench.workload import Workload
    from pedcxr_client.client import Client

INVALID, _INTERRUPTED = 1, 130
_SUMMARY = "load tests with unique films, raw timestamps and rules that make a figure count"
_EXIT_CODES = """\
exit codes: 0 the run is valid; 1 it is invalid, misses its objectives, or compare finds a regression;
2 usage, configuration or key; 3 a film was refused; 4 the server is unreachable or died; 130 interrupted"""
_MODES = {
    "knee": "double the requests in flight until the rate no longer grows",
    "certify": "measure with Poisson arrivals at 50, 70, 85 and 100 per cent of the knee's rate",
    "soak": "send at 80 per cent of the knee's rate for a long time",
    "run": "run the load of the workload file",
}
_SECONDS = {"knee": 15.0, "certify": 60.0, "soak": 1200.0, "run": 0.0}


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Define the command and its modes."""
    parser = commands.add_parser(
        "bench", help=_SUMMARY, description=_SUMMARY, epilog=_EXIT_CODES, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    modes = parser.add_subparsers(title="modes", metavar="MODE", required=True)
    for mode, summary in _MODES.items():
        _add_mode(
            modes.add_parser(mode, help=summary, description=summary, epilog=_EXIT_CODES, allow_abbrev=False), mode
        )
    summary = "compare two results: ratios with 95 per cent intervals"
    compare = modes.add_parser("compare", help=summary, description=summary, epilog=_EXIT_CODES, allow_abbrev=False)
    compare.add_argument("before", metavar="A.json", help="result of pedcxr bench -o")
    compare.add_argument("after", metavar="B.json", help="result of the same mode and workload")
    compare.add_argument(
        "--tolerance", metavar="SHARE", type=shared.positive(float), default=0.05,
        help="smallest change that counts, as a share (default: %(default)g)",
    )  # fmt: skip
    compare.set_defaults(run=run_compare)


def _add_mode(parser: argparse.ArgumentParser, mode: str) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.set_defaults(run=run_mode, mode=mode)
    parser.add_argument("--workload", metavar="FILE.toml", help="films, prompts, tenants, load and objectives")
    parser.add_argument("-o", "--output", metavar="OUT.json", help="write the result, OUT.md and OUT.html")
    parser.add_argument("--force", action="store_true", help="replace the files of -o")
    parser.add_argument("--url", default=DEFAULT_URL, help="URL of the server (default: %(default)s)")
    parser.add_argument("--api-key-env", metavar="NAME", help="environment variable that holds the API key")
    parser.add_argument("--model", metavar="NAME", help="name of the model, if the server offers several")
    parser.add_argument("--insecure-http", action="store_true", help="allow plain HTTP to another machine")
    parser.add_argument(
        "--metrics-url", metavar="URL", action="append",
        help="the server's metrics page, once for each replica (default: /metrics of --url, if it exists)",
    )  # fmt: skip
    parser.add_argument(
        "--server-pid", metavar="PID", type=shared.positive(int),
        help="a server on this machine: measure its processes and their children",
    )  # fmt: skip
    parser.add_argument("--timeout", metavar="S", type=shared.positive(float), default=300.0,
                        help="seconds for one request (default: %(default)g)")  # fmt: skip
    if mode != "run":
        parser.add_argument("--seconds", metavar="S", type=shared.positive(float), default=_SECONDS[mode],
                            help="least length of a stage (default: %(default)g)")  # fmt: skip
    if mode in ("certify", "soak"):
        rate = parser.add_mutually_exclusive_group()
        rate.add_argument("--rate", metavar="R", type=shared.positive(float), help="the knee's reports per second")
        rate.add_argument("--from", metavar="KNEE.json", dest="knee_file", help="take the rate from this result")
    if mode != "run":
        parser.add_argument("--most", metavar="N", type=shared.positive(int), default=256,
                            help="most requests in flight of the search (default: %(default)s)")  # fmt: skip
    for name, meaning in (
        ("ttft", "to the first text"), ("e2e", "to the last text"), ("tpot", "per output token after the first")
    ):  # fmt: skip
        parser.add_argument(
            f"--slo-{name}", metavar="S", type=shared.positive(float), help=f"objective: seconds {meaning}"
        )
    parser.add_argument(
        "--export-aiperf",
        metavar="DIR",
        help="write the bodies for aiperf and vllm bench, print their commands and exit",
    )
    parser.add_argument(
        "--requests", metavar="N", type=shared.positive(int), default=200,
        help="number of bodies per tenant of --export-aiperf (default: %(default)s)",
    )  # fmt: skip


def run_compare(options: argparse.Namespace) -> int:
    """Print the ratios; return 1 if one is a regression or a run does not count."""
    from pedcxr_client.bench import compare, results

    comparison = compare.compare(results.read(options.before), results.read(options.after))
    print(compare.text(comparison, options.tolerance), end="")
    return INVALID if comparison.regressions(options.tolerance) or comparison.faults else 0


def run_mode(options: argparse.Namespace) -> int:
    """Run a mode, print the report as Markdown and write the files."""
    _require_packages()
    options.url = options.url.rstrip("/")
    from pedcxr_client.bench import bodies, export, watch, workload
    from pedcxr_client.bench.run import Record
    from pedcxr_client.client import Client

    load = _with_options(workload.read(options.workload), options)
    default_key = shared.api_key(options.api_key_env)
    tenants = load.tenants or (workload.Tenant(),)
    keys = {tenant.name: workload.key_of(tenant, load, default_key) for tenant in tenants}
    paths, knee = _paths(options), _knee_of(options)
    stages = _stages(options, load, knee)  # refuses a load that cannot be sent
    if options.export_aiperf is not None:
        export.check(load, tenants)
    if options.server_pid is not None and watch.process(options.server_pid) is None:
        raise ConfigurationError(f"--server-pid: /proc shows no process {options.server_pid}; check the number")
    with Client(
        options.url,
        api_key=next(iter(keys.values())),
        model=options.model,
        retries=0,
        insecure_http=options.insecure_http,
    ) as client:
        model = _served_model(client, options.model)
    cases = bodies.build(load, model, _bar("films"))
    supply = bodies.Supply(load, cases, tenants)
    if options.export_aiperf is not None:
        folder = Path(options.export_aiperf)
        export.write(folder, supply, load, tenants, options.requests)
        print(
            export.commands(
                folder, options.url, model.name, load, tenants, options.metrics_url or (), options.requests,
                options.api_key_env,
            ),
            end="",
        )  # fmt: skip
        return 0
    _check_films(supply.limit, stages, options)

    record = Record()
    try:
        knee = _run(options, load, supply, keys, knee, stages, record)
    except Exception as error:
        if not record.stages:
            raise
        record.interrupted = f"{type(error).__name__} in pedcxr bench"
        _finish(options, load, model.name, record, knee, paths)
        raise
    return _finish(options, load, model.name, record, knee, paths)


def _served_model(client: Client, name: str | None) -> ServedModel:
    """Return the model as the server describes it, or the named one if the server cannot list its models."""
    try:
        return client.model()
    except (NotFound, ServerFailed):
        if name is None:
            raise
        return ServedModel(name)


def _run(
    options: argparse.Namespace,
    load: Workload,
    supply: Supply,
    keys: dict[str, str | None],
    knee: Knee | None,
    stages: list[Stage],
    record: Record,
) -> Knee | None:
    """Send the requests, fill the record, and return the knee."""
    import uvloop
    from tqdm import tqdm

    from pedcxr_client.bench import run
    from pedcxr_client.bench.figures import meets
    from pedcxr_client.bench.send import Target
    from pedcxr_client.bench.watch import Metrics, describe
    from pedcxr_client.request.settings import Timeouts

    bar = tqdm(unit=" requests", disable=None, leave=False)

    def progress(count: int, stage: str) -> None:
        bar.set_description(stage, refresh=False)
        bar.n = count
        bar.update(0)

    async def main() -> None:
        nonlocal knee, stages
        async with run.session() as session:
            timeouts = Timeouts(gap=options.timeout, total=options.timeout)
            target = Target(session, options.url, keys, timeouts=timeouts, allow=load.reports.allow)
            key = next(iter(keys.values()))
            headers = {} if key is None else {"Authorization": f"Bearer {key}"}
            metrics = Metrics(session, options.metrics_url or [f"{options.url.removesuffix('/v1')}/metrics"])
            record.server = await describe(session, options.url, headers) | await metrics.facts()
            runner = run.Runner(
                target, supply, record, metrics=metrics, server_pid=options.server_pid, progress=progress
            )
            with run.on_ctrl_c(runner):
                try:
                    await runner.alone(load.reports.alone)
                    if not any(meets(sample, load.slo) for sample in record.alone):
                        return  # no load makes a report faster
                    if options.mode != "run" and knee is None:
                        # A search before a long run takes no longer than one of its own.
                        longest = options.seconds if options.mode == "knee" else _SECONDS["knee"]
                        knee = await run.find_knee(runner, min(options.seconds, longest), options.most)
                        stages = _stages(options, load, knee)
                    await run.run_all(runner, stages)
                except run.Interrupted:
                    pass

    try:
        uvloop.run(main())
    finally:
        bar.close()
    return knee


def _stages(options: argparse.Namespace, load: Workload, knee: Knee | None) -> list[Stage]:
    """Return the stages after the search for the knee; none while the knee is not known."""
    from pedcxr_client.bench import schedule

    if options.mode == "run":
        return schedule.of_load(load)
    if options.mode == "knee" or knee is None or not knee[1]:
        return []
    of_rate = schedule.certify if options.mode == "certify" else schedule.soak
    return of_rate(knee[1], options.seconds, load.films.seed)


def _finish(
    options: argparse.Namespace, load: Workload, model: str, record: Record, knee: Knee | None, paths: dict[str, Path]
) -> int:
    from pedcxr_client.bench import report, results, verdict

    judged = verdict.judge(
        record.stages, load, record.alone, clock_step_s=record.clock_step_s, interrupted=record.interrupted,
        is_soak=options.mode == "soak",
    )  # fmt: skip
    result = results.assemble(options.mode, model, load, record, judged, knee)
    try:
        for suffix, path in paths.items():
            render = {".json": results.dumps, ".md": report.markdown, ".html": report.html}[suffix]
            output.write(str(path), render(result).encode(), force=options.force)
    finally:  # neither the files nor the printed report are lost if the other cannot be written
        print(report.markdown(result), end="", flush=True)
    if record.server_is_gone:
        return RequestError.exit_code
    if record.interrupted:
        return _INTERRUPTED
    return INVALID if result.missed or not judged.is_valid else 0


def _with_options(load: Workload, options: argparse.Namespace) -> Workload:
    limits = {name: value for name in ("ttft", "e2e", "tpot") if (value := getattr(options, f"slo_{name}")) is not None}
    return replace(load, slo=replace(load.slo, **limits))


def _knee_of(options: argparse.Namespace) -> Knee | None:
    """Return the knee that the user states, or None to search for it."""
    from pedcxr_client.bench import results, run

    if getattr(options, "rate", None) is not None:
        return run.Knee(0.0, options.rate)
    if getattr(options, "knee_file", None) is None:
        return None
    return results.read_knee(options.knee_file)


def _check_films(limit: int | None, stages: list[Stage], options: argparse.Namespace) -> None:
    """Refuse to start if each film is sent once and there are too few."""
    if limit is None:
        return
    needed = sum(len(stage.times) if stage.is_open else stage.in_flight + stage.min_requests for stage in stages)
    needed = needed if stages else 200  # the search for the knee decides
    if limit < needed:
        raise ConfigurationError(
            f"films.unique = film: {limit} films, but the run sends at least {needed} requests; add films, or let a "
            'film be sent again with another comment in its file: films.unique = "comment"'
        )


def _paths(options: argparse.Namespace) -> dict[str, Path]:
    if options.output is None:
        return {}
    first = Path(options.output)
    if first.suffix != ".json":
        raise ConfigurationError("-o: give a name that ends in .json")
    paths = {suffix: first.with_suffix(suffix) for suffix in (".json", ".md", ".html")}
    for path in paths.values():
        output.check(str(path), film="", force=options.force)
    return paths


def _bar(unit: str) -> Callable[[Iterable[int]], Iterable[int]]:
    from tqdm import tqdm

    return lambda numbers: tqdm(numbers, unit=f" {unit}", disable=None, leave=False)


def _require_packages() -> None:
    try:
        import aiohttp  # noqa: F401
        import uvloop  # noqa: F401
    except ImportError as error:
        raise ConfigurationError(f'pedcxr bench requires {error.name}: pip install "pedcxr[bench]"') from error
