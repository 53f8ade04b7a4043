"""The machine that the engine will run on: memory, bandwidth, arithmetic.

Sources of `KNOWN` (decimal units; dense bfloat16, no sparsity): NVIDIA's data sheets. H200 SXM 141 GB, 4.8 TB/s, 989
TFLOP/s; H100 SXM 80 GB, 3.35 TB/s, 989; A100 80GB SXM 80 GB, 2,039 GB/s, 312; L40S 48 GB, 864 GB/s, 362; L4 24 GB,
300 GB/s, 121. The CPU row is no data sheet but a rule of thumb (15 GB/s and 100 GFLOP/s of float32 a core), good for
the order of magnitude only.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pedcxr_serve.errors import ConfigError

__all__ = ["KNOWN", "Device", "detect", "recognise"]

CPU_BANDWIDTH_A_CORE, CPU_FLOPS_A_CORE = 15e9, 100e9
# For a GPU that is not in the table: the balance of an A100, the lowest here, so rather too low than too high.
_UNKNOWN_FLOPS_A_BYTE = 150


@dataclass(frozen=True, slots=True)
class Device:
    """What `plan` needs to know about one device.

    Attributes:
        name: For people.
        kind: ``cuda`` or ``cpu``.
        memory_bytes: Memory of the GPU, or of the machine.
        bandwidth_bytes_s: Reading from that memory, bytes a second.
        peak_flops: Dense bfloat16 (float32 on a CPU), operations a second.
        compute_capability: Of a GPU, else None.
        cores: CPU cores that this process may use; 0 where the machine is not at hand.
    """

    name: str
    kind: Literal["cuda", "cpu"]
    memory_bytes: int
    bandwidth_bytes_s: float
    peak_flops: float
    compute_capability: tuple[int, int] | None
    cores: int


def _gpu(name: str, gigabytes: int, gigabytes_s: float, teraflops: float, capability: tuple[int, int]) -> Device:
    return Device(name, "cuda", gigabytes * 10**9, gigabytes_s * 1e9, teraflops * 1e12, capability, 0)


def _cpu(cores: int, memory: int) -> Device:
    return Device("CPU", "cpu", memory, CPU_BANDWIDTH_A_CORE * cores, CPU_FLOPS_A_CORE * cores, None, cores)


KNOWN: Mapping[str, Device] = {
    "h200": _gpu("NVIDIA H200", 141, 4800, 989, (9, 0)),
    "h100": _gpu("NVIDIA H100 80GB", 80, 3350, 989, (9, 0)),
    "a100-80": _gpu("NVIDIA A100 80GB", 80, 2039, 312, (8, 0)),
    "l40s": _gpu("NVIDIA L40S", 48, 864, 362, (8, 9)),
    "l4": _gpu("NVIDIA L4", 24, 300, 121, (8, 9)),
    "cpu": _cpu(2, 24 * 2**30),
}


def detect(name: str = "auto", *, env: Mapping[str, str] = os.environ) -> Device:
    """The device to plan for.

    Args:
        name: ``auto`` looks at this machine (NVIDIA's driver through NVML, else the CPU); ``cpu`` means this machine's
            CPU; any other key of `KNOWN` is answered from the table, wherever this runs.
        env: Read for ``CUDA_VISIBLE_DEVICES``.

    Raises:
        ConfigError: `name` is unknown.
    """
    if name == "cpu":
        return _this_cpu()
    if name == "auto":
        return _first_gpu(env) or _this_cpu()
    if name not in KNOWN:
        raise ConfigError(f"engine.device = {name!r}: allowed is one of auto, {', '.join(KNOWN)}.")
    return KNOWN[name]


def recognise(
    name: str, memory_bytes: int, bandwidth_bytes_s: float, capability: tuple[int, int], cores: int
) -> Device:
    """A `Device` for a GPU as its driver describes it.

    One of the table gets the table's bandwidth and peak with its real memory. Variants that share a name but not the
    figures (H100 PCIe and NVL, H200 NVL, A100 PCIe and 40 GB) and all others get the driver's bandwidth and a
    guess of 150 operations a byte.
    """
    words = name.upper().replace("-", " ").split()
    key = {"H200": "h200", "H100": "h100", "A100": "a100-80", "L40S": "l40s", "L4": "l4"}
    match = next((key[word] for word in words if word in key), None)
    known = KNOWN[match] if match and not {"PCIE", "NVL", "MIG"} & set(words) else None
    if known is None or not 0.9 < memory_bytes / known.memory_bytes < 1.15:
        return Device(
            name, "cuda", memory_bytes, bandwidth_bytes_s, bandwidth_bytes_s * _UNKNOWN_FLOPS_A_BYTE, capability, cores
        )
    return replace(known, name=name, memory_bytes=memory_bytes, compute_capability=capability, cores=cores)


def _this_cpu() -> Device:
    return replace(_cpu(_cores(), _memory()), name=f"CPU ({platform.machine()}, {_cores()} cores)")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory() -> int:
    with suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemTotal:"):
                return int(line.split()[1]) * 1024
    return KNOWN["cpu"].memory_bytes


class _Memory(ctypes.Structure):
    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


def _first_gpu(env: Mapping[str, str]) -> Device | None:
    """The first visible GPU, asked through the driver's own library: no package needed, a few milliseconds."""
    visible = env.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    if visible in ("", "-1"):
        return None
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    if nvml.nvmlInit_v2() != 0:
        return None
    try:
        return _describe(nvml, visible)
    finally:
        nvml.nvmlShutdown()


def _describe(nvml: ctypes.CDLL, visible: str) -> Device | None:
    handle, memory, name = ctypes.c_void_p(), _Memory(), ctypes.create_string_buffer(96)
    major, minor, clock, width = ctypes.c_int(), ctypes.c_int(), ctypes.c_uint(), ctypes.c_uint()
    by_index = visible.isdecimal()
    found = (
        nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(int(visible)), ctypes.byref(handle))
        if by_index
        else nvml.nvmlDeviceGetHandleByUUID(visible.encode(), ctypes.byref(handle))
    )
    answers = found or (
        nvml.nvmlDeviceGetName(handle, name, ctypes.c_uint(len(name)))
        or nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory))
        or nvml.nvmlDeviceGetCudaComputeCapability(handle, ctypes.byref(major), ctypes.byref(minor))
    )
    if answers != 0:
        return None
    # NVML_CLOCK_MEM = 2; two transfers a clock.
    if nvml.nvmlDeviceGetMaxClockInfo(handle, 2, ctypes.byref(clock)) or nvml.nvmlDeviceGetMemoryBusWidth(
        handle, ctypes.byref(width)
    ):
        clock, width = ctypes.c_uint(0), ctypes.c_uint(0)
    bandwidth = clock.value * 1e6 * 2 * width.value / 8 or KNOWN["l4"].bandwidth_bytes_s
    return recognise(name.value.decode(), memory.total, bandwidth, (major.value, minor.value), _cores())
