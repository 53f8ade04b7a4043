"""The report of a run: Markdown, and one self-contained HTML page with pictures. Neither holds a text or a film."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from pedcxr_client.bench import charts, watch
from pedcxr_client.bench.charts import Series
from pedcxr_client.bench.figures import STAGES, Figures, Interval
from pedcxr_client.bench.results import Result, good_share
from pedcxr_client.bench.verdict import digests
from pedcxr_client.reports import html_head

_STYLE = """\
h1 { font-size: 1.3rem } h2 { font-size: 1.05rem; margin-top: 2rem }
.bad { color: #a40000 } .plot { overflow-x: auto }"""
_FOOT = (
    "Latencies of the user count from the scheduled time of a request, those of the server from its sending. A request "
    "is sent once. Goodput counts reports that meet every objective; a failed or refused request is bad."
)
Table = tuple[str, Sequence[str], Sequence[Sequence[str]]]


def headline(result: Result) -> str:
    """Return the first line: reports per minute, the latency, the knee, what bounds it, and the verdict."""
    best = _best(result)
    parts = []
    if best is None:
        parts.append("no report in any window")
    elif result.meets_objectives(best):
        times = best.percentiles["e2e_user"]
        share = "p95" if "p95" in times else "p90"  # fewer than 100 reports have no 95th percentile
        name = f" ({best.name})" if len(result.rated) > 1 else ""
        parts.append(f"{_per_minute(best)} at {share} <= {times.get(share, 0.0):.3g} s{name}")
    elif not result.missed:  # a search goes beyond the objectives
        parts.append(f"{_per_minute(best)}, but only {good_share(best):.1%} of the requests meet {result.slo.text()}")
    if result.knee is not None and result.knee.in_flight:
        reached = result.knee.is_reached
        words = "the knee is at {:.3g} in flight" if reached else "no knee up to {:.3g} in flight (--most)"
        parts.append(words.format(result.knee.in_flight))
        parts += [f"bounded by {stage}"] if reached and (stage := bound(result)) else []
    if result.missed:
        parts.append(result.missed)
    text = f"{result.verdict.label}{', OBJECTIVES MISSED' if result.missed else ''}: {'; '.join(parts)}"
    return f"{text} (NOISY: {result.verdict.noisy})" if result.verdict.noisy else text


def _per_minute(value: Figures) -> str:
    return f"{60 * value.rate.value:.0f} reports per minute"


def bound(result: Result) -> str:
    """Return the stage of a request that grew most from the lightest load to the knee; "" without a sweep."""
    most = 0.0 if result.knee is None else result.knee.in_flight
    sweep = [
        value
        for run, value in zip(result.record.stages, result.figures, strict=True)
        if not run.stage.is_open and value.in_flight <= most and value.completed
    ]
    if len(sweep) < 2:
        return ""
    first, last = sweep[0], sweep[-1]
    if first.waterfall and last.waterfall:
        growth = {name: last.waterfall[name] - first.waterfall[name] for name in STAGES}
        return max(growth, key=growth.__getitem__)
    ttft, e2e = (
        last.percentiles[name].get("mean", 0.0) - first.percentiles[name].get("mean", 0.0) for name in ("ttft", "e2e")
    )
    return "the time to the first token" if 2 * ttft > e2e else "the generation"


def _best(result: Result) -> Figures | None:
    """The stage of the headline: the knee of a sweep, else the highest goodput that meets the objectives."""
    if result.mode == "knee" and result.knee is not None:
        values = [value for value in result.figures if value.completed]
        return next((value for value in values if value.in_flight == result.knee.in_flight), None)
    values = [value for value in result.rated or result.figures if value.completed]
    return max(
        values, key=lambda value: (result.meets_objectives(value), value.goodput, value.rate.value), default=None
    )


def tables(result: Result) -> list[Table]:
    """Return the tables of the report: title, head and rows."""
    values = result.figures
    rows = [
        [
            value.name, f"{value.in_flight:.3g}", f"{value.offered:.3g}",
            _with_interval(value.rate),
            f"{value.goodput:.3g}", f"{good_share(value):.1%}", str(value.completed), str(value.failed),
            *(_latency(value, name, at) for name in ("ttft_user", "e2e_user") for at in ("p50", "p95")),
            _ms(value.percentiles["tpot"].get("p50")),
        ]
        for value in values
    ]  # fmt: skip
    head = ("stage", "in flight", "offered /s", "reports /s (95 %)", "goodput /s", "good", "ok",
            "failed", "TTFT p50", "TTFT p95", "E2E p50", "E2E p95", "TPOT p50")  # fmt: skip
    parts: list[Table] = [("Load", head, rows)]
    if any(value.waterfall for value in values):
        stages = [[value.name, *(_ms(value.waterfall.get(name)) for name in STAGES)] for value in values]
        parts.append(("Where the time goes, mean per report", ("stage", *STAGES), stages))
    if any(len(value.tenants) > 1 for value in values):
        shares = [
            [value.name, name, f"{row['completed']:.0f}", f"{row['share']:.1%}", f"{row['share_of_tokens']:.1%}",
             _ms(row["e2e_user_p50"] or None), _ms(row["e2e_user_p95"] or None)]
            for value in values for name, row in value.tenants.items()
        ]  # fmt: skip
        parts.append(
            ("Tenants", ("stage", "tenant", "reports", "share", "share of tokens", "E2E p50", "E2E p95"), shares)
        )
    enforced = "" if result.workload.reports.max_different < 1 else ", not enforced"
    honest = [
        [
            value.name, _hits(value), f"{1e3 * value.lag_p99:.1f} ms", f"{1e3 * value.lateness_p99:.1f} ms",
            f"{value.own_cpu:.0%}", "0",
            f"{value.different[0]} of {value.different[1]}{enforced}",
            ", ".join(f"{name} {count}" for name, count in value.outcomes.items()),
        ]
        for value in values
    ]  # fmt: skip
    parts.append((
        "Checks", ("stage", "cache hits (images, prefix)", "loop lag p99", "lateness p99", "own CPU, of a core",
                   "retries", f"texts unlike alone ({len(digests(result.record.alone))} films)", "outcomes"), honest,
    ))  # fmt: skip
    lengths = [[value.name, ", ".join(f"{low}+: {count}" for low, count in value.lengths.items())] for value in values]
    parts.append(("Length of the reports in tokens", ("stage", "reports by length"), lengths))
    if any(value.server_cpu_ms for value in values):
        names = list(dict.fromkeys(name for value in values for name in value.server_cpu_ms))
        cpu = [
            [value.name, *(f"{value.server_cpu_ms.get(name, 0):.1f} ms, {value.rss_growth.get(name, 0):+.1%}"
                           for name in names)]
            for value in values
        ]  # fmt: skip
        parts.append(("The server's processes: CPU per report, growth of resident memory", ("stage", *names), cpu))
    parts += [("Server", ("", ""), facts)] if (facts := _facts(result.record.server)) else []
    machine = [[name, str(value)] for name, value in watch.machine().items()]
    parts.append(("Machine of the load generator", ("", ""), machine))
    return parts


def markdown(result: Result) -> str:
    """Return the report as Markdown."""
    lines = [headline(result), ""]
    lines += [f"- INVALID: {reason}" for reason in result.verdict.reasons]
    lines += [f"- not checked: {name}" for name in result.verdict.unchecked]
    lines += [f"- objectives: {result.slo.text()}"] if result.slo.text() else []
    for title, head, rows in tables(result):
        lines += ["", f"## {title}", "", _row(head), _row(["---"] * len(head)), *map(_row, rows)]
    return "\n".join([*lines, "", _FOOT]) + "\n"


def html(result: Result) -> str:
    """Return the report as one page that loads nothing."""
    reasons = "".join(f'<li class="bad">{escape(reason)}</li>' for reason in result.verdict.reasons)
    unchecked = "".join(f"<li>not checked: {escape(name)}</li>" for name in result.verdict.unchecked)
    pictures = "".join(
        f'<h2>{escape(title)}</h2><div class="plot">{svg}</div>' for title, svg in _pictures(result) if svg
    )
    body = "".join(
        f"<h2>{escape(title)}</h2><table><tr>{''.join(f'<th>{escape(cell)}</th>' for cell in head)}</tr>"
        + "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
        + "</table>"
        for title, head, rows in tables(result)
    )
    return (
        f"{html_head.head('pedcxr bench', _STYLE)}<h1>{escape(headline(result))}</h1>"
        f"<ul>{reasons}{unchecked}</ul>{pictures}{body}<footer><p>{escape(_FOOT)}</p></footer></body></html>\n"
    )


def _pictures(result: Result) -> list[tuple[str, str]]:
    values = sorted((value for value in result.figures if value.completed), key=lambda value: value.offered)
    if result.mode == "knee":
        values.sort(key=lambda value: value.in_flight)
    x = [value.in_flight if result.mode == "knee" else value.offered for value in values]
    label = "requests in flight" if result.mode == "knee" else "offered reports per second"

    def latencies(field: str, limit: float) -> str:
        series = [
            Series(at, [(one, value.percentiles[field][at]) for one, value in zip(x, values, strict=True)
                        if at in value.percentiles[field]])
            for at in ("p50", "p90", "p95")
        ]  # fmt: skip
        return charts.lines(series, label, "seconds", limit=limit or None)

    rates = [
        Series("reports", [(one, value.rate.value) for one, value in zip(x, values, strict=True)]),
        Series("goodput", [(one, value.goodput) for one, value in zip(x, values, strict=True)]),
    ]
    bars = [(value.name, [value.waterfall[name] for name in STAGES]) for value in values if value.waterfall]
    tenants = sorted({name for value in values for name in value.tenants})
    shares = [
        (value.name, [value.tenants.get(name, {}).get("share_of_tokens", 0.0) for name in tenants]) for value in values
    ]
    series = [point for run in result.record.stages for point in run.scrapes.series]

    def gauge(*names: str) -> list[Series]:
        return [Series(name, [(point["time"], point[name]) for point in series if name in point]) for name in names]

    return [
        ("E2E of the user against load", latencies("e2e_user", result.slo.e2e)),
        ("TTFT of the user against load", latencies("ttft_user", result.slo.ttft)),
        ("Reports per second and goodput", charts.lines(rates, label, "per second")),
        ("Where the time goes", charts.bars(bars, STAGES, "seconds per report")),
        ("Shares of the tenants in the output tokens", charts.bars(shares, tenants, "share") if tenants[1:] else ""),
        ("KV cache usage over time", charts.lines(gauge("kv"), "seconds", "share")),
        ("Requests in the engine over time", charts.lines(gauge("running", "waiting", "queue"), "seconds", "requests")),
    ]


def _facts(value: object, name: str = "") -> list[Sequence[str]]:
    """Return the rows of a nested value, such as ``models.data.id``; what is empty is left out."""
    if isinstance(value, Mapping):
        return [row for key, one in value.items() for row in _facts(one, f"{name}.{key}".lstrip("."))]
    if isinstance(value, list):
        return [row for one in value for row in _facts(one, name)]
    return [] if value in ("", None) else [(name, str(value))]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(' '.join(cell.split()).replace('|', chr(92) + '|') for cell in cells)} |"


def _with_interval(rate: Interval) -> str:
    ends = "" if rate.low is None or rate.high is None else f" ({rate.low:.3g}-{rate.high:.3g})"
    return f"{rate.value:.3g}{ends}"


def _latency(value: Figures, name: str, at: str) -> str:
    seconds = value.percentiles[name].get(at)
    return "-" if seconds is None else f"{seconds:.3g} s"


def _ms(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def _hits(value: Figures) -> str:
    hits = value.cache_hits
    return "not known" if hits is None else f"{hits.get('mm', 0):.0f}, {hits.get('prefix', 0):.0f}"
