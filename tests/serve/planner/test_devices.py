"""Devices from the table, from this machine, and from a simulated NVML."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from pedcxr_serve.checkpoint import inspect
from pedcxr_serve.config import load
from pedcxr_serve.demo import CHECKPOINT
from pedcxr_serve.errors import ConfigError
from pedcxr_serve.launcher.preparation import Preparation
from pedcxr_serve.planner import devices

GB = 10**9


def test_device_of_the_table_does_not_depend_on_this_machine() -> None:
    h200 = devices.detect("h200")

    assert (h200.memory_bytes, h200.bandwidth_bytes_s, h200.peak_flops) == (141 * GB, 4.8e12, 989e12)
    assert h200.compute_capability == (9, 0)


def test_cpu_is_that_of_this_machine() -> None:
    cpu = devices.detect("cpu")

    assert cpu.kind == "cpu"
    assert cpu.cores == len(os.sched_getaffinity(0))
    assert cpu.memory_bytes > GB


def test_hidden_gpu_is_ignored() -> None:
    assert devices.detect("auto", env={"CUDA_VISIBLE_DEVICES": ""}).kind == "cpu"
    assert devices.detect("auto", env={"CUDA_VISIBLE_DEVICES": "-1"}).kind == "cpu"


def test_auto_returns_a_device_on_any_machine() -> None:
    assert devices.detect().memory_bytes > GB


def test_unknown_name_is_rejected() -> None:
    with pytest.raises(ConfigError, match=r"engine.device = 'tpu'.*h200"):
        devices.detect("tpu")


@pytest.mark.parametrize(
    ("name", "memory", "key"),
    [
        ("NVIDIA H200", 150_754_820_096, "h200"),
        ("NVIDIA H100 80GB HBM3", 85_520_809_984, "h100"),
        ("NVIDIA A100-SXM4-80GB", 85_899_345_920, "a100-80"),
        ("NVIDIA L40S", 48_305_799_168, "l40s"),
        ("NVIDIA L4", 24_152_899_584, "l4"),
    ],
)
def test_gpu_of_the_table_gets_its_figures_and_actual_memory(name: str, memory: int, key: str) -> None:
    device = devices.recognise(name, memory, 1e9, (9, 0), 16)

    row = devices.TABLE[key]
    assert (device.bandwidth_bytes_s, device.peak_flops) == (row.bandwidth_bytes_s, row.peak_flops)
    assert (device.name, device.memory_bytes, device.cores) == (name, memory, 16)


@pytest.mark.parametrize(
    ("name", "memory"),
    [
        ("NVIDIA H100 PCIe", 80 * GB),
        ("NVIDIA H100 NVL", 94 * GB),
        ("NVIDIA A100-SXM4-40GB", 40 * GB),
        ("NVIDIA H200 MIG 1g.18gb", 18 * GB),
        ("NVIDIA L40", 48 * GB),
        ("NVIDIA RTX 6000", 48 * GB),
    ],
)
def test_other_gpu_gets_the_bandwidth_of_the_driver_and_a_low_peak(name: str, memory: int) -> None:
    device = devices.recognise(name, memory, 2e12, (8, 9), 8)

    assert (device.bandwidth_bytes_s, device.peak_flops) == (2e12, 300e12)


class NVMLError(Exception):
    pass


class Nvml(SimpleNamespace):
    """The functions of pynvml that `devices` calls, for a machine with two GPUs."""

    NVMLError = NVMLError
    NVML_CLOCK_MEM = 2
    gpus: ClassVar = {0: ("NVIDIA RTX 6000", 48 * GB), 1: ("NVIDIA L4", 24 * GB), "GPU-8f1d": ("NVIDIA L4", 24 * GB)}
    has_driver, has_clock, open_sessions = True, True, 0

    def nvmlInit(self) -> None:
        if not self.has_driver:
            raise NVMLError
        self.open_sessions += 1

    def nvmlShutdown(self) -> None:
        self.open_sessions -= 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> tuple[str, int]:
        if index not in self.gpus:
            raise NVMLError
        return self.gpus[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> tuple[str, int]:
        return self.gpus[uuid]

    def nvmlDeviceGetName(self, gpu: tuple[str, int]) -> str:
        return gpu[0]

    def nvmlDeviceGetMemoryInfo(self, gpu: tuple[str, int]) -> Any:
        return SimpleNamespace(total=gpu[1])

    def nvmlDeviceGetCudaComputeCapability(self, gpu: tuple[str, int]) -> tuple[int, int]:
        return 8, 9

    def nvmlDeviceGetMaxClockInfo(self, gpu: tuple[str, int], kind: int) -> int:
        if not self.has_clock or kind != self.NVML_CLOCK_MEM:
            raise NVMLError
        return 10_000  # MHz

    def nvmlDeviceGetMemoryBusWidth(self, gpu: tuple[str, int]) -> int:
        return 384


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Nvml:
    nvml = Nvml()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    return nvml


@pytest.mark.parametrize(
    ("env", "name"),
    [
        ({}, "NVIDIA RTX 6000"),
        ({"CUDA_VISIBLE_DEVICES": "1,0"}, "NVIDIA L4"),
        ({"CUDA_VISIBLE_DEVICES": "GPU-8f1d"}, "NVIDIA L4"),
    ],
)
def test_auto_returns_the_first_visible_gpu(nvml: Nvml, env: dict[str, str], name: str) -> None:
    device = devices.detect("auto", env=env)

    assert (device.name, device.kind, device.compute_capability) == (name, "cuda", (8, 9))
    assert device.cores == len(os.sched_getaffinity(0))
    assert nvml.open_sessions == 0


def test_bandwidth_is_computed_from_clock_and_bus_width(nvml: Nvml) -> None:
    assert devices.detect("auto", env={}).bandwidth_bytes_s == 10_000e6 * 2 * 384 / 8
    nvml.has_clock = False
    assert devices.detect("auto", env={}).bandwidth_bytes_s == devices.TABLE["l4"].bandwidth_bytes_s


def test_auto_is_the_cpu_without_driver_gpu_or_nvidia_ml_py(nvml: Nvml, monkeypatch: pytest.MonkeyPatch) -> None:
    assert devices.detect("auto", env={"CUDA_VISIBLE_DEVICES": "7"}).kind == "cpu"
    assert nvml.open_sessions == 0
    nvml.has_driver = False
    assert devices.detect("auto", env={}).kind == "cpu"
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert devices.detect("auto", env={}).kind == "cpu"


def cgroup(root: Path, lines: str, **files: str) -> Path:
    """Write a /proc and a /sys/fs/cgroup; ``__`` in the names of files stands for a slash."""
    for name, text in {"proc/self/cgroup": lines, **files}.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_limits_of_a_container(tmp_path: Path) -> None:
    """Docker with --cpus 1.5 --memory 8g, as seen from inside (cgroup version 2)."""
    files = {"sys/fs/cgroup/cpu.max": "150000 100000\n", "sys/fs/cgroup/memory.max": "8589934592\n"}
    root = cgroup(tmp_path, "0::/\n", **files)
    assert [*devices.cgroup_cores(root)] == [1.5]
    assert [*devices.cgroup_memory(root)] == [8 * 2**30]


def test_limits_of_the_groups_around_a_process(tmp_path: Path) -> None:
    """A systemd unit with MemoryMax in a slice with CPUQuota."""
    folder = "sys/fs/cgroup/system.slice"
    files = {
        f"{folder}/cpu.max": "400000 100000",
        f"{folder}/pedcxr.service/cpu.max": "max 100000",
        f"{folder}/memory.max": "max",
        f"{folder}/pedcxr.service/memory.max": "34359738368",
    }
    root = cgroup(tmp_path, "0::/system.slice/pedcxr.service\n", **files)
    assert [*devices.cgroup_cores(root)] == [4.0]
    assert [*devices.cgroup_memory(root)] == [32 * 2**30]


def test_limits_of_cgroup_version_1(tmp_path: Path) -> None:
    """Inside a container the path is that of the host, and the container's group is mounted at the top."""
    files = {
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "17179869184",
    }
    root = cgroup(tmp_path, "4:memory:/docker/0123\n2:cpu,cpuacct:/docker/0123\n1:name=systemd:/\n", **files)
    assert [*devices.cgroup_cores(root)] == [2.0]
    assert [*devices.cgroup_memory(root)] == [16 * 2**30]
    (root / "sys/fs/cgroup/cpu/cpu.cfs_quota_us").write_text("-1")
    assert [*devices.cgroup_cores(root)] == []


def test_no_limits_without_control_groups(tmp_path: Path) -> None:
    assert [*devices.cgroup_cores(tmp_path), *devices.cgroup_memory(tmp_path)] == []


def test_plan_counts_with_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "cgroup_cores", lambda: iter([0.5]))
    monkeypatch.setattr(devices, "cgroup_memory", lambda: iter([3 * 2**30, 2**62]))
    cpu = devices.detect("cpu")
    assert (cpu.cores, cpu.memory_bytes) == (1, 3 * 2**30)


@pytest.mark.parametrize(
    ("flags", "slow"),
    [
        ("fpu avx avx2 fma", True),
        ("avx512f avx512_bf16", False),
        ("avx512f amx_tile amx_bf16", False),
    ],
)
def test_bfloat16_is_slow_on_a_cpu_without_instructions_for_it(tmp_path: Path, flags: str, slow: bool) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
    assert devices.lacks_bfloat16(cpuinfo) is slow
    cpuinfo.write_text("processor\t: 0\nFeatures\t: fp asimd bf16\n")  # aarch64
    assert not devices.lacks_bfloat16(cpuinfo)
    assert not devices.lacks_bfloat16(tmp_path / "absent")


@pytest.mark.parametrize(("dtype", "warned"), [("bfloat16", True), ("float32", False), ("auto", False)])
def test_slow_bfloat16_is_a_warning(dtype: str, warned: bool) -> None:
    machine = replace(devices.TABLE["cpu"], slow_bfloat16=True)
    settings = load.load(None, {"engine.dtype": dtype})
    prepared = Preparation(settings, CHECKPOINT, inspect.inspect(CHECKPOINT), machine, {})
    assert any("bfloat16" in line for line in prepared.warnings()) is warned
