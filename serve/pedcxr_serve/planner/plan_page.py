"""A plan, for people and for scripts. Pure."""

from __future__ import annotations

import json
from dataclasses import asdict

from pedcxr_serve.planner import roofline, vllm_args
from pedcxr_serve.planner.plan import EnginePlan
from pedcxr_serve.planner.roofline import Floor

__all__ = ["as_json", "render"]


def as_json(plan: EnginePlan) -> str:
    """The plan as one JSON object, for scripts."""
    return json.dumps(asdict(plan), indent=2)


def render(plan: EnginePlan) -> str:
    """The plan for people: a table, then the command that can be pasted into a shell."""
    device, floor, expected = plan.device, plan.floor, plan.expected
    gb, tera = 1e9, 1e12
    figures = f"{device.memory_bytes / gb:.0f} GB, {device.bandwidth_bytes_s / gb:,.0f} GB/s"
    figures += f", {device.peak_flops / tera:.3g} TFLOP/s"
    rough = " (a rule of thumb: right to the order of magnitude)" if device.kind == "cpu" else ""
    rows = (
        ("device", f"{device.name}, {figures}{rough}"),
        ("weights", f"{plan.weights_bytes / gb:.3f} GB in {plan.dtype}"),
        ("KV cache", f"{plan.kv_capacity_bytes / gb:.1f} GB at {plan.kv_bytes_per_token:,} B a token"),
        ("fits at once", f"{plan.reports_at_once:,} reports of {plan.tokens_per_report} tokens"),
        ("max-num-seqs", f"{plan.max_num_seqs} (limited by {plan.limited_by})"),
        ("max-num-batched-tokens", str(plan.max_num_batched_tokens)),
        ("api-server-count", str(plan.api_server_count)),
        ("starting at once", f"{plan.max_starting}, {plan.max_preparing} with films to prepare; with several tenants"),
        ("at best", f"{_rate(floor)}; bound by {floor.bound_by}"),
        ("as planned", _rate(expected)),
        ("counted with", f"{roofline.PROMPT_TOKENS} prompt and {plan.new_tokens} new tokens a report"),
    )
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {value}" for name, value in rows]
    return "\n".join([*lines, "", vllm_args.shell(plan.argv, plan.env)])


def _rate(floor: Floor) -> str:
    full, less = floor.reports_per_s, floor.reports_per_s_at_60
    return f"{full:.3g} reports/s with {floor.in_flight} at once, {less:.3g} at 60 % of bandwidth"
