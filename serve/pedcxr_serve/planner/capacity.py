"""How many replicas serve a load within its objectives, what limits them, and what a thousand reports cost. No I/O.

The times of a replica come from the roofline model, at 60 % of the bandwidth, or from measured loads. `simulate` then
tells the highest rate of one replica at which the 95th percentiles of TTFT and E2E meet the objectives, for Poisson
arrivals.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from pedcxr_serve.checkpoint.architecture import Shape
from pedcxr_serve.errors import ConfigError
from pedcxr_serve.planner import roofline, simulate
from pedcxr_serve.planner.measurement import Load, Measurement
from pedcxr_serve.planner.plan import DTYPE_BYTES, EnginePlan
from pedcxr_serve.planner.replica_model import Replica
from pedcxr_serve.planner.simulate import Outcome

_REPORTS = 2000  # of each simulation
_OTHER_PROMPTS = 0.1  # difference above which prompts are not those of the model: 6 % for the demo's
_FIT_ERROR = 0.15  # of a rate, above which a fit is doubted
_GAIN = 1.05  # of the rate by twice the requests in flight, below which it no longer grows
_SATURATED = 0.8  # a part that is busier than that limits a replica; below, the objectives do


@dataclass(frozen=True, slots=True)
class Objectives:
    """A load and its limits.

    Attributes:
        rate: reports per second.
        ttft, e2e: limits of the 95th percentiles, seconds.
        price: of a replica per hour, or None.
    """

    rate: float
    ttft: float
    e2e: float
    price: float | None = None


@dataclass(frozen=True, slots=True)
class Capacity:
    """The answer to `Objectives`.

    Attributes:
        highest_rate: reports per second of one replica within the objectives.
        replicas: number of replicas.
        outcome: one of these replicas at its share of the load.
        utilisation: of each part of a replica, at its share of the load.
        bound_by: what limits the rate of a replica, as in `utilisation`, or the objective.
        cost_per_thousand: price of a thousand reports, or None without a price.
    """

    highest_rate: float
    replicas: int
    outcome: Outcome
    utilisation: Mapping[str, float]
    bound_by: str
    cost_per_thousand: float | None


def replica(plan: EnginePlan, shape: Shape, lengths: Sequence[int]) -> Replica:
    """Return the replica of a plan, with the times of the roofline model.

    Args:
        lengths: tokens of reports, each as probable as the others.
    """
    device, size = plan.device, DTYPE_BYTES[plan.dtype]
    mean = fmean(lengths)
    kv = (plan.prompt_tokens + mean / 2) * plan.kv_bytes_per_token
    bandwidth = roofline.REAL_BANDWIDTH * device.bandwidth_bytes_s
    events = _events(mean, plan.stream_interval)
    return Replica(
        prepare=1 / roofline.FILMS_PER_API_PROCESS + events * roofline.API_EVENT_S,
        step=shape.text_parameters * size / bandwidth + (roofline.GPU_STEP_S if device.kind == "cuda" else 0.0),
        decode=kv / bandwidth,
        arithmetic=2.0 * shape.text_parameters / device.peak_flops,
        prompt=roofline.prompt_s(shape, device),
        event=roofline.GATEWAY_EVENT_S,
        request=roofline.GATEWAY_REQUEST_S,
        lengths=lengths,
        slots=plan.max_num_seqs,
        prompts_per_step=max(1, plan.max_num_batched_tokens // plan.prompt_tokens),
        api_processes=plan.api_server_count,
        stream_interval=plan.stream_interval,
    )


def measured_replica(plan: EnginePlan, shape: Shape, measurement: Measurement) -> Replica:
    """Return the replica of a plan, with times that reproduce the measured loads.

    Raises:
        ConfigError: there are fewer than two loads of at most `max_num_seqs` in flight.
    """
    points = _points(measurement, plan.max_num_seqs)
    if len({point.in_flight for point in points}) < 2:
        raise ConfigError(
            f"--from: needs closed loops with at least two different numbers of requests in flight, each at most "
            f"{plan.max_num_seqs} (max-num-seqs); measure a small and a large load"
        )
    return simulate.fit(points, replica(plan, shape, measurement.lengths))


def with_tokens(plan: EnginePlan, shape: Shape, fitted: Replica, tokens: int) -> Replica:
    """Return a fitted replica for reports of another length.

    What they take more or less per film and step is that of the roofline model.
    """
    model, other = replica(plan, shape, fitted.lengths), replica(plan, shape, (tokens,))
    prepare, decode = fitted.prepare + other.prepare - model.prepare, fitted.decode + other.decode - model.decode
    return replace(fitted, lengths=other.lengths, prepare=max(0.0, prepare), decode=max(0.0, decode))


def measured_limit(part: Replica, fitted: Replica, measurement: Measurement) -> float:
    """Return the reports per second that more requests in flight did not raise, or infinity while the rate grew.

    Args:
        part: the fitted replica, or that for reports of another length, whose limit differs as its simulated rate does.
    """
    points = _points(measurement, part.slots)
    most = max(point.in_flight for point in points)
    last = max(point.rate for point in points if point.in_flight == most)
    if not any(2 * point.in_flight <= most and last < _GAIN * point.rate for point in points):
        return math.inf
    own, other = (simulate.simulate(one, in_flight=most, reports=_REPORTS).rate for one in (fitted, part))
    return max(point.rate for point in points) * other / own


def _points(measurement: Measurement, slots: int) -> list[simulate.Measured]:
    return [
        simulate.Measured(load.in_flight, load.rate, load.ttft, load.tpot)
        for load in measurement.loads
        if load.in_flight <= slots
    ]


def size(plan: EnginePlan, shape: Shape, part: Replica, objectives: Objectives, limit: float = math.inf) -> Capacity:
    """Return how many replicas meet the objectives.

    Args:
        limit: reports per second of one replica in any case; see `measured_limit`.

    Raises:
        ConfigError: not even a request alone meets them.
    """
    highest = min(limit, simulate.highest_rate(part, ttft=objectives.ttft, e2e=objectives.e2e, reports=_REPORTS))
    if not highest:
        alone = simulate.lightest(part, reports=_REPORTS)
        raise ConfigError(
            f"--slo-ttft {objectives.ttft:g}, --slo-e2e {objectives.e2e:g}: a request alone on {plan.device.name} has "
            f"its first token after {alone.ttft.p95:.2f} s and its last after {alone.e2e.p95:.2f} s (95th "
            "percentiles); use a faster device, shorter reports (--tokens), or larger objectives"
        )
    replicas = math.ceil(objectives.rate / highest)
    share = objectives.rate / replicas
    outcome = simulate.simulate(part, rate=share, reports=_REPORTS)
    if highest == limit:
        bound = "the measured rate, which more requests in flight did not raise"
    else:
        at_highest = simulate.simulate(part, rate=highest, reports=_REPORTS)
        bound = _bound_by(plan, part, _utilisation(plan, shape, part, at_highest), at_highest, objectives)
    cost = None if objectives.price is None else objectives.price * replicas / (3.6 * objectives.rate)
    return Capacity(
        highest_rate=highest,
        replicas=replicas,
        outcome=outcome,
        utilisation=_utilisation(plan, shape, part, outcome),
        bound_by=bound,
        cost_per_thousand=cost,
    )


def rows(
    plan: EnginePlan,
    part: Replica,
    capacity: Capacity,
    objectives: Objectives,
    measurement: Measurement | None = None,
    fitted: Replica | None = None,
) -> tuple[tuple[str, str], ...]:
    """Return the rows that `plan.render` adds, for a replica with the times of a measurement or of the roofline.

    Args:
        fitted: the replica that was fitted to the measurement, if ``part`` has reports of another length.
    """
    outcome, shares = capacity.outcome, capacity.utilisation
    rate = objectives.rate / capacity.replicas
    times = "; ".join(
        f"{name} p50 {time.p50:.2f}, p95 {time.p95:.2f} s"
        for name, time in (("TTFT", outcome.ttft), ("E2E", outcome.e2e))
    )
    parts = [f"{name} {share:.0%}" for name, share in shares.items()]
    source, prompt, basis = "times of the roofline model", float(plan.prompt_tokens), ""
    doubts: list[str] = []
    if measurement:
        source, prompt = "times fitted to the measured loads", measurement.prompt_tokens or prompt
        as_measured = part.lengths == measurement.lengths
        basis = ", as measured" if as_measured else f"; measured with {fmean(measurement.lengths):.0f} new tokens"
        parts.append("gateway: in the measured times")
        most = max(load.in_flight for load in measurement.loads if load.in_flight <= part.slots)
        if most < part.slots:
            text = f"at most {most} in flight: extrapolated to {part.slots} slots; measure more or use"
            doubts.append(f"{text} --max-num-seqs {most}")
        errors = simulate.rate_errors(_points(measurement, part.slots), fitted or part)
        wrong = [f"{error:+.0%} at {load}" for load, error in errors.items() if abs(error) > _FIT_ERROR]
        if wrong:
            doubts.append(
                f"the fit misses rates: {', '.join(wrong)} in flight; repeat the measurement, with the server's own "
                "--max-num-seqs"
            )
    cost = capacity.cost_per_thousand
    return (
        ("replicas", f"{capacity.replicas} for {objectives.rate:g} reports/s; simulated, {source}"),
        ("simulated with", f"{prompt:.0f} prompt and {fmean(part.lengths):.0f} new tokens a report{basis}"),
        ("objectives", f"p95 of TTFT <= {objectives.ttft:g} s, p95 of E2E <= {objectives.e2e:g} s"),
        ("one replica", f"at most {capacity.highest_rate:.3g} reports/s within them; bound by {capacity.bound_by}"),
        ("at this rate", f"{rate:.3g} reports/s a replica; {times}; {outcome.decoding:.0f} decode together"),
        ("utilisation", "; ".join(parts)),
        *([] if cost is None else [("price", f"{cost:.3g} per 1,000 reports, at {objectives.price:g} an hour each")]),
        *(("measured", doubt) for doubt in doubts),
    )


def measured_rows(plan: EnginePlan, shape: Shape, measurement: Measurement) -> tuple[tuple[str, str], ...]:
    """Return a row for each measured load, with its rate in per cent of the roofline, and one for each doubt."""
    doubts = list(measurement.doubts)
    prompts = [load.prompt_tokens for load in measurement.loads if load.prompt_tokens]
    prompt = max(prompts, key=lambda tokens: abs(tokens - plan.prompt_tokens), default=plan.prompt_tokens)
    if abs(prompt / plan.prompt_tokens - 1) > _OTHER_PROMPTS:
        doubts.append(
            f"prompts of {prompt:.0f} tokens, but {plan.prompt_tokens} for this model: another model or prompt"
        )
    return (
        *(("measured model", model) for model in measurement.models),
        *((f"measured at {load.in_flight}", _measured(plan, shape, load)) for load in measurement.loads),
        *(("measured", doubt) for doubt in doubts),
    )


def _measured(plan: EnginePlan, shape: Shape, load: Load) -> str:
    bound = roofline.throughput(
        shape,
        plan.device,
        min(load.in_flight, plan.max_num_seqs),
        dtype_bytes=DTYPE_BYTES[plan.dtype],
        new_tokens=round(load.output_tokens),
        prompt=round(load.prompt_tokens) or None,
    )
    percent = load.rate / bound.reports_per_s
    doubt = "" if percent <= 1 or plan.device.kind == "cpu" else ", so not of this model on this device"
    return (
        f"{load.rate:.3g} reports/s, TTFT {load.ttft:.3g} s, TPOT {1e3 * load.tpot:.3g} ms; {percent:.0%} of the "
        f"roofline for {load.prompt_tokens:.0f} prompt and {load.output_tokens:.0f} new tokens{doubt}"
    )


def _utilisation(plan: EnginePlan, shape: Shape, part: Replica, outcome: Outcome) -> dict[str, float]:
    """Return the share of what each part can do alone: the rate relative to its highest, or what is occupied."""
    mean = fmean(part.lengths)
    vision, prefill = roofline.vision_flop(shape), roofline.prefill_flop(shape, plan.prompt_tokens)
    prompts = outcome.rate * part.prompt
    reading = part.step + part.decode * part.slots >= part.arithmetic * part.slots
    limit = f" ({'memory bandwidth' if reading else 'arithmetic'})" if part.arithmetic else ""  # fitted times: unknown
    gateway = outcome.rate * (part.request + part.event * _events(mean, part.stream_interval))
    return {
        "vision tower": prompts * vision / (vision + prefill),
        "prefill": prompts * prefill / (vision + prefill),
        f"decode{limit}": outcome.rate * mean * part.step_s(part.slots, 0) / part.slots,
        "KV cache": outcome.decoding * (plan.prompt_tokens + mean) / (plan.reports_at_once * plan.tokens_per_report),
        "slots": outcome.decoding / part.slots,
        "film preparation": outcome.rate * part.prepare / part.api_processes,
        **({"gateway": gateway} if gateway else {}),
    }


def _bound_by(
    plan: EnginePlan, part: Replica, shares: Mapping[str, float], outcome: Outcome, objectives: Objectives
) -> str:
    reading_weights = part.step > max(part.decode, part.arithmetic) * part.slots
    if shares["slots"] >= _SATURATED and reading_weights:  # more reports would share a step at little cost
        return "KV cache" if plan.reports_at_once <= part.slots else f"slots (limited by {plan.limited_by})"
    parts = dict(shares)
    engine = {name: parts.pop(name) for name in list(parts)[:3]}  # the three share the device's time
    parts[max(engine, key=lambda name: engine[name])] = sum(engine.values())
    name = max(parts, key=lambda one: parts[one])
    if parts[name] >= _SATURATED:
        return name
    is_ttft = outcome.ttft.p95 / objectives.ttft > outcome.e2e.p95 / objectives.e2e
    return f"the objective of {'TTFT' if is_ttft else 'E2E'}, before any part is busy ({name} {parts[name]:.0%})"


def _events(tokens: float, interval: int) -> float:
    """Return the events of a stream: the first token, the others in groups, and the token usage."""
    return 2 + max(0.0, tokens - 1) / interval
