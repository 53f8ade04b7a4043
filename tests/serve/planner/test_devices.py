from __future__ import annotations

import os

import pytest

from pedcxr_serve.errors import ConfigError
from pedcxr_serve.planner import devices

GB = 10**9


def test_a_known_device_is_answered_from_the_table_wherever_this_runs() -> None:
    h200 = devices.detect("h200")

    assert (h200.memory_bytes, h200.bandwidth_bytes_s, h200.peak_flops) == (141 * GB, 4.8e12, 989e12)
    assert h200.compute_capability == (9, 0)


def test_the_cpu_is_this_machines() -> None:
    cpu = devices.detect("cpu")

    assert cpu.kind == "cpu"
    assert cpu.cores == len(os.sched_getaffinity(0))
    assert cpu.memory_bytes > GB


def test_a_hidden_gpu_is_not_planned_for() -> None:
    assert devices.detect("auto", env={"CUDA_VISIBLE_DEVICES": ""}).kind == "cpu"
    assert devices.detect("auto", env={"CUDA_VISIBLE_DEVICES": "-1"}).kind == "cpu"


def test_auto_answers_on_any_machine() -> None:
    assert devices.detect().memory_bytes > GB


def test_an_unknown_name_is_refused() -> None:
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
def test_a_recognised_gpu_gets_the_tables_figures_and_its_real_memory(name: str, memory: int, key: str) -> None:
    found = devices.recognise(name, memory, 1e9, (9, 0), 16)

    known = devices.KNOWN[key]
    assert (found.bandwidth_bytes_s, found.peak_flops) == (known.bandwidth_bytes_s, known.peak_flops)
    assert (found.name, found.memory_bytes, found.cores) == (name, memory, 16)


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
def test_another_gpu_gets_the_drivers_bandwidth_and_a_cautious_peak(name: str, memory: int) -> None:
    found = devices.recognise(name, memory, 2e12, (8, 9), 8)

    assert (found.bandwidth_bytes_s, found.peak_flops) == (2e12, 300e12)
