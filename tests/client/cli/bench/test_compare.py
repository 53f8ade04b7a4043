"""``pedcxr bench compare``: a regression is found, noise is not, and files that cannot be compared are named."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pedcxr_client.bench import results, verdict
from pedcxr_client.bench.figures import StageRun
from pedcxr_client.bench.run import Record
from pedcxr_client.bench.workload import Films, Workload
from pedcxr_client.cli.main import main
from tests.client.cli.bench.helpers import closed, poisson, sample


def noisy(run: StageRun, factor: float, seed: int) -> StageRun:
    """Times drawn around those of the run, made longer by a factor."""
    draw = random.Random(seed)
    samples = []
    for one in run.samples:
        slower = factor * draw.gauss(1, 0.1)
        at = one.sent * factor if not run.stage.is_open else one.sent
        samples.append(sample(at, ttft=0.1 * slower, e2e=0.5 * slower, case=one.case))
    return replace(run, samples=samples)


def write(path: Path, *runs: StageRun, **changes: Any) -> str:
    load, record = Workload(), Record(stages=list(runs))
    judged = verdict.judge(record.stages, load, [])
    result = results.assemble("run", "fake", load, record, judged)
    path.write_text(json.dumps(json.loads(results.dumps(result)) | changes))
    return str(path)


@pytest.mark.parametrize("run", [closed(240), poisson(240)], ids=["closed", "open"])
def test_equal_servers_show_no_regression(tmp_path: Path, capsys: Any, run: StageRun) -> None:
    before, after = (write(tmp_path / f"{seed}.json", noisy(run, 1, seed)) for seed in (1, 2))
    assert main(["bench", "compare", before, after]) == 0
    assert capsys.readouterr().out.startswith("0 regressions, 0 improvements beyond 5%\n")


@pytest.mark.parametrize("run", [closed(240), poisson(240)], ids=["closed", "open"])
def test_a_slower_server_is_a_regression(tmp_path: Path, capsys: Any, run: StageRun) -> None:
    before, after = write(tmp_path / "a.json", noisy(run, 1, 1)), write(tmp_path / "b.json", noisy(run, 1.3, 2))
    assert main(["bench", "compare", before, after]) == 1
    out = capsys.readouterr().out
    assert "| E2E p50 |" in out
    assert ("reports per second" in out) is not run.stage.is_open
    assert out.count("regression |") >= 3
    assert main(["bench", "compare", before, after, "--tolerance", "0.6"]) == 0
    assert main(["bench", "compare", after, before]) == 0
    assert "improvement |" in capsys.readouterr().out


def test_an_invalid_run_is_named(tmp_path: Path, capsys: Any) -> None:
    before = write(tmp_path / "a.json", closed(400))
    after = write(tmp_path / "b.json", closed(400, own_cpu_s=99))
    assert main(["bench", "compare", before, after]) == 1
    assert "B is INVALID: closed 4: this process used" in capsys.readouterr().out


def test_a_noisy_machine_is_named_and_is_no_fault(tmp_path: Path, capsys: Any) -> None:
    before = write(tmp_path / "a.json", closed(240))
    after = write(tmp_path / "b.json", closed(240, calibration_s=[0.01, 0.013]))
    assert main(["bench", "compare", before, after]) == 0
    assert "- B: the machine's speed varied by" in capsys.readouterr().out


def test_other_lengths_of_the_reports_are_named(tmp_path: Path, capsys: Any) -> None:
    run = closed(400)
    longer = replace(run, samples=[replace(one, completion_tokens=60) for one in run.samples])
    main(["bench", "compare", write(tmp_path / "a.json", run), write(tmp_path / "b.json", longer)])
    assert "reports of B have +50% tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schema": 2, "tool": "pedcxr bench 9.0"}, "was written by pedcxr bench 9.0 in format 2"),
        ({"stages": 3}, "is not a result of pedcxr bench"),
        ({"stages": [{"name": "closed 4"}]}, "is damaged"),
        ({"stages": []}, "no stage in common"),
        ({"workload": Workload(films=Films(count=9)).described()}, "different workloads (films)"),
    ],
)
def test_files_that_cannot_be_compared(tmp_path: Path, capsys: Any, changes: dict[str, Any], words: str) -> None:
    before, after = write(tmp_path / "a.json", closed()), write(tmp_path / "b.json", closed(), **changes)
    assert main(["bench", "compare", before, after]) == 2
    assert words in capsys.readouterr().err


def test_a_file_of_vllm_bench_and_a_missing_one(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "vllm.json").write_text('{"completed": 3}')
    assert main(["bench", "compare", str(tmp_path / "vllm.json"), str(tmp_path / "vllm.json")]) == 2
    assert "is not a result of pedcxr bench" in capsys.readouterr().err
    assert main(["bench", "compare", str(tmp_path / "none.json"), str(tmp_path / "none.json")]) == 2
    assert "No such file" in capsys.readouterr().err
