"""``pedcxr batch`` from the command line: no film is reported twice or lost, whatever interrupts the run."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import resource
import signal
import stat
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pedcxr_client.batch import outage
from pedcxr_client.errors import Unavailable
from pedcxr_client.evaluation import runs
from tests.client.batch.helpers import IDS, batch, lines, reported
from tests.support.http_server import reserved_port
from tests.support.servers.fake_engine import TEXT, Answer, FakeEngine


def test_manifest_gives_one_line_per_film(engine, films, out, capsys):
    assert batch(films.parent / "manifest.csv", out, engine.url) == 0
    assert reported(out) == IDS
    line = next(line for line in lines(out) if line["id"] == "case 4")
    assert (line["schema"], line["text"], line["age"], line["sex"]) == ("pedcxr-report/1", TEXT, "5y", "F")
    assert line["model_revision"] == "rev-1"
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    stdout, err = capsys.readouterr()
    assert stdout == ""
    assert "12 reports written in" in err and "Not for diagnosis" in err
    assert "Popescu" not in out.read_text() + err, "the output identifies a film by its id only"


def test_folder_uses_paths_as_ids_and_counts_other_files(engine, films, out, capsys):
    (films / "Notes.txt").write_text("x")
    assert batch(films, out, engine.url) == 0
    assert reported(out) == Counter(f"Popescu-{number}.png" for number in range(12))
    err = capsys.readouterr().err
    assert "left out: 1 x neither DICOM nor an image (--dry-run lists them)" in err
    assert "Notes" not in err


@pytest.mark.parametrize(("characters", "code"), [("\u2028\u2029", 0), ("\ud800", 4)], ids=["line ends", "surrogate"])
def test_unusual_characters_stay_on_one_line_of_utf8(engine, films, out, characters, code):
    text = f"FINDINGS: The lungs are clear.{characters} IMPRESSION: Normal chest."
    choice = {"delta": {"content": text}, "finish_reason": "stop"}
    engine.answer = Answer(raw=f"data: {json.dumps({'choices': [choice]})}\n\ndata: [DONE]\n\n".encode())
    assert batch(films, out, engine.url) == code
    assert len(out.read_text(encoding="utf-8").splitlines()) == 12
    texts = {line["error"]["text"] if "error" in line else line["text"] for line in lines(out)}
    assert texts == {text}


def test_evaluation_reads_the_output(engine, films, out):
    engine.reply(Answer(finish="length"))
    assert batch(films.parent / "manifest.csv", out, engine.url) == 4
    run = runs.read(out)
    assert (len(run.reports), len(run.failed), run.models) == (11, 1, ("fake@rev-1",))
    assert batch(films.parent / "manifest.csv", out, engine.url) == 0
    run = runs.read(out)
    assert (len(run.reports), len(run.failed)) == (12, 0)


def test_second_run_sends_nothing(engine, films, out, capsys):
    manifest = films.parent / "manifest.csv"
    batch(manifest, out, engine.url)
    before = out.read_bytes()
    engine.reset()
    assert batch(manifest, out, engine.url) == 0
    assert not engine.chats
    assert out.read_bytes() == before
    assert "0 reports written; 12 already had a report" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "count"),
    [
        (["--concurrency", "2"], 0),
        (["--timeout", "50"], 0),
        (["--max-tokens", "77"], 12),
        (["--resize", "model"], 12),
        (["--profile", "ped-train"], 12),
        (["--assume-chest"], 12),
        (["--allow", "quality"], 12),
        ("revision", 12),
        ("words", 12),
        ("pixels", 1),
        ("age", 1),
        ("moved", 0),
    ],
    ids=lambda value: "-".join(value).strip("-") if not isinstance(value, int) else None,
)
def test_changes_that_need_a_new_report(engine, films, out, tmp_path, change, count):
    manifest = tmp_path / "manifest.csv"
    batch(manifest, out, engine.url)
    engine.reset()
    more: list[str] = []
    if change == "revision":
        engine.details, more = {"revision": "rev-2"}, ["--redo"]
    elif change == "words":
        (tmp_path / "system.txt").write_text("You are a radiologist.")
        more = ["--prompt-profile", "training", "--system-file", str(tmp_path / "system.txt")]
    elif change == "pixels":
        Image.linear_gradient("L").rotate(90).save(films / "Popescu-3.png")
    elif change == "age":
        manifest.write_text(manifest.read_text().replace(",4y,", ",5y,"))
    elif change == "moved":
        films.rename(tmp_path / "moved")
        manifest.write_text(manifest.read_text().replace("films/", "moved/"))
    else:
        more = change
    assert batch(manifest, out, engine.url, *more) == 0
    assert len(engine.chats) == count
    assert sum(reported(out).values()) == 12 + count


def test_second_id_for_a_reported_film_gets_its_own_line(engine, films, out, tmp_path):
    manifest = tmp_path / "manifest.csv"
    manifest.write_text("path,id,age,sex\nfilms/Popescu-0.png,first,5y,F\n")
    assert batch(manifest, out, engine.url) == 0
    manifest.write_text(manifest.read_text() + "films/Popescu-0.png,second,5y,F\n")
    assert batch(manifest, out, engine.url) == 0
    assert [line["id"] for line in lines(out)] == ["first", "second"]


def test_invalid_films_get_error_lines_and_do_not_affect_others(engine, films, out, tmp_path, capsys):
    (films / "broken.png").write_bytes(b"\x89PNG nothing more")
    manifest = tmp_path / "manifest.csv"
    rows = "\nfilms/missing.png,gone,5y,F\nfilms/broken.png,broken,5y,F\nfilms/Popescu-1.png,adult,30y,F"
    manifest.write_text(manifest.read_text() + rows)
    assert batch(manifest, out, engine.url) == 3
    assert reported(out) == IDS
    errors = {line["id"]: line["error"] for line in lines(out) if "error" in line}
    assert {name: (error["kind"], error["code"]) for name, error in errors.items()} == {
        "gone": ("refused", "input"),
        "broken": ("refused", "input"),
        "adult": ("refused", "blocked"),
    }
    assert "No such file" in errors["gone"]["message"]
    assert "3 refused" in capsys.readouterr().err
    assert "Popescu" not in out.read_text() and "missing.png" not in out.read_text()
    before = out.read_bytes()
    assert batch(manifest, out, engine.url) == 3, "some films still have no report"
    assert out.read_bytes() == before, "unchanged refusals get no second line"
    Image.linear_gradient("L").save(films / "missing.png")
    assert batch(manifest, out, engine.url, "--allow", "age") == 3
    assert reported(out)["gone"] == reported(out)["adult"] == 1


def test_next_run_retries_failures_of_the_server(engine, films, out, capsys):
    manifest = films.parent / "manifest.csv"
    engine.reply(Answer(finish="length"), Answer(pieces=()), Answer(status=400))
    assert batch(manifest, out, engine.url) == 4
    errors = [line["error"] for line in lines(out) if "error" in line]
    assert Counter((error["kind"], error["code"]) for error in errors) == Counter(
        [("failed", "truncated"), ("failed", "empty"), ("refused", "bad_request")]
    )
    assert {error["text"] for error in errors} == {TEXT, "", None}
    assert "9 reports written" in (err := capsys.readouterr().err)
    assert "1 refused; 2 failed" in err
    assert batch(manifest, out, engine.url) == 3
    assert sum(reported(out).values()) == 11


@contextmanager
def start(source: Path, out: Path, url: str, *more: str, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    line = [sys.executable, "-W", "error", "-m", "pedcxr_client", "batch", str(source), "-o", str(out), "--url", url]
    with subprocess.Popen([*line, "--concurrency", "3", *more], stderr=subprocess.PIPE, **options) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(condition: Any, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_killed_run_loses_and_repeats_nothing(engine, films, out):
    engine.reply(*[Answer()] * 6)
    engine.answer = Answer(stall_after=2)  # the run cannot end before it is killed
    manifest = films.parent / "manifest.csv"
    with start(manifest, out, engine.url) as process:
        wait_for(lambda: out.exists() and out.read_bytes().count(b"\n") >= 4, process)
        process.kill()
    before = sum(reported(out).values())
    assert 4 <= before <= 6
    engine.reset()
    assert batch(manifest, out, engine.url) == 0
    assert reported(out) == IDS
    late = 3  # requests of the killed run that the engine may receive only now
    assert 12 - before <= len(engine.chats) <= 12 - before + late


def test_ctrl_c_keeps_reports_and_closes_open_requests(engine, films, out):
    manifest = films.parent / "manifest.csv"
    engine.reply(*[Answer()] * 4)
    engine.answer = Answer(stall_after=2)
    with start(manifest, out, engine.url) as process:
        wait_for(lambda: len(engine.chats) == 7, process)
        process.send_signal(signal.SIGINT)
        err = process.communicate(timeout=120)[1].decode()
    assert process.returncode == 130
    assert "4 reports written" in err and "Traceback" not in err
    assert all(chat.disconnected.wait(30) for chat in engine.chats if not chat.answered.is_set())
    assert sum(reported(out).values()) == 4
    engine.reset()
    assert batch(manifest, out, engine.url) == 0
    assert reported(out) == IDS


@pytest.mark.parametrize("end", [-1, -40, 1, 10, "nul"])
def test_incomplete_last_line_is_processed_again(engine, films, out, end):
    manifest = films.parent / "manifest.csv"
    batch(manifest, out, engine.url)
    data = out.read_bytes()
    last = data.rindex(b"\n", 0, -1) + 1
    out.write_bytes(data[:last] + b"\0" * 50 if end == "nul" else data[:end] if end < 0 else data[: last + end])
    engine.reset()
    assert batch(manifest, out, engine.url) == 0
    assert len(engine.chats) == 1
    assert reported(out) == IDS


@pytest.mark.parametrize(
    "data",
    [
        b"precious",
        b"precious\n",
        b'{"a": 1}\n',
        b'{"a": 1}',
        b"[]\n",
        b'{"key": "zz"}\n',
        b'{"key": "00", "error": 1}\n',
    ],
)
def test_file_with_other_content_is_not_modified(engine, films, out, capsys, data):
    out.write_bytes(data)
    assert batch(films, out, engine.url) == 2
    assert "line 1 is not a line of pedcxr batch" in capsys.readouterr().err
    assert out.read_bytes() == data
    assert not engine.chats


@pytest.mark.parametrize("where", [".", "missing/out.jsonl", "/dev/null"])
def test_output_that_cannot_be_written(engine, films, tmp_path, capsys, where):
    assert batch(films, tmp_path / where, engine.url) == 2
    assert "pedcxr: -o: " in capsys.readouterr().err
    assert not engine.chats


def test_output_is_locked_while_a_run_writes_it(engine, films, out, capsys):
    engine.answer = Answer(stall_after=1)
    with start(films, out, engine.url) as process:
        wait_for(lambda: engine.chats, process)
        assert batch(films, out, engine.url) == 2
        assert "another run is writing this file" in capsys.readouterr().err
        process.kill()
    engine.reset()
    assert batch(films, out, engine.url) == 0, "the lock ends with the killed process"


def test_full_disk_stops_the_run_and_leaves_complete_lines(engine, films, out):
    limit = 12_000  # of about 23,000 bytes

    def limit_file_size() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    with start(films, out, engine.url, preexec_fn=limit_file_size) as process:
        err = process.communicate(timeout=120)[1].decode()
    assert process.returncode == 2
    assert "cannot be written: File too large" in err
    assert 0 < sum(reported(out).values()) < 12
    assert batch(films, out, engine.url) == 0
    assert sum(reported(out).values()) == 12


def test_lines_are_synced_to_disk(engine, films, out, monkeypatch):
    sizes: list[int] = []
    sync = os.fsync

    def spy(file: int) -> None:
        sync(file)
        sizes.append(out.stat().st_size)

    monkeypatch.setattr(os, "fsync", spy)
    batch(films, out, engine.url)
    assert sizes[-1] == out.stat().st_size
    assert len(sizes) >= 12 / 3, "a sync covers at most as many lines as there are concurrent films"


def test_folder_of_a_new_output_is_synced_before_the_first_line(engine, films, out, monkeypatch):
    folder_syncs: list[int] = []  # size of the output at each sync of its folder
    sync = os.fsync

    def spy(file: int) -> None:
        sync(file)
        if os.path.samestat(os.fstat(file), out.parent.stat()):
            folder_syncs.append(out.stat().st_size)

    monkeypatch.setattr(os, "fsync", spy)
    batch(films, out, engine.url)
    assert folder_syncs == [0]


@pytest.mark.slow
def test_server_restart_causes_no_errors(films, out, capsys):
    manifest = films.parent / "manifest.csv"
    with reserved_port() as port, FakeEngine(port=port) as engine:
        url = engine.url
        engine.reply(*[Answer()] * 3)
        engine.answer = Answer(stall_after=2)
        codes: list[int] = []
        runner = threading.Thread(target=lambda: codes.append(batch(manifest, out, url, "--give-up-after", "300")))
        runner.start()
        deadline = time.monotonic() + 120
        while len(engine.chats) < 6:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    # The server stopped during three answers. After the restart it is busy for some requests.
    with FakeEngine(port=port) as engine:
        engine.reply(*[Answer(status=503, headers={"retry-after": "0.1"})] * 4, *[Answer(status=503)] * 2)
        engine.reply(Answer(status=429, headers={"retry-after": "0.1"}))
        runner.join(300)
    assert codes == [0]
    assert reported(out) == IDS
    assert not [line for line in lines(out) if "error" in line]
    assert "the server is unavailable or busy" in capsys.readouterr().err


def test_unavailable_server_produces_no_error_lines(engine, films, out, capsys):
    engine.reply(*[Answer()] * 3)
    engine.answer = Answer(status=503)
    assert batch(films, out, engine.url, "--give-up-after", "1") == 4
    err = capsys.readouterr().err
    assert "run the same command again to resume" in err
    assert "3 reports written" in err
    assert len(lines(out)) == 3, "an outage is not an error of a film"
    engine.reset()
    assert batch(films, out, engine.url) == 0
    assert sum(reported(out).values()) == 12


def test_patience_starts_again_with_each_outage(engine, films, out, capsys):
    busy = Answer(status=503, headers={"retry-after": "0.1"})
    engine.reply(busy, Answer(), Answer(), busy, busy, Answer(), busy)
    assert batch(films, out, engine.url, "--concurrency", "1") == 0
    assert capsys.readouterr().err.count("the server is unavailable or busy") == 3

    clock, errors = iter((0.0, 0.0, 100.0, 100.0)), []

    async def poll() -> None:
        pass

    async def two_outages() -> None:
        waiter = outage.Outage(poll, 10, errors.append, clock=lambda: next(clock))
        await waiter.wait(Unavailable("first"))
        waiter.end()
        await waiter.wait(Unavailable("second"))

    asyncio.run(two_outages())
    assert [str(error) for error in errors] == ["first", "second"]


def test_retry_after_beyond_the_patience_ends_the_run(engine, films, out, capsys):
    engine.answer = Answer(status=429, headers={"retry-after": "40000"})
    began = time.monotonic()
    assert batch(films, out, engine.url) == 4
    assert time.monotonic() - began < 120, "it would wait for 11 hours, or for as long as the patience"
    assert lines(out) == []


def test_batch_waits_for_a_server_that_has_not_started(films, out, tmp_path):
    codes: list[int] = []
    with reserved_port() as port:
        url = f"http://127.0.0.1:{port}/v1"
        runner = threading.Thread(target=lambda: codes.append(batch(films, out, url, "--give-up-after", "300")))
        runner.start()
        with FakeEngine(port=port):
            runner.join(300)
    assert codes == [0]


@pytest.mark.parametrize("bad", [Answer(cut_after=2), Answer(status=500), Answer(error_after=1)])
def test_film_that_crashes_the_server_does_not_block_others(engine, films, out, bad):
    Image.linear_gradient("L").rotate(200).save(films / "Popescu-5.png")
    original = engine._chat
    marker = base64.b64encode((films / "Popescu-5.png").read_bytes()).decode()

    async def chat(request: Any, reply: Any) -> None:
        if marker in request.json["messages"][0]["content"][0]["image_url"]["url"]:
            engine._answers.appendleft(bad)
        await original(request, reply)

    engine._chat = chat
    try:
        assert batch(films, out, engine.url) == 4
    finally:
        del engine._chat
    [line] = [line for line in lines(out) if "error" in line]
    assert line["id"] == "Popescu-5.png" and line["error"]["kind"] == "failed"
    assert sum(reported(out).values()) == 11
    assert len(engine.chats) == 11 + 3


@pytest.mark.parametrize(("status", "message"), [(401, "PEDCXR_API_KEY"), (404, "model name")])
def test_error_that_affects_every_film_stops_the_run(engine, films, out, capsys, status, message):
    engine.answer = Answer(status=status)
    assert batch(films, out, engine.url) == 2
    assert message in capsys.readouterr().err
    assert lines(out) == []
    assert len(engine.chats) <= 3


def test_other_revision_after_an_outage_stops_the_run(engine, films, out, capsys):
    engine.reply(*[Answer()] * 5)

    original = engine._chat

    async def chat(request: Any, reply: Any) -> None:
        if len(engine.chats) > 5:
            engine.details = {"revision": "rev-2"}
            engine._answers.appendleft(Answer(status=503))
        await original(request, reply)

    engine._chat = chat
    try:
        assert batch(films, out, engine.url) == 2
    finally:
        del engine._chat
    assert "another model or revision" in capsys.readouterr().err
    assert {line["model_revision"] for line in lines(out)} == {"rev-1"}


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (["--age", "62"], 3, "write a number"),
        (["--allow", "everything"], 2, "is not a check"),
        (["--concurrency", "0"], 2, "must be an integer above 0"),
        (["--prompt-profile", "training"], 2, "--system-file"),
        (["--dry-run"], 2, "not allowed with"),
    ],
)
def test_usage_errors_are_reported_before_any_request(engine, films, out, capsys, more, code, message):
    assert batch(films, out, engine.url, *more) == code
    assert message in capsys.readouterr().err
    assert not engine.requests


def test_progress_bar_shows_rate_and_remaining_time(engine, films, out, capsys):
    batch(films, out, engine.url)
    assert "films/s" not in capsys.readouterr().err
    (films / "Popescu-3.png").unlink()
    Image.linear_gradient("L").rotate(77).save(films / "Popescu-99.png")
    batch(films, out, engine.url, "--progress")
    err = capsys.readouterr().err
    assert "1/1 [" in err and "films/s" in err, "the bar counts only films without a report"
