#!/usr/bin/env python3
"""Write rules.yml and dashboards/*.json of this folder: ``python3 deploy/monitoring/generate.py``.

Objectives, windows and panels are stated here once. ``tests/deploy/test_monitoring.py`` checks that the files are
current, unit-tests the rules with promtool, and runs each query against a real Prometheus. Standard library only.
"""

from __future__ import annotations

import json
from pathlib import Path

HERE = Path(__file__).resolve().parent

# The objectives of the service, per tenant over 30 days: the share of good requests, and what good means.
AVAILABILITY = 0.99
LATENCY = 0.95
TTFT_S, E2E_S = 2, 20  # bucket edges of the histograms
WINDOWS = ("5m", "30m", "1h", "6h")
# Google's SRE workbook, chapter 5: budget burnt 14.4 and 6 times too fast, in a long and a short window.
BURNS = ((14.4, "1h", "5m", "page"), (6, "6h", "30m", "ticket"))
FAILED_OUTCOMES = "aborted|engine_lost|failed"
FAILED_REASONS = "engine_restarting|limits_unknown|no_room|not_ready|queue_full|wait_too_long"

BY = "by (job, tenant)"
BACKENDS = 'proxy=~"replicas|canary"'


def recording_rules() -> list[dict[str, object]]:
    """Return the rates per tenant, of which alerts and dashboards are made."""
    rules: list[dict[str, object]] = []
    for window in WINDOWS:
        failed = (
            f'sum {BY} (rate(pedcxr_tenant_requests_total{{outcome=~"{FAILED_OUTCOMES}"}}[{window}]) '
            f'or rate(pedcxr_rejections_total{{reason=~"{FAILED_REASONS}"}}[{window}]))'
        )
        all_requests = f"sum {BY} (rate(pedcxr_tenant_requests_total[{window}]))"
        rules.append(_record(f"pedcxr:requests:rate{window}", all_requests))
        rules.append(
            _record(f"pedcxr:failures:ratio{window}", f"({failed} or 0 * {all_requests}) / ({all_requests} > 0)")
        )
        for name, metric, edge in (("ttft", "time_to_first_token", TTFT_S), ("e2e", "request_duration", E2E_S)):
            base = f"pedcxr_{metric}_seconds"
            fast = f'sum {BY} (rate({base}_bucket{{le="{edge:.1f}"}}[{window}]))'
            count = f"sum {BY} (rate({base}_count[{window}]))"
            rules.append(_record(f"pedcxr:slow_{name}:ratio{window}", f"1 - {fast} / ({count} > 0)"))
        # HAProxy counts the errors of a replica for the replica and for the backend, its own for the backend only.
        backend, server = (f"haproxy_{part}_http_responses_total{{{BACKENDS}" for part in ("backend", "server"))
        own = " - ".join(f'sum by (job) (rate({part}, code="5xx"}}[{window}]))' for part in (backend, server))
        answers = f"sum by (job) (rate({backend}}}[{window}]))"
        rules.append(_record(f"pedcxr:balancer_failures:ratio{window}", f"({own}) / ({answers} > 0)"))
    load = "sum by (job) (pedcxr_requests_in_flight) / sum by (job) (pedcxr_slots)"
    rules.append(_record("pedcxr:fleet_load:ratio", load))
    return rules


def _record(name: str, expr: str) -> dict[str, object]:
    return {"record": name, "expr": expr}


def burn_alerts() -> list[dict[str, object]]:
    """Return the multi-window alerts: the long window shows that it matters, the short one that it goes on."""
    alerts = []
    for series, share, name, what in (
        ("failures", AVAILABILITY, "PedcxrFailures", "of the requests of {{ $labels.tenant }} failed"),
        (
            "slow_ttft",
            LATENCY,
            "PedcxrSlowFirstToken",
            f"of the first tokens of {{{{ $labels.tenant }}}} took over {TTFT_S} s",
        ),
        ("slow_e2e", LATENCY, "PedcxrSlowReports", f"of the reports of {{{{ $labels.tenant }}}} took over {E2E_S} s"),
        ("balancer_failures", AVAILABILITY, "PedcxrBalancerFailures", "of the requests got an error of HAProxy itself"),
    ):
        for factor, long, short, severity in BURNS:
            limit = f"{factor * (1 - share):.4g}"
            alerts.append(
                _alert(
                    name,
                    f"pedcxr:{series}:ratio{long} > {limit} and pedcxr:{series}:ratio{short} > {limit}",
                    "2m",
                    severity,
                    f"{{{{ $value | humanizePercentage }}}} {what} within {long}",
                )
            )
    return alerts


def state_alerts() -> list[dict[str, object]]:
    """Return the alerts on states, whose causes docs/fleet/alerts.md explains."""
    uneven = (
        "max by (job) (avg_over_time(pedcxr_requests_in_flight[5m])) > 2 * avg by (job) "
        "(avg_over_time(pedcxr_requests_in_flight[5m])) and avg by (job) (avg_over_time(pedcxr_requests_in_flight[5m])) > 2"
    )
    return [
        # Holds also when the targets themselves vanish, as they do in Kubernetes.
        _alert("PedcxrNoReplica", 'absent(pedcxr_ready{job="pedcxr"} == 1)', "2m", "page", "no replica accepts requests"),
        _alert("PedcxrBalancerDown", 'up{job="haproxy"} == 0', "1m", "page", "HAProxy {{ $labels.instance }} does not answer"),
        _alert("PedcxrReplicaDown", 'up{job="pedcxr"} == 0', "1m", "page", "{{ $labels.instance }} does not answer"),
        _alert("PedcxrNotReady", "pedcxr_ready == 0", "15m", "page", "{{ $labels.instance }} accepts no requests"),
        _alert("PedcxrReplicasMissing", REPLICAS_MISSING, "5m", "ticket", "{{ $value }} replicas fewer than an hour ago"),
        _alert("PedcxrEngineRestarts", "increase(pedcxr_engine_restarts_total[1h]) > 2", "0m", "ticket",
               "the engine of {{ $labels.instance }} restarted {{ $value | humanize }} times within 1 h ({{ $labels.reason }})"),
        _alert("PedcxrLimitsFallback", 'max by (job, instance) ({__name__=~"pedcxr_(shared_)?limits_fallback"}) == 1', "2m", "ticket",
               "{{ $labels.instance }} counts limits alone, or refuses: Redis does not answer"),
        _alert("PedcxrTenantsBroken", "pedcxr_tenants_broken == 1", "1m", "ticket",
               "tenants.toml of {{ $labels.instance }} is invalid; the previous one is in use"),
        _alert("PedcxrTenantsDiffer", "count by (job) (count by (job, sha256) (pedcxr_tenants_info)) > 1", "2m", "ticket",
               "{{ $value }} versions of tenants.toml are in use"),
        _alert("PedcxrVersionsDiffer",
               "count by (job) (count by (job, version) (pedcxr_build_info)) > 1 or "
               "count by (job) (count by (job, revision, vllm) (pedcxr_replica_info)) > 1", "2h", "ticket",
               "{{ $value }} versions of pedcxr, of vLLM or of the checkpoint are in use"),
        _alert("PedcxrClockOff", "abs(pedcxr_clock_seconds - timestamp(pedcxr_clock_seconds)) > 30", "2m", "ticket",
               "the clock of {{ $labels.instance }} is {{ $value | humanizeDuration }} off"),
        _alert("PedcxrWritesFailed", "increase(pedcxr_write_failures_total[15m]) > 0", "0m", "ticket",
               "{{ $labels.instance }} cannot write its {{ $labels.file }} file"),
        _alert("PedcxrCertificateEnds", "pedcxr_tls_certificate_not_after_timestamp_seconds - time() < 7 * 86400", "1h", "ticket",
               "the certificate of {{ $labels.instance }} ends in {{ $value | humanizeDuration }}"),
        _alert("PedcxrFleetUneven", uneven, "5m", "ticket",
               "one replica has over twice the requests of the average: is the balancer counting connections?"),
        _alert("PedcxrKvCacheFull",
               "max by (job, instance) (avg_over_time(vllm:kv_cache_usage_perc[10m])) > 0.9 and "
               "sum by (job, instance) (increase(vllm:num_preemptions_total[10m])) > 0", "5m", "ticket",
               "the KV cache of {{ $labels.instance }} is {{ $value | humanizePercentage }} full, and the engine preempts requests"),
        # The next two need dcgm-exporter; without its metrics they are silent.
        _alert("PedcxrGpuError", "DCGM_FI_DEV_XID_ERRORS > 0", "0m", "ticket",
               "GPU {{ $labels.gpu }} of {{ $labels.Hostname }} reported XID {{ $value }}"),
        _alert("PedcxrGpuHot", "DCGM_FI_DEV_GPU_TEMP > 85", "10m", "ticket",
               "GPU {{ $labels.gpu }} of {{ $labels.Hostname }} has {{ $value }} degrees C"),
    ]  # fmt: skip


REPLICAS_MISSING = 'max_over_time((sum by (job) (up{job="pedcxr"}))[1h:1m]) - sum by (job) (up{job="pedcxr"}) > 0'


def _alert(name: str, expr: str, wait: str, severity: str, summary: str) -> dict[str, object]:
    return {
        "alert": name,
        "expr": expr,
        "for": wait,
        "labels": {"severity": severity},
        "annotations": {"summary": summary},
    }


def rules() -> str:
    """Return rules.yml; JSON strings are valid YAML."""
    lines = ["# Written by generate.py. docs/fleet/alerts.md explains each alert."]
    # One group: its rules are evaluated in order, so that an alert sees the rates of its own time.
    lines += ["groups:", "  - name: pedcxr", "    rules:"]
    for rule in recording_rules() + burn_alerts() + state_alerts():
        for number, (key, value) in enumerate(rule.items()):
            lines.append(f"      {'- ' if not number else '  '}{key}: {json.dumps(value)}")
    return "\n".join(lines) + "\n"


Panel = tuple[str, str, tuple[tuple[str, str], ...]]


def _quantiles(metric: str, by: str = "") -> tuple[tuple[str, str], ...]:
    labels, legend = ("le, " + by, f"{{{{{by}}}}} ") if by else ("le", "")
    return tuple(
        (f"histogram_quantile({share}, sum by ({labels}) (rate({metric}_bucket[5m])))", f"{legend}p{share * 100:g}")
        for share in ((0.95,) if by else (0.5, 0.95, 0.99))
    )


# Names and labels of dcgm-exporter's default-counters.csv.
GPU = "{{Hostname}} {{gpu}}"

DASHBOARDS: dict[str, tuple[str, tuple[Panel, ...]]] = {
    "service": (
        "pedcxr: service",
        (
            ("Requests per second by outcome", "reqps", (("sum by (outcome) (rate(pedcxr_tenant_requests_total[5m]))", "{{outcome}}"),)),
            ("HTTP answers per second", "reqps", (("sum by (status) (rate(pedcxr_requests_total[5m]))", "{{status}}"),)),
            ("Time to first token", "s", _quantiles("pedcxr_time_to_first_token_seconds")),
            ("Time to the whole report", "s", _quantiles("pedcxr_request_duration_seconds")),
            ("Time between tokens", "s", _quantiles("pedcxr_time_per_output_token_seconds")),
            ("Time in the queue", "s", _quantiles("pedcxr_queue_wait_seconds")),
            ("Seconds per stage, mean", "s", (("sum by (stage) (rate(pedcxr_stage_seconds_sum[5m])) / sum by (stage) (rate(pedcxr_stage_seconds_count[5m]))", "{{stage}}"),)),
            ("Tokens per second", "short", (("sum by (kind) (rate(pedcxr_tokens_total[5m]))", "{{kind}}"),)),
        ),
    ),
    "tenants": (
        "pedcxr: tenants",
        (
            ("Requests per second", "reqps", (("sum by (tenant) (rate(pedcxr_tenant_requests_total[5m]))", "{{tenant}}"),)),
            ("Failed requests, share", "percentunit", (("pedcxr:failures:ratio5m", "{{tenant}}"),)),
            ("Rejections per second", "reqps", (("sum by (tenant, reason) (rate(pedcxr_rejections_total[5m]))", "{{tenant}} {{reason}}"),)),
            ("Share of the service", "percentunit", (("sum by (tenant) (rate(pedcxr_tenant_service_cost_total[1m])) / ignoring (tenant) group_left sum(rate(pedcxr_tenant_service_cost_total[1m]))", "{{tenant}}"),)),
            ("Waiting and running", "short", (("sum by (tenant) (pedcxr_tenant_waiting)", "{{tenant}} waiting"), ("sum by (tenant) (pedcxr_tenant_in_flight)", "{{tenant}} running"))),
            ("Time to first token, p95", "s", _quantiles("pedcxr_time_to_first_token_seconds", "tenant")),
            ("Time to the whole report, p95", "s", _quantiles("pedcxr_request_duration_seconds", "tenant")),
            ("Tokens today, by the clock of Prometheus", "short", (("sum by (tenant) (increase(pedcxr_tokens_total[1d]))", "{{tenant}}"),)),
        ),
    ),
    "engine": (
        "pedcxr: engine",
        (
            ("Requests in the engine", "short", (("sum by (instance) (vllm:num_requests_running)", "{{instance}} running"), ("sum by (instance) (vllm:num_requests_waiting)", "{{instance}} waiting"))),
            ("KV cache in use", "percentunit", (("max by (instance) (vllm:kv_cache_usage_perc)", "{{instance}}"),)),
            ("Preemptions per second", "ops", (("sum by (instance) (rate(vllm:num_preemptions_total[5m]))", "{{instance}}"),)),
            ("Tokens per second", "short", (("sum by (instance) (rate(vllm:prompt_tokens_total[5m]))", "{{instance}} prompt"), ("sum by (instance) (rate(vllm:generation_tokens_total[5m]))", "{{instance}} output"))),
            ("Time to first token in the engine", "s", _quantiles("vllm:time_to_first_token_seconds")),
            ("Time in the engine's own queue", "s", _quantiles("vllm:request_queue_time_seconds")),
            ("Time of the prefill", "s", _quantiles("vllm:request_prefill_time_seconds")),
        ),
    ),
    "gpu": (
        "pedcxr: GPU (needs dcgm-exporter)",
        (
            ("GPU in use", "percent", (("DCGM_FI_DEV_GPU_UTIL", GPU),)),
            ("GPU memory in use", "percentunit", (("DCGM_FI_DEV_FB_USED / (DCGM_FI_DEV_FB_USED + DCGM_FI_DEV_FB_FREE)", GPU),)),
            ("Power", "watt", (("DCGM_FI_DEV_POWER_USAGE", GPU),)),
            ("Temperature", "celsius", (("DCGM_FI_DEV_GPU_TEMP", GPU),)),
            ("Last XID error; 0: none", "short", (("DCGM_FI_DEV_XID_ERRORS", GPU),)),
        ),
    ),
    "fleet": (
        "pedcxr: fleet",
        (
            ("Replicas ready", "short", (("sum by (job) (pedcxr_ready)", "ready"), ('count by (job) (up{job="pedcxr"})', "known"))),
            ("Requests in flight", "short", (("pedcxr_requests_in_flight", "{{instance}}"),)),
            ("Requests per second", "reqps", (("sum by (instance) (rate(pedcxr_tenant_requests_total[5m]))", "{{instance}}"),)),
            ("Time to the whole report, p95", "s", _quantiles("pedcxr_request_duration_seconds", "instance")),
            ("Versions of tenants.toml", "short", (("count by (sha256) (pedcxr_tenants_info)", "{{sha256}}"),)),
            ("Balancer: answers per second", "reqps", (('sum by (code) (rate(haproxy_backend_http_responses_total{proxy="replicas"}[5m]))', "{{code}}"),)),
            ("Balancer: requests in flight per replica", "short", (('haproxy_server_current_sessions{proxy="replicas"}', "{{server}}"),)),
            ("Balancer: replicas up", "short", (('sum(haproxy_server_status{proxy="replicas", state="UP"})', "up"),)),
            ("Balancer: lost and resent", "ops", (('sum(rate(haproxy_server_response_errors_total{proxy="replicas"}[5m]))', "lost"), ('sum(rate(haproxy_server_redispatch_warnings_total{proxy="replicas"}[5m]))', "resent"))),
        ),
    ),
}  # fmt: skip


def dashboard(name: str) -> str:
    """Return a dashboard as Grafana's JSON (schema 39), two panels per row."""
    title, panels = DASHBOARDS[name]
    source = {"type": "prometheus", "uid": "${datasource}"}
    return (
        json.dumps(
            {
                "uid": f"pedcxr-{name}",
                "title": title,
                "tags": ["pedcxr"],
                "schemaVersion": 39,
                "time": {"from": "now-6h", "to": "now"},
                "refresh": "30s",
                "templating": {"list": [{"name": "datasource", "type": "datasource", "query": "prometheus"}]},
                "panels": [
                    {
                        "id": number + 1,
                        "type": "timeseries",
                        "title": panel,
                        "datasource": source,
                        "gridPos": {"h": 8, "w": 12, "x": 12 * (number % 2), "y": 8 * (number // 2)},
                        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
                        "targets": [
                            {"refId": chr(65 + index), "expr": expr, "legendFormat": legend, "datasource": source}
                            for index, (expr, legend) in enumerate(queries)
                        ],
                    }
                    for number, (panel, unit, queries) in enumerate(panels)
                ],
            },
            indent=1,
        )
        + "\n"
    )


def files() -> dict[Path, str]:
    """Return the contents of every generated file."""
    pages = {HERE / "dashboards" / f"{name}.json": dashboard(name) for name in DASHBOARDS}
    return pages | {HERE / "rules.yml": rules()}


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text)
