"""Failures of servers, users and disks during ``pedcxr bench``: clear words and the right exit code."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pedcxr_client.bench import figures, run, schedule, watch
from pedcxr_client.cli import bench as command
from pedcxr_client.cli import output
from pedcxr_client.cli.main import main
from tests.client.batch.helpers import write_films
from tests.client.cli.bench.helpers import WORKLOAD, bench, files, reasons
from tests.support.servers.fake_engine import Answer, FakeEngine

KNEE = {"schema": 1, "stages": [], "valid": True, "knee": {"in_flight": 2, "reports_per_second": 5.0}}


def eventually(condition: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("mode", ["run", "knee"])
def test_absent_server(tmp_path: Path, capsys: Any, mode: str) -> None:
    code, result = bench(tmp_path, "http://127.0.0.1:9/v1", mode)
    assert (code, result) == (4, {})
    assert "127.0.0.1:9" in capsys.readouterr().err


def test_a_server_without_a_list_of_models_needs_a_name(engine: FakeEngine, tmp_path: Path, capsys: Any) -> None:
    engine.models_answer = Answer(status=500)
    assert bench(tmp_path, engine.url, "run") == (4, {})
    _, result = bench(tmp_path, engine.url, "run", "--model", "other")
    assert reasons(result) == []
    assert {request.json["model"] for request in engine.chats} == {"other"}


def test_a_wrong_key_names_the_tenant(engine: FakeEngine, tmp_path: Path, capsys: Any) -> None:
    error = {"message": "unknown key", "type": "x", "param": None, "code": "unauthorized"}
    engine.reply(Answer(status=401, error=error))
    code, result = bench(tmp_path, engine.url, "run", workload=WORKLOAD + '[[tenants]]\nname = "ward"\n')
    assert (code, result) == (2, {})
    assert "tenant ward: HTTP 401: unauthorized: unknown key" in capsys.readouterr().err


def test_a_wrong_key_is_found_before_films_are_prepared(engine: FakeEngine, tmp_path: Path, capsys: Any) -> None:
    engine.models_answer = Answer(status=401, error={"message": "unknown key", "code": "unauthorized"})
    assert bench(tmp_path, engine.url, "knee") == (2, {})
    assert "unknown key" in capsys.readouterr().err
    assert engine.chats == []


def test_a_report_that_fails_alone_says_how_to_allow_it(engine: FakeEngine, tmp_path: Path, capsys: Any) -> None:
    engine.answer = Answer(finish="length")
    assert bench(tmp_path, engine.url, "run") == (4, {})
    assert "reports.allow = ['truncated']" in capsys.readouterr().err
    allowed = WORKLOAD.replace("alone = 2", 'alone = 2\nallow = ["truncated"]')
    _, result = bench(tmp_path, engine.url, "run", workload=allowed)
    assert result["stages"][0]["completed"] >= 20


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Answer(raw=b'{"choices": []}', content_type="application/json"), "is not an event stream of chat completions"),
        (Answer(raw=b"<html>", content_type="text/html"), "is not an event stream of chat completions"),
        (Answer(finish=None), "alone, is aborted: the server ended the stream before the report was finished"),
        (Answer(pieces=("",)), "alone, is empty: the model wrote nothing"),
        (Answer(stall_after=1), "alone, is timeout: no response within the time limit"),
    ],
)
def test_a_failure_alone_that_cannot_be_allowed(
    engine: FakeEngine, tmp_path: Path, capsys: Any, answer: Answer, words: str
) -> None:
    engine.answer = answer
    assert bench(tmp_path, engine.url, "run", "--timeout", "3") == (4, {})
    message = capsys.readouterr().err
    assert words in message
    assert "reports.allow" not in message


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Answer(pieces=("",)), "1 texts failed their check, the first as empty"),
        (Answer(finish="length"), "1 texts failed their check, the first as truncated"),
        (Answer(pieces=("The lungs are clear. ",) * 40), "1 texts failed their check, the first as looping"),
        (Answer(error_after=2), "1 texts failed their check, the first as aborted: engine died"),
        (Answer(cut_after=2), "1 texts failed their check, the first as aborted"),
        (Answer(status=500), "1 requests failed, the first as server: HTTP 500"),
        (
            Answer(raw=b"<html>", content_type="text/html"),
            "1 requests failed, the first as server: the response is not",
        ),
        (
            Answer(raw=b"data: [DONE]\n\n"),
            "1 requests failed, the first as server: the response is not an event stream",
        ),
        (Answer(status=429, headers={"retry-after": "nan"}), None),
        (Answer(pieces=("FINDINGS: Clear lungs.",)), "texts differ from the same film's text alone"),
    ],
)
def test_bad_texts_within_a_run_are_invalid(
    engine: FakeEngine, tmp_path: Path, answer: Answer, words: str | None
) -> None:
    engine.reply(engine.answer, engine.answer, answer)  # the two films alone, and the first of the run
    code, result = bench(
        tmp_path, engine.url, "run", workload=WORKLOAD.replace("alone = 2", "alone = 2\nmax_different = 0")
    )
    if words is None:
        assert reasons(result) == []
        assert result["stages"][0]["figures"]["outcomes"]["rate_limited"] == 1
    else:
        assert code == 1
        assert [reason for reason in reasons(result) if words in reason], result["reasons"]


def test_refusals_are_bad_and_not_retried(engine: FakeEngine, tmp_path: Path) -> None:
    refused = Answer(status=429, headers={"retry-after": "0"})
    engine.reply(engine.answer, engine.answer, *[refused] * 5)
    _, result = bench(tmp_path, engine.url, "run")
    assert reasons(result) == []
    (stage,) = result["stages"]
    assert stage["figures"]["outcomes"]["rate_limited"] == 5
    assert len(engine.chats) == 2 + len(stage["samples"])


def test_counters_that_move_and_an_engine_that_restarts(engine: FakeEngine, tmp_path: Path) -> None:
    moved = threading.Event()

    def move() -> None:
        eventually(lambda: len(engine.chats) > 10)
        engine.counters |= {"vllm:mm_cache_hits_total": 7.0, "pedcxr_engine_restarts_total": 1.0}
        moved.set()

    thread = threading.Thread(target=move)
    thread.start()
    engine.reply(*[engine.answer] * 10)
    engine.answer = replace(engine.answer, hold=moved)  # the run cannot end before the counters have moved
    code, result = bench(tmp_path, engine.url, "run")
    thread.join()
    assert code == 1
    assert "closed 4: the engine was restarted" in reasons(result)
    assert "closed 4: films are unique, but vllm:mm_cache_hits rose by 7" in reasons(result)


def test_a_cache_that_no_counter_shows(engine: FakeEngine, tmp_path: Path) -> None:
    """The film costs 2 s to prepare the first time; then the server answers from its cache."""
    engine.reply(Answer(first=2), Answer(first=2))
    engine.answer = Answer(gap=0.004)
    code, result = bench(tmp_path, engine.url, "run")
    assert code == 1
    assert "a cache answers" in " ".join(result["reasons"])


def test_a_server_that_dies_keeps_what_there_is(tmp_path: Path) -> None:
    engine = FakeEngine()
    engine.__enter__()
    engine.answer = Answer(gap=0.004)
    thread = threading.Thread(target=lambda: (eventually(lambda: len(engine.chats) > 30), engine.__exit__()))
    thread.start()
    code, result = bench(tmp_path, engine.url, "run", workload=WORKLOAD.replace("seconds = 0.2", "seconds = 120"))
    thread.join()
    assert code == 4
    assert "the server no longer answers" in result["interrupted"]
    assert result["stages"][0]["figures"]["outcomes"]["ok"] > 10
    assert result["valid"] is False


def test_ctrl_c_keeps_and_marks_what_there_is(engine: FakeEngine, tmp_path: Path) -> None:
    path, out = tmp_path / "workload.toml", tmp_path / "out.json"
    write_films(tmp_path / "films", 4)
    path.write_text(WORKLOAD.replace("seconds = 0.2", "seconds = 300"))
    command = [
        sys.executable,
        "-m",
        "pedcxr_client",
        "bench",
        "run",
        "--workload",
        path,
        "--url",
        engine.url,
        "-o",
        out,
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        eventually(lambda: len(engine.chats) > 40)
        process.send_signal(signal.SIGINT)
        text, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "INVALID" in text
    assert "Traceback" not in errors
    result = json.loads(out.read_text())
    assert result["interrupted"].startswith("stopped by Ctrl-C, ")
    assert len(result["stages"][0]["samples"]) > 30


def test_too_few_films_are_refused_before_the_start(engine: FakeEngine, tmp_path: Path, capsys: Any) -> None:
    workload = WORKLOAD.replace("count = 4", 'count = 4\nunique = "film"')
    assert bench(tmp_path, engine.url, "run", workload=workload) == (2, {})
    assert "4 films, but the run sends at least 33 requests" in capsys.readouterr().err
    for mode, stages in (("certify", schedule.certify(100, 0.5, 1)), ("soak", schedule.soak(100, 0.5, 1))):
        assert bench(tmp_path, engine.url, mode, "--rate", "100", "--seconds", "0.5", workload=workload) == (2, {})
        count = sum(len(stage.times) for stage in stages)
        assert f"4 films, but the run sends at least {count} requests" in capsys.readouterr().err
    assert engine.chats == []


def test_films_that_run_out_end_the_run(engine: FakeEngine, tmp_path: Path, monkeypatch: Any) -> None:
    write_films(tmp_path / "films", 40)
    workload = WORKLOAD.replace("count = 4", 'unique = "film"').replace("seconds = 0.2", "seconds = 60")
    code, result = bench(tmp_path, engine.url, "run", workload=workload)
    assert code == 1
    assert "each of the 40 films was sent once, and the stage needs more" in " ".join(reasons(result))
    assert len(result["stages"][0]["samples"]) == 40
    monkeypatch.setattr(command, "_check_films", lambda *_: None)
    code, result = bench(tmp_path, engine.url, "knee", "--seconds", "0.2", workload=workload)
    assert (code, [stage["name"] for stage in result["stages"]]) == (1, ["closed 1", "closed 2"])


def test_empty_folder(engine: FakeEngine, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "films").mkdir()
    workload = '[films]\nsource = "folder"\npath = "films"\n'
    assert bench(tmp_path, engine.url, "run", workload=workload) == (3, {})
    assert "contains no film" in capsys.readouterr().err
    assert engine.chats == []


def test_objectives_that_cannot_be_met_end_before_the_load(engine: FakeEngine, tmp_path: Path) -> None:
    code, result = bench(tmp_path, engine.url, "certify", "--rate", "50", "--slo-e2e", "0.001")
    assert code == 1
    assert result["slo_missed"].startswith("the objectives cannot be met: no film meets E2E <= 0.001 s even alone")
    assert len(engine.chats) == 2


def test_objectives_that_are_missed_under_load(engine: FakeEngine, tmp_path: Path) -> None:
    engine.reply(Answer(), Answer())  # alone, at once
    engine.answer = Answer(first=2.6)
    workload = WORKLOAD.replace("in_flight = 4", "in_flight = 16")
    code, result = bench(tmp_path, engine.url, "run", "--slo-ttft", "2.5", workload=workload)
    assert code == 1
    assert result["slo_missed"] == "fewer than 95% of the requests meet TTFT <= 2.5 s: closed 16 (0.0%)"
    assert result["stages"][0]["figures"]["goodput"] == 0


def test_a_full_disk_loses_no_report(engine: FakeEngine, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(output.os, "link", full)
    monkeypatch.setattr(output.os, "replace", full)
    code, _ = bench(tmp_path, engine.url, "run")
    out, err = capsys.readouterr()
    assert code == 2
    assert "-o: cannot be written: No space left on device" in err
    assert "reports per minute" in out
    assert files(tmp_path) == ["workload.toml"]


@pytest.mark.parametrize("out", ["/dev/full", "closed pipe"])
def test_a_report_that_cannot_be_printed_is_in_the_files(engine: FakeEngine, tmp_path: Path, out: str) -> None:
    write_films(tmp_path / "films", 4)
    (tmp_path / "workload.toml").write_text(WORKLOAD)
    words = ["bench", "run", "--workload", tmp_path / "workload.toml", "--url", engine.url, "-o", tmp_path / "out.json"]
    if out == "/dev/full":
        stdout = os.open(out, os.O_WRONLY)
    else:
        reader, stdout = os.pipe()
        os.close(reader)
    try:
        command = [sys.executable, "-m", "pedcxr_client", *words]
        done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True)
    finally:
        os.close(stdout)
    assert "Traceback" not in done.stderr
    if out == "/dev/full":
        assert (done.returncode, done.stderr) == (2, "pedcxr: stdout: No space left on device\n")
    else:
        assert (done.returncode, done.stderr) == (141, "")
    assert files(tmp_path) == ["out.html", "out.json", "out.md", "workload.toml"]


def test_a_folder_that_cannot_be_written_is_refused_before_the_start(
    engine: FakeEngine, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(output.os, "access", lambda *_, **__: False)  # no mode binds root
    assert bench(tmp_path, engine.url, "run") == (2, {})
    assert "-o: its folder cannot be written" in capsys.readouterr().err
    assert engine.chats == []


def test_an_error_of_the_tool_keeps_what_was_measured(engine: FakeEngine, tmp_path: Path, monkeypatch: Any) -> None:
    def fails(_: object) -> bool:
        raise ZeroDivisionError

    monkeypatch.setattr(figures, "is_saturated", fails)
    with pytest.raises(ZeroDivisionError):
        bench(tmp_path, engine.url, "knee", "--seconds", "0.2")
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["interrupted"] == "ZeroDivisionError in pedcxr bench"
    assert (result["valid"], [stage["name"] for stage in result["stages"]]) == (False, ["closed 1"])


@pytest.mark.parametrize(("mode", "seconds"), [("knee", 20.0), ("soak", 15.0)])
def test_a_search_takes_the_stated_seconds(
    engine: FakeEngine, tmp_path: Path, monkeypatch: Any, mode: str, seconds: float
) -> None:
    stated = []

    async def find_knee(_: object, seconds: float, most: int) -> run.Knee:
        stated.append((seconds, most))
        raise run.Interrupted

    monkeypatch.setattr(run, "find_knee", find_knee)
    bench(tmp_path, engine.url, mode, "--seconds", "20", "--most", "2")
    assert stated == [(seconds, 2)]


def test_a_server_without_usage(engine: FakeEngine, tmp_path: Path) -> None:
    engine.answer = replace(engine.answer, usage=False)
    code, result = bench(tmp_path, engine.url, "run")
    assert "length of the reports (the server states no usage)" in result["unchecked"]
    assert result["stages"][0]["figures"]["lengths"] == {}
    code, result = bench(tmp_path, engine.url, "run", "--slo-tpot", "9", "--slo-e2e", "9")
    assert code == 1
    assert re.fullmatch(
        r"the objectives cannot be met: no film meets E2E <= 9 s and TPOT <= 9 s even alone \(the least E2E is "
        r"[0-9.]+ s, the least TPOT is unknown, since the server states no usage\)",
        result["slo_missed"],
    )


def test_numbers_of_the_server_that_are_not_finite(engine: FakeEngine, tmp_path: Path) -> None:
    engine.counters = engine.counters | {"vllm:kv_cache_usage_perc": math.nan, "vllm:num_requests_running": math.inf}
    engine.answer = replace(engine.answer, metrics={"queue_time_ms": math.nan, "time_to_first_token_ms": 2.0})
    _, result = bench(tmp_path, engine.url, "run")
    assert reasons(result) == []
    assert "NaN" not in (tmp_path / "out.json").read_text()


def test_a_clock_that_is_set_during_the_run(engine: FakeEngine, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(watch.time, "time", lambda now=time.time: now() + 60 * len(engine.chats))
    monkeypatch.setattr(watch.ClockCheck.__init__, "__defaults__", (watch.time.time, time.monotonic))
    code, result = bench(tmp_path, engine.url, "run")
    assert code == 1
    assert "the system clock was set by +" in " ".join(reasons(result))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"schema": 2, "tool": "pedcxr bench 9.0", "stages": []}, "was written by pedcxr bench 9.0 in format 2"),
        ({"schema": 1, "stages": [], "knee": None}, "holds no knee"),
        ({**KNEE, "valid": False, "reasons": ["closed 2: noise"]}, "knee.json: is INVALID (closed 2: noise); repeat"),
        ({**KNEE, "knee": {"in_flight": 2}}, "knee.json: the knee is damaged"),
        ({**KNEE, "knee": {"in_flight": 2, "reports_per_second": "many"}}, "knee.json: the knee is damaged"),
        ({**KNEE, "knee": {"in_flight": 2, "reports_per_second": 0}}, "knee.json: the knee is damaged"),
    ],
)
@pytest.mark.parametrize("mode", ["certify", "soak"])
def test_a_rate_from_another_version_or_another_mode_is_refused(
    engine: FakeEngine, tmp_path: Path, capsys: Any, content: dict[str, object], words: str, mode: str
) -> None:
    knee = tmp_path / "knee.json"
    knee.write_text(json.dumps(content))
    assert bench(tmp_path, engine.url, mode, "--from", str(knee)) == (2, {})
    assert words in capsys.readouterr().err
    assert engine.chats == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bench"], "required: MODE"),
        (["bench", "run", "-o", "out.txt"], "-o: give a name that ends in .json"),
        (["bench", "run", "--workload", "missing.toml"], "the workload: No such file"),
        (["bench", "soak", "--server-pid", "4194305"], "--server-pid: /proc shows no process 4194305"),
        (["bench", "knee", "--seconds", "0"], "must be a number above 0"),
        (["bench", "soak", "--rate", "5", "--from", "knee.json"], "--from: not allowed with argument --rate"),
        (["bench", "run", "--url", "http://elsewhere/v1"], "--insecure-http"),
    ],
)
def test_wrong_usage(arguments: list[str], words: str, capsys: Any) -> None:
    assert main(arguments) == 2
    assert words in capsys.readouterr().err


def test_without_aiohttp_the_command_names_the_extra(capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    assert main(["bench", "run"]) == 2
    assert 'pip install "pedcxr[bench]"' in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["", "knee", "certify", "soak", "run", "compare"])
def test_help_shows_no_placeholder(mode: str, capsys: Any) -> None:
    assert main(["bench", *filter(None, [mode]), "--help"]) == 0
    text = capsys.readouterr().out
    assert "usage: pedcxr bench" in text
    assert "%%" not in text
