"""The result of a run as one JSON file: raw samples, figures in the keys of `vllm bench serve`, the verdict."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pedcxr_client.bench import figures, watch
from pedcxr_client.bench.figures import Figures, StageRun
from pedcxr_client.bench.run import Knee, Record
from pedcxr_client.bench.schedule import Stage
from pedcxr_client.bench.send import Sample
from pedcxr_client.bench.verdict import Verdict, digests
from pedcxr_client.bench.watch import Scrapes
from pedcxr_client.bench.workload import Objectives, Workload
from pedcxr_client.errors import ConfigurationError
from pedcxr_client.types import __version__

SCHEMA = 1
"""Version of the file format. A file of another version is refused."""
_DIGITS = 6
_GOOD_SHARE = 0.95  # of the requests of a stage that meets the objectives, so that its p95 meets them too


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A finished run.

    Attributes:
        mode: ``knee``, ``certify``, ``soak`` or ``run``.
        figures: in the order of the record's stages.
        missed: how the objectives are missed, or "".
    """

    mode: str
    model: str
    workload: Workload
    record: Record
    verdict: Verdict
    figures: tuple[Figures, ...]
    knee: Knee | None = None
    missed: str = ""

    @property
    def slo(self) -> Objectives:
        """The objectives."""
        return self.workload.slo

    @property
    def rated(self) -> list[Figures]:
        """The stages that the objectives are for: not those of a search, which goes beyond them on purpose."""
        pairs = zip(self.record.stages, self.figures, strict=True)
        return [value for run, value in pairs if run.stage.is_open or self.mode == "run"]

    def meets_objectives(self, value: Figures) -> bool:
        """Return whether enough requests of a stage are good; True without objectives."""
        return not self.slo.text() or good_share(value) >= _GOOD_SHARE

    def as_dict(self) -> dict[str, Any]:
        """Return the content of the JSON file. It holds no text of a report, no film and no key."""
        record, verdict = self.record, self.verdict
        return {
            "schema": SCHEMA,
            "tool": f"pedcxr bench {__version__}",
            "mode": self.mode,
            "date": datetime.fromtimestamp(record.started, UTC).isoformat(timespec="seconds"),
            "model_id": self.model,
            "valid": verdict.is_valid,
            "reasons": list(verdict.reasons),
            "unchecked": list(verdict.unchecked),
            "noisy": verdict.noisy,
            "interrupted": record.interrupted,
            "slo": asdict(self.slo),
            "slo_missed": self.missed,
            "knee": None if self.knee is None else self.knee._asdict(),
            "workload": self.workload.described(),
            "machine": watch.machine(),
            "server": record.server,
            "alone": [_rounded(asdict(sample)) for sample in record.alone],
            "stages": [_stage(run, value, self.model) for run, value in zip(record.stages, self.figures, strict=True)],
        }


def _stage(run: StageRun, value: Figures, model: str) -> dict[str, Any]:
    stage = run.stage
    settings = {
        "name": stage.name,
        "seconds": stage.seconds,
        "in_flight": stage.in_flight,
        "rate": stage.rate,
        "begin": run.begin,
        "end": run.end,
        "window": run.window,
        "interrupted": run.interrupted,
        "retries": 0,  # a request is sent once; a refusal counts as bad
        "calibration_s": run.calibration_s,
        "processes": [[asdict(process) for process in processes] for processes in run.processes],
        "metrics": asdict(run.scrapes),
        "samples": [asdict(sample) for sample in run.samples],
    }
    rounded: dict[str, Any] = _rounded(settings | {"figures": asdict(value), **vllm_keys(run, value, model)})
    return rounded


def vllm_keys(run: StageRun, value: Figures, model: str) -> dict[str, Any]:
    """Return the figures of a stage under the names that `vllm bench serve --save-result` writes, texts left out."""
    samples = run.in_window()
    good = [sample for sample in samples if sample.is_ok]
    gaps = figures.gaps(good)
    total_input = sum(sample.prompt_tokens or 0 for sample in good)
    keys: dict[str, Any] = {
        "backend": "openai-chat",
        "model_id": model,
        "num_prompts": len(samples),
        "request_rate": run.stage.rate or "inf",
        "max_concurrency": run.stage.in_flight or None,
        "duration": value.duration,
        "completed": value.completed,
        "failed": value.failed,
        "total_input_tokens": total_input,
        "total_output_tokens": sum(sample.completion_tokens or 0 for sample in good),
        "request_throughput": value.rate.value,
        "request_goodput": value.goodput,
        "output_throughput": value.output_tokens,
        "total_token_throughput": value.output_tokens + total_input / value.duration,
        "max_concurrent_requests": figures.max_in_flight(run.samples),
        "input_lens": [sample.prompt_tokens for sample in samples],
        "output_lens": [sample.completion_tokens for sample in samples],
        "ttfts": [sample.ttft for sample in samples],
        "itls": [sample.gaps for sample in samples],
        "latencies": [sample.e2e for sample in samples],
        "start_times": [sample.sent for sample in samples],
        "queue_times": [sample.sent - sample.scheduled for sample in samples],
        "errors": [sample.message for sample in samples],
    }
    series: dict[str, Sequence[float | None]] = {
        "ttft": [sample.ttft for sample in good],
        "tpot": [sample.tpot for sample in good],
        "itl": gaps,
        "e2el": [sample.e2e for sample in good],
    }
    for name, values in series.items():
        times_ms = [1e3 * one for one in values if one is not None]
        keys |= {
            f"mean_{name}_ms": statistics.fmean(times_ms) if times_ms else None,
            f"median_{name}_ms": statistics.median(times_ms) if times_ms else None,
            f"std_{name}_ms": statistics.pstdev(times_ms) if times_ms else None,
            f"p99_{name}_ms": figures.quantile(times_ms, 0.99) if times_ms else None,
        }
    return keys


def read(path: str) -> dict[str, Any]:
    """Read a result file. Raise ConfigurationError if it is not one, or of another version."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "is not JSON"
        raise ConfigurationError(f"{path}: {reason}; give a result of pedcxr bench") from error
    if not isinstance(value, dict) or not isinstance(value.get("stages"), list) or "schema" not in value:
        raise ConfigurationError(f"{path}: is not a result of pedcxr bench; give the JSON file of -o")
    if value["schema"] != SCHEMA:
        raise ConfigurationError(
            f"{path}: was written by {value.get('tool', 'another tool')} in format {value['schema']}; this version "
            f"reads format {SCHEMA}: repeat the run with this version"
        )
    return value


def read_knee(path: str) -> Knee:
    """Read the knee of a result file. Raise ConfigurationError without one, and if the run is invalid."""
    result = read(path)
    if not (knee := result.get("knee")):
        raise ConfigurationError(f"{path}: holds no knee; give a result of pedcxr bench knee")
    if not result.get("valid"):
        reason = next(iter(result.get("reasons") or ()), "no reason is stated")
        raise ConfigurationError(f"{path}: is INVALID ({reason}); repeat the search, or state the rate with --rate")
    try:
        in_flight, rate = float(knee["in_flight"]), float(knee["reports_per_second"])
        if not (0 <= in_flight < math.inf and 0 < rate < math.inf):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise ConfigurationError(f"{path}: the knee is damaged; repeat the search") from None
    return Knee(in_flight, rate, bool(knee.get("is_reached", True)))


def stages(result: Mapping[str, Any]) -> list[StageRun]:
    """Return the raw stages of a result file, so that figures can be derived again. Raise ConfigurationError."""
    try:
        return [_read_stage(stage) for stage in result["stages"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigurationError("the result file: is damaged; repeat the run") from error


def _read_stage(raw: Mapping[str, Any]) -> StageRun:
    stage = Stage(raw["name"], raw["seconds"], in_flight=raw["in_flight"], rate=raw["rate"])
    samples = [Sample(**sample) for sample in raw["samples"]]
    return StageRun(stage, samples, raw["begin"], raw["end"], Scrapes(**raw["metrics"]))


def assemble(
    mode: str, model: str, workload: Workload, record: Record, verdict: Verdict, knee: Knee | None = None
) -> Result:
    """Derive the figures of a record, and whether they miss the objectives."""
    alone = digests(record.alone)
    values = tuple(figures.figures(run, workload.slo, alone) for run in record.stages)
    result = Result(
        mode=mode, model=model, workload=workload, record=record, verdict=verdict, figures=values, knee=knee
    )
    return replace(result, missed=_missed(result))


def good_share(value: Figures) -> float:
    """Return the share of a stage's requests that meet every objective."""
    return value.goodput * value.duration / max(1, value.completed + value.failed)


def _missed(result: Result) -> str:
    """Return how the objectives are missed, or ""."""
    words, record = result.slo.text(), result.record
    if not words or record.interrupted:
        return ""
    if not record.stages:
        return f"the objectives cannot be met: no film meets {words} even alone ({_least(result)})"
    bad = [f"{value.name} ({good_share(value):.1%})" for value in result.rated if not result.meets_objectives(value)]
    return f"fewer than {_GOOD_SHARE:.0%} of the requests meet {words}: {', '.join(bad)}" if bad else ""


def _least(result: Result) -> str:
    """Return the least time of a film alone, for each objective."""
    words = []
    for name, attribute in (("ttft", "ttft_user"), ("e2e", "e2e_user"), ("tpot", "tpot")):
        if getattr(result.slo, name):
            times = [time for sample in result.record.alone if (time := getattr(sample, attribute)) is not None]
            least = f"{min(times):.3g} s" if times else "unknown, since the server states no usage"
            words.append(f"the least {name.upper()} is {least}")
    return ", ".join(words)


def _rounded(value: Any) -> Any:
    """Round every number of seconds to a microsecond."""
    if isinstance(value, float):
        return round(value, _DIGITS)
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value


def dumps(result: Result) -> str:
    """Return the JSON text."""
    return json.dumps(result.as_dict(), separators=(",", ":"), allow_nan=False) + "\n"
