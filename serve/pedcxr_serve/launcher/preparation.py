"""What comes before any engine starts: environment, model folder, checkpoint, machine."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pedcxr_serve.checkpoint import download, inspect, revision
from pedcxr_serve.checkpoint.adapter import Adapter
from pedcxr_serve.checkpoint.inspect import Checkpoint
from pedcxr_serve.config import load
from pedcxr_serve.config.settings import ServeConfig
from pedcxr_serve.engine import process
from pedcxr_serve.engine.address import EngineAddress
from pedcxr_serve.engine.description import EngineDescription
from pedcxr_serve.errors import ConfigError
from pedcxr_serve.gateway.auth.models import ServedAdapter
from pedcxr_serve.launcher import promotion_file
from pedcxr_serve.planner import adapters, devices, plan, vllm_args
from pedcxr_serve.planner.devices import Device
from pedcxr_serve.planner.plan import EnginePlan


@dataclass(frozen=True, slots=True)
class Preparation:
    """A checkpoint and its adapters, by name, that can be served on this machine."""

    settings: ServeConfig
    folder: Path
    checkpoint: Checkpoint
    machine: Device
    adapters: Mapping[str, Adapter]

    def warnings(self) -> Iterator[str]:
        """Yield a line for each problem that does not prevent serving: of settings, adapters or the kernel cache."""
        if self.machine.slow_bfloat16 and self.settings.engine.dtype == "bfloat16":
            yield (
                "warning: engine.dtype = bfloat16: this CPU has no instructions for it (avx512_bf16, amx_bf16), and a "
                "step may take so long that the engine counts as hung; use float32"
            )
        compiles = not vllm_args.is_eager(self.machine, self.settings)
        if compiles and "TORCHINDUCTOR_CACHE_DIR" not in os.environ and process.compile_cache() is None:
            yield (
                "warning: compiled kernels are not kept: there is no cache folder that only this user can write; each "
                "start of the engine compiles them again; set XDG_CACHE_HOME"
            )
        for name, one in self.adapters.items():
            for problem in one.problems:
                yield f"warning: adapter {name}: {problem.where} {problem.what}: {problem.remedy}"

    def require_unchanged(self) -> None:
        """Raise AdapterError if the files of an adapter have changed since; see `planner.adapters`."""
        adapters.require_unchanged(self.adapters)

    def plan(self, listen: EngineAddress) -> EnginePlan:
        """Plan an engine that listens at this address; see `planner.plan.make` for the errors."""
        return plan.make(
            self.checkpoint,
            self.machine,
            self.settings,
            model_dir=self.folder,
            socket=listen,
            served_adapters=self.adapters,
        )

    def describe(self, engine_plan: EnginePlan) -> EngineDescription:
        """Return what a gateway needs to know of the planned engine."""
        shape = self.checkpoint.shape
        # The processor uses the same size: `inspect` refuses a checkpoint in which the two differ.
        side = shape.vision.image_size if shape else 0
        return EngineDescription(
            model=self.settings.served_name,
            max_new_tokens=self.settings.engine.max_new_tokens,
            slots=engine_plan.max_num_seqs,
            max_preparing=engine_plan.max_preparing,
            max_starting=engine_plan.max_starting,
            image_tokens=shape.image_tokens if shape else 0,
            image_size=(side, side),
            revision=revision.of(self.folder),
            demo=self.checkpoint.demo,
            adapters={
                name: ServedAdapter(one.revision, frozenset(self.settings.adapters[name].tenants))
                for name, one in self.adapters.items()
            },
        )


def prepare(settings: ServeConfig) -> Preparation:
    """Check everything that can be checked without starting an engine; download the model if necessary.

    Raises:
        ServeError: see `pedcxr_serve.errors`.
    """
    load.reject_environment(os.environ)
    folder = download.resolve(settings.model, settings.revision)
    checkpoint = inspect.inspect(folder)
    inspect.require_ready(checkpoint)
    loaded = adapters.inspect(settings, checkpoint)
    adapters.require_ready(loaded)
    promotion_file.require(settings, folder, loaded)
    machine = devices.detect(settings.engine.device)
    _require_kind(machine)
    _require_libnuma(machine)
    return Preparation(settings, folder, checkpoint, machine, loaded)


def _require_kind(machine: Device) -> None:
    """Refuse to start on a CPU with a plan for a GPU, or the reverse: the flags would not match."""
    local = devices.detect("auto")
    if machine.kind != local.kind:
        raise ConfigError(
            f"engine.device = {machine.name}: this machine is {local.name}; start with engine.device = auto, "
            "or use `pedcxr-serve plan` to plan for another machine"
        )


def _require_libnuma(machine: Device) -> None:
    """Check for libnuma before vLLM's CPU build (0.32) fails with an import error during its start."""
    if machine.kind != "cpu":
        return
    try:
        ctypes.CDLL("libnuma.so.1")
    except OSError:
        raise ConfigError(
            "libnuma.so.1 is not installed, and vLLM's CPU build needs it; install it "
            "(Debian, Ubuntu: apt-get install libnuma1)"
        ) from None
