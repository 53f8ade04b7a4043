"""The GPU benchmark: its figures and tables, its refusals, and the checkpoint with wide heads."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from pedcxr_client.request import prompts
from pedcxr_serve.checkpoint import inspect
from pedcxr_serve.demo import CHECKPOINT
from tests.benchmarks.gpu import __main__ as gpu
from tests.benchmarks.gpu import tables, wide_heads
from tests.benchmarks.gpu.fidelity import compare
from tests.benchmarks.gpu.rows import Rows, facts
from tests.benchmarks.gpu.speed import of_stage
from tests.benchmarks.transformers_baseline import Answers, Options, Question, ask
from tests.e2e.served_reports import UNSEEN, draw
from tests.support.paths import ROOT


def test_a_difference_states_how_certain_the_reference_was() -> None:
    reference = Answers([[1, 2, 3], [4, 5], [6]], ["a", "b", "c"], 1.0, [10] * 3, [[9, 8, 7, 6], [5, 0.25, 3], [2, 1]])
    result = compare(reference, [[1, 2, 3], [4, 7], [6, 8]], ["a", "x", "c"], ["a", "b", "d"])
    assert result["differences"] == [
        {"film": 1, "token": 1, "of": 2, "margin": 0.25},
        {"film": 2, "token": 1, "of": 1, "margin": 1},
    ]
    assert (result["exact"], result["served_as_drawn"], result["reference_as_drawn"]) == (1, 1, 2)
    assert (result["largest_margin_lost"], result["median_least_margin"]) == (1, 1)


def test_a_stage_of_pedcxr_bench_becomes_a_row() -> None:
    stage = {
        "max_concurrency": 16, "request_throughput": 8.0, "completed": 40, "total_input_tokens": 12_000,
        "output_lens": [350] * 39 + [12, None],
        "figures": {
            "percentiles": {"ttft": {"p50": 0.2}, "e2e": {"p50": 2.0, "p95": 2.5}, "tpot": {}},
            "outcomes": {"ok": 41}, "server_cpu_ms": {"gateway": 3.0, "api server": 62.5},
        },
    }  # fmt: skip
    row = of_stage(stage, 350)
    assert (row["in_flight"], row["reports_s"], row["prompt_tokens"], row["other_lengths"]) == (16, 8.0, 300, 1)
    assert (row["ttft_p50_s"], row["e2e_p95_s"]) == (0.2, 2.5) and "tpot_p50_s" not in row
    assert list(row["busiest_cores"].items()) == [("api server", 0.5), ("gateway", 0.02)]


def test_the_last_row_of_a_measurement_counts(tmp_path: Path) -> None:
    rows = Rows(tmp_path / "rows.jsonl")
    assert rows.read() == []
    rows.add("machine", device="NVIDIA H200", driver="570")
    rows.add("start", server="pedcxr", seconds=40.5, flags=["--", "--block-size", "32"], attention="FLASH_ATTN")
    rows.add("fidelity", variant="bfloat16", start_s=30.0, attention="FLASH_ATTN")
    rows.add("fidelity", variant="bfloat16", in_flight=32, films=200, exact=199, served_as_drawn=198,
             reference_as_drawn=197, largest_margin_lost=0.0625, median_least_margin=1.5, differences=[])  # fmt: skip
    for rate in (10.0, 20.0):
        rows.add("speed", server="pedcxr", films="full", in_flight=64, reports_s=rate, other_lengths=2,
                 busiest_cores={"worker": 1.0})  # fmt: skip
    rows.add("bench", server="pedcxr", films="full", valid=False, reasons=["closed 64: 3 requests failed"])
    rows.add("failed", failed="vllm", error="vllm serve did not start:\nno memory")
    text = tables.markdown(rows.read())
    assert "- vllm failed: no memory\n" in text
    assert "device NVIDIA H200, driver 570" in text
    assert "| pedcxr | -- --block-size 32 | 40.5 | FLASH_ATTN |" in text
    assert "| bfloat16 | FLASH_ATTN, ? | 32 | 199 of 200 | 198 | 197 | 0.0625 | 1.5 |" in text
    assert "| pedcxr | full | 64 | 20 |" in text and "| 10 |" not in text
    assert "INVALID: closed 64: 3 requests failed" in text and "64: 2 other lengths" in text


def test_the_log_tells_the_backends(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(
        "Using AttentionBackendEnum.FLASH_ATTN backend.\n"
        "Using AttentionBackendEnum.FLASH_ATTN for MMEncoderAttention.\n"
        "GPU KV cache size: 1,234,567 tokens\n"
    )
    assert facts(log) == {"attention": "FLASH_ATTN", "vision_attention": "FLASH_ATTN", "kv_tokens": "1,234,567"}


def test_a_machine_without_a_gpu_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(SystemExit, match="no GPU that NVML can see"):
        gpu.main(["-o", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_unknown_parts_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        gpu.main(["-o", str(tmp_path), "fidelty"])
    assert "unknown parts: fidelty; known are ceilings" in capsys.readouterr().err


def test_packed_packages_and_the_plugin_are_found(tmp_path: Path) -> None:
    package = tmp_path / "package_of_this_test"
    package.mkdir()
    (package / "__init__.py").write_text("")
    stale = tmp_path / "pedcxr-0.0.1.dist-info"
    stale.mkdir()
    (stale / "entry_points.txt").write_text("[vllm.general_plugins]\npedcxr = removed:register\n")
    parts, state = tmp_path / "parts", tmp_path / "state"
    parts.mkdir()
    with tarfile.open(parts / "1.tar.xz", "w:xz") as archive:
        for folder in (package, stale):
            archive.add(folder, folder.name)
    script = ROOT / "tests/benchmarks/gpu/packed.sh"
    done = subprocess.run(
        [script, parts, state, "--help"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120,
        env={"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "python -m tests.benchmarks.gpu" in done.stdout
    site = state / "site"
    assert (site / package.name).is_dir()
    [metadata] = site.glob("pedcxr-*.dist-info")
    assert "pedcxr = pedcxr_serve.vllm_plugin:register" in (metadata / "entry_points.txt").read_text()


@pytest.mark.slow
def test_wide_heads_change_no_token(tmp_path: Path) -> None:
    folder = tmp_path / "wide"
    wide_heads.create(folder)
    assert json.loads((folder / "config.json").read_text())["text_config"]["head_dim"] == 256
    assert inspect.inspect(folder).ready
    questions = [Question(str(study.film), study.prompt) for study in draw(tmp_path, range(UNSEEN, UNSEEN + 4))]
    narrow, wide = (ask(checkpoint, questions, options=Options(margins=True)) for checkpoint in (CHECKPOINT, folder))
    assert narrow.ids == wide.ids
    assert [len(margins) for margins in wide.margins] == [len(ids) + 1 for ids in wide.ids]
    assert min(map(min, wide.margins)) >= 0


@pytest.mark.slow
def test_random_weights_write_reports_of_an_exact_length(tmp_path: Path) -> None:
    film = draw(tmp_path, [UNSEEN])[0].film
    options = Options(12, random_weights=True, dtype="bfloat16")
    answers = ask(CHECKPOINT, [Question(str(film), prompts.card(None, None))] * 2, options=options)
    assert [len(ids) for ids in answers.ids] == [12, 12]
    assert answers.margins == [] and answers.prompt_tokens[0] > 64
