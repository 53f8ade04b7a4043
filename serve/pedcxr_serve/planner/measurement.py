"""Read measured loads from the result files of load tests.

Two kinds of files are read: the JSON of ``pedcxr bench -o``, whose list ``stages`` has an object for each load, and the
JSON of ``vllm bench serve --save-result``, which is such an object itself. These keys are used, all others are ignored:

============================ ==========================================================================
``max_concurrency``          requests in flight of a closed loop; null for an open loop, which is not used
``completed``                number of complete reports
``request_throughput``       complete reports per second
``mean_ttft_ms``             mean time to first token
``mean_tpot_ms``             mean time per output token after the first
``total_input_tokens``       prompt tokens of the complete reports
``total_output_tokens``      tokens of the complete reports
``output_lens``              tokens of each report, optional; without it all have the mean length
``model_id``                 name of the model, optional; beside ``stages`` where there are
``valid``, ``reasons``       beside ``stages``, optional: whether the run followed the rules of the tool
``schema``                   beside ``stages``: version of the format of ``pedcxr bench``
============================ ==========================================================================
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated

import msgspec
from msgspec import Meta

from pedcxr_serve.errors import ConfigError

_SCHEMA = 1  # that of `pedcxr_client.bench.results`


@dataclass(frozen=True, slots=True)
class Load:
    """A measured closed loop.

    Attributes:
        in_flight: requests in flight.
        rate: reports per second.
        ttft, tpot: mean seconds.
        prompt_tokens, output_tokens: means of a report.
        lengths: tokens of the reports.
    """

    in_flight: int
    rate: float
    ttft: float
    tpot: float
    prompt_tokens: float
    output_tokens: float
    lengths: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Measurement:
    """The loads of one or several files, in ascending order, why the figures may not count, and of which models."""

    loads: tuple[Load, ...]
    doubts: tuple[str, ...]
    models: tuple[str, ...]

    @property
    def lengths(self) -> tuple[int, ...]:
        """The tokens of all reports."""
        return tuple(length for load in self.loads for length in load.lengths)

    @property
    def prompt_tokens(self) -> float:
        """The mean of the loads."""
        return fmean(load.prompt_tokens for load in self.loads)


_SMALLEST = 1e-9  # reports per second and milliseconds; a smaller one is 0
_Count = Annotated[int, Meta(ge=0, le=10**12)]
_Number = Annotated[float, Meta(ge=0, le=1e9)]


class _Stage(msgspec.Struct):
    max_concurrency: _Count | None = None
    completed: _Count = 0
    request_throughput: _Number | None = None
    mean_ttft_ms: _Number | None = None
    mean_tpot_ms: _Number | None = None
    total_input_tokens: _Count = 0
    total_output_tokens: _Count = 0
    output_lens: list[_Count | None] = []  # msgspec copies the default


class _File(_Stage):
    stages: list[_Stage] | None = None
    schema: int = _SCHEMA
    model_id: str = ""
    valid: bool = True
    reasons: list[str] = []


def read(paths: Sequence[Path]) -> Measurement:
    """Read result files.

    Raises:
        ConfigError: a file cannot be read, or no file has a closed loop with complete reports.
    """
    loads: list[Load] = []
    doubts: list[str] = []
    models: dict[str, None] = {}  # in their order, each once
    for path in paths:
        try:
            file = msgspec.json.decode(path.read_bytes().removeprefix(codecs.BOM_UTF8), type=_File)
        except OSError as error:
            raise ConfigError(f"--from {path}: {error.strerror or 'cannot be read'}") from error
        except msgspec.DecodeError as error:
            raise ConfigError(f"--from {path}: is not a result of a load test ({error})") from error
        if file.schema != _SCHEMA:
            raise ConfigError(
                f"--from {path}: was written by another version of pedcxr bench, in format {file.schema}; this version "
                f"reads format {_SCHEMA}: repeat the run with this version"
            )
        if not file.valid:
            doubts.append(f"{path} is INVALID: {'; '.join(file.reasons) or 'no reason is recorded'}")
        if file.model_id:
            models[file.model_id] = None
        try:
            loads += filter(None, map(_load, [file] if file.stages is None else file.stages))
        except ConfigError as error:
            raise ConfigError(f"--from {path}: {error}") from None
    if not loads:
        raise ConfigError(
            f"--from {', '.join(map(str, paths))}: has no closed loop with complete reports; use a result of "
            "`pedcxr bench knee` or of `vllm bench serve --max-concurrency N --save-result`"
        )
    return Measurement(tuple(sorted(loads, key=lambda load: load.in_flight)), tuple(doubts), tuple(models))


def _load(stage: _Stage) -> Load | None:
    rate, ttft, tpot = stage.request_throughput or 0.0, stage.mean_ttft_ms or 0.0, stage.mean_tpot_ms or 0.0
    if not (stage.max_concurrency and stage.completed and min(rate, ttft, tpot) > _SMALLEST):
        return None
    if not stage.total_output_tokens:
        raise ConfigError(
            "total_output_tokens: is 0, so the length of the reports is unknown; let the server send usage"
        )
    mean = stage.total_output_tokens / stage.completed
    lengths = tuple(length for length in stage.output_lens if length) or (max(1, round(mean)),)
    return Load(
        in_flight=stage.max_concurrency,
        rate=rate,
        ttft=ttft / 1e3,
        tpot=tpot / 1e3,
        prompt_tokens=stage.total_input_tokens / stage.completed,
        output_tokens=mean,
        lengths=lengths,
    )
