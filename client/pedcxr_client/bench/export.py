"""The same bodies for the field's tools, and their commands: aiperf and `vllm bench serve`."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pedcxr_client.bench.bodies import Supply, divide
from pedcxr_client.bench.workload import Tenant, Workload
from pedcxr_client.errors import ConfigurationError

AIPERF_VERSION = "0.13"
"""The version of aiperf whose options the commands use."""


def check(workload: Workload, tenants: tuple[Tenant, ...]) -> None:
    """Raise ConfigurationError for a load that the tools cannot send as `pedcxr bench` would, and for names of tenants.

    Each tenant's name becomes the name of files.
    """
    load = workload.load
    if load.kind not in ("closed", "poisson"):
        raise ConfigurationError(f"--export-aiperf: has no commands for load.kind = {load.kind}; use closed or poisson")
    if load.kind == "closed" and load.in_flight < len(tenants):
        raise ConfigurationError(f"--export-aiperf: {len(tenants)} tenants need load.in_flight of as many or more")
    for name in (tenant.name for tenant in tenants):
        if "/" in name or not name.isprintable():
            raise ConfigurationError(
                f"--export-aiperf: tenants: {name!r} is no file name; use printable ones without /"
            )


def write(folder: Path, supply: Supply, workload: Workload, tenants: tuple[Tenant, ...], requests: int) -> list[Path]:
    """Write one file of bodies for each tenant and each tool; return the paths. They hold films: delete them after use.

    A body that goes to aiperf is one line, which aiperf sends byte for byte. ``vllm bench serve`` takes the content of
    the user message and writes the rest itself.
    """
    paths = []
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for tenant in tenants:
            bodies = [draw.body for _ in range(requests) if (draw := supply.next(tenant)) is not None]
            if len(bodies) < requests:
                raise ConfigurationError(f"--export-aiperf: {requests} requests need as many films; add films")
            contents = [json.dumps({"content": json.loads(body)["messages"][-1]["content"]}) for body in bodies]
            for name, lines in (
                (f"{tenant.name}.aiperf.jsonl", bodies),
                (f"{tenant.name}.vllm.jsonl", [line.encode() for line in contents]),
            ):
                path = folder / name
                path.touch(mode=0o600)
                path.write_bytes(b"".join(line + b"\n" for line in lines))
                paths.append(path)
    except OSError as error:
        raise ConfigurationError(
            f"--export-aiperf: {error.strerror or 'cannot be written'}; check the folder"
        ) from error
    return paths


def commands(
    folder: Path,
    url: str,
    model: str,
    workload: Workload,
    tenants: tuple[Tenant, ...],
    metrics: Sequence[str],
    requests: int,
    key_env: str | None = None,
) -> str:
    """Return the commands, which read the key of each tenant from its variable or file.

    TOKENIZER is the checkpoint's folder. ``key_env`` is the variable of tenants that name no source.
    """
    load, root = workload.load, url.removesuffix("/v1")
    is_open = load.kind == "poisson"
    lanes = Counter(tenant.name for tenant in divide(load.in_flight, tenants))
    lines = [
        f"# aiperf {AIPERF_VERSION}: each body is sent byte for byte. Set TOKENIZER to the checkpoint's folder.",
        f"aiperf --version | grep -qF {AIPERF_VERSION}. || echo 'this aiperf is not {AIPERF_VERSION}' >&2",
    ]
    for tenant in tenants:
        key, in_flight = _key(tenant, workload, key_env), str(lanes[tenant.name])
        rate = load.rate * tenant.weight / sum(one.weight for one in tenants)
        aiperf = [
            "aiperf", "profile", "-m", model, "--url", root, "--endpoint-type", "chat", "--streaming",
            "--input-file", str(folder / f"{tenant.name}.aiperf.jsonl"), "--custom-dataset-type", "raw-payload",
            "--use-server-token-count", "--request-count", str(requests), "--artifact-dir",
            str(folder / f"{tenant.name}.aiperf"), "--ui", "none", "--no-gpu-telemetry",
            *(("--request-rate", f"{rate:g}", "--arrival-pattern", "poisson") if is_open
              else ("--concurrency", in_flight)),
            *(("--server-metrics", *metrics) if metrics else ()),
        ]  # fmt: skip
        vllm = [
            "vllm", "bench", "serve", "--backend", "openai-chat", "--base-url", root, "--endpoint",
            "/v1/chat/completions", "--model", model, "--dataset-name", "custom_image", "--dataset-path",
            str(folder / f"{tenant.name}.vllm.jsonl"), "--custom-output-len", str(workload.reports.max_tokens),
            "--enable-multimodal-chat", "--no-oversample", "--num-prompts", str(requests), "--temperature", "0",
            *(("--request-rate", f"{rate:g}") if is_open else ("--max-concurrency", in_flight)),
            "--save-result", "--result-filename", str(folder / f"{tenant.name}.vllm.json"),
        ]  # fmt: skip
        lines += [
            f'AIPERF_DATASET_MMAP_CACHE_ENABLED=false {shlex.join(aiperf)} --tokenizer "$TOKENIZER" --api-key "{key}"',
            f'{shlex.join(vllm)} --tokenizer "$TOKENIZER" --header "Authorization=Bearer {key}"',
        ]
    lines.append(f"# The files hold films. Delete them after use: rm -r {shlex.quote(str(folder))}")
    return "\n".join(lines) + "\n"


def _key(tenant: Tenant, workload: Workload, default: str | None) -> str:
    """Return the shell expression of a tenant's key, for double quotes; see `workload.key_of`."""
    if tenant.key_file and not tenant.key_env:
        return f"$(cat {shlex.quote(str(workload.path(tenant.key_file)))})"
    return f"${tenant.key_env or default or 'PEDCXR_API_KEY'}"
