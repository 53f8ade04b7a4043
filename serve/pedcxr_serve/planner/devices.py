"""The device that the engine runs on: memory, bandwidth, arithmetic throughput.

Sources of `TABLE` (decimal units; dense bfloat16, no sparsity): NVIDIA's data sheets. H200 SXM 141 GB, 4.8 TB/s, 989
TFLOP/s; H100 SXM 80 GB, 3.35 TB/s, 989; A100 80GB SXM 80 GB, 2,039 GB/s, 312; L40S 48 GB, 864 GB/s, 362; L4 24 GB,
300 GB/s, 121. The CPU row is a rule of thumb (15 GB/s and 100 GFLOP/s of float32 per core), correct to the order of
magnitude.
"""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Literal

from pedcxr_serve.errors import ConfigError

CPU_BANDWIDTH_PER_CORE, CPU_FLOPS_PER_CORE = 15e9, 100e9
# For a GPU that is not in the table: the ratio of an A100, which is the lowest in the table and so underestimates.
_DEFAULT_FLOPS_PER_BYTE = 150


@dataclass(frozen=True, slots=True)
class Device:
    """The properties of a device that the plan depends on.

    Attributes:
        memory_bytes: Memory of the GPU, or of the machine or container.
        bandwidth_bytes_s: Read bandwidth of that memory in bytes per second.
        peak_flops: Operations per second in dense bfloat16 (float32 on a CPU).
        compute_capability: (major, minor) of a GPU, None for a CPU.
        cores: CPU cores available to this process; 0 if the device is not in this machine.
        slow_bfloat16: whether this is a CPU without instructions for bfloat16, which takes far longer there.
    """

    name: str
    kind: Literal["cuda", "cpu"]
    memory_bytes: int
    bandwidth_bytes_s: float
    peak_flops: float
    compute_capability: tuple[int, int] | None
    cores: int
    slow_bfloat16: bool = False


def _gpu(name: str, gigabytes: int, gigabytes_s: float, teraflops: float, capability: tuple[int, int]) -> Device:
    return Device(name, "cuda", gigabytes * 10**9, gigabytes_s * 1e9, teraflops * 1e12, capability, 0)


def _cpu(cores: int, memory: int) -> Device:
    return Device("CPU", "cpu", memory, CPU_BANDWIDTH_PER_CORE * cores, CPU_FLOPS_PER_CORE * cores, None, cores)


TABLE: Mapping[str, Device] = {
    "h200": _gpu("NVIDIA H200", 141, 4800, 989, (9, 0)),
    "h100": _gpu("NVIDIA H100 80GB", 80, 3350, 989, (9, 0)),
    "a100-80": _gpu("NVIDIA A100 80GB", 80, 2039, 312, (8, 0)),
    "l40s": _gpu("NVIDIA L40S", 48, 864, 362, (8, 9)),
    "l4": _gpu("NVIDIA L4", 24, 300, 121, (8, 9)),
    "cpu": _cpu(2, 24 * 2**30),
}


def detect(name: str = "auto", *, env: Mapping[str, str] = os.environ) -> Device:
    """Return the device to plan for.

    Args:
        name: ``auto`` for the first visible GPU of this machine (through NVML), otherwise its CPU; ``cpu`` for the
            CPU of this machine; any other key of `TABLE` for that row of the table.
        env: The environment, for ``CUDA_VISIBLE_DEVICES``. Its numbers are those of NVML and nvidia-smi, also for the
            engine (`pedcxr_serve.planner.vllm_args.env`).

    Raises:
        ConfigError: `name` is not a key of `TABLE`.
    """
    if name == "cpu":
        return _this_cpu()
    if name == "auto":
        return _first_gpu(env) or _this_cpu()
    if name not in TABLE:
        raise ConfigError(f"engine.device = {name!r}: must be one of auto, {', '.join(TABLE)}.")
    return TABLE[name]


def recognise(
    name: str, memory_bytes: int, bandwidth_bytes_s: float, capability: tuple[int, int], cores: int
) -> Device:
    """Return the `Device` for a GPU with the properties that its driver reports.

    A GPU of the table gets bandwidth and peak from the table, and its actual memory. Other GPUs get the driver's
    bandwidth and an estimate of 150 operations per byte. These include variants of the same name with other figures:
    H100 PCIe and NVL, H200 NVL, A100 PCIe and 40 GB.
    """
    words = name.upper().replace("-", " ").split()
    key = {"H200": "h200", "H100": "h100", "A100": "a100-80", "L40S": "l40s", "L4": "l4"}
    match = next((key[word] for word in words if word in key), None)
    row = TABLE[match] if match and not {"PCIE", "NVL", "MIG"} & set(words) else None
    if row is None or not 0.9 < memory_bytes / row.memory_bytes < 1.15:
        peak_flops = bandwidth_bytes_s * _DEFAULT_FLOPS_PER_BYTE
        return Device(name, "cuda", memory_bytes, bandwidth_bytes_s, peak_flops, capability, cores)
    return replace(row, name=name, memory_bytes=memory_bytes, compute_capability=capability, cores=cores)


def _this_cpu() -> Device:
    name = f"CPU ({platform.machine()}, {_cores()} cores)"
    return replace(_cpu(_cores(), _memory()), name=name, slow_bfloat16=lacks_bfloat16(Path("/proc/cpuinfo")))


def lacks_bfloat16(cpuinfo: Path) -> bool:
    """Return whether an x86 CPU has neither AVX-512 BF16 nor AMX, by its flags; False where these are unknown."""
    with suppress(OSError):
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("flags"):
                return {"avx512_bf16", "amx_bf16"}.isdisjoint(line.split())
    return False


def _cores() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *(math.floor(limit) for limit in cgroup_cores())]))


def _memory() -> int:
    return min([_machine_memory(), *cgroup_memory()])


def _machine_memory() -> int:
    with suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemTotal:"):
                return int(line.split()[1]) * 1024
    return TABLE["cpu"].memory_bytes


def cgroup_cores(root: Path = Path("/")) -> Iterator[float]:
    """Yield the processor limits of the container and of each group around it, in cores (``docker run --cpus``)."""
    for folder in _cgroup_folders(root, "cpu"):
        with suppress(OSError, ValueError):
            quota, period = (folder / "cpu.max").read_text().split()
            if quota != "max":
                yield int(quota) / int(period)
        with suppress(OSError, ValueError):  # cgroup version 1, where -1 means no limit
            quota_us = int((folder / "cpu.cfs_quota_us").read_text())
            if quota_us > 0:
                yield quota_us / int((folder / "cpu.cfs_period_us").read_text())


def cgroup_memory(root: Path = Path("/")) -> Iterator[int]:
    """Yield the memory limits of the container and of each group around it, in bytes (``docker run --memory``)."""
    for folder in _cgroup_folders(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):  # cgroup versions 2 and 1
            with suppress(OSError, ValueError):  # "max" is no number
                yield int((folder / name).read_text())


def _cgroup_folders(root: Path, controller: str) -> Iterator[Path]:
    """Yield the control groups of this process for a controller, innermost first."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number != "0" and controller not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / ("" if number == "0" else controller)
        inner = top / path.lstrip("/")
        yield from (folder for folder in (inner, *inner.parents) if folder == top or top in folder.parents)


def _first_gpu(env: Mapping[str, str]) -> Device | None:
    """Return the first visible GPU; None without GPU, without driver, or without nvidia-ml-py."""
    visible = env.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    if visible in ("", "-1"):
        return None
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        return _describe(pynvml, visible)
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()


def _describe(nvml: ModuleType, visible: str) -> Device:
    if visible.isdecimal():
        gpu = nvml.nvmlDeviceGetHandleByIndex(int(visible))
    else:
        gpu = nvml.nvmlDeviceGetHandleByUUID(visible)
    try:
        clock_mhz = nvml.nvmlDeviceGetMaxClockInfo(gpu, nvml.NVML_CLOCK_MEM)
        bandwidth = clock_mhz * 1e6 * 2 * nvml.nvmlDeviceGetMemoryBusWidth(gpu) / 8  # two transfers per clock cycle
    except nvml.NVMLError:  # not supported by every driver
        bandwidth = 0.0
    return recognise(
        nvml.nvmlDeviceGetName(gpu),
        nvml.nvmlDeviceGetMemoryInfo(gpu).total,
        bandwidth or TABLE["l4"].bandwidth_bytes_s,
        nvml.nvmlDeviceGetCudaComputeCapability(gpu),
        _cores(),
    )
