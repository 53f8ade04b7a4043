"""``pedcxr batch``, through the shell's door: nothing twice, nothing lost, whatever happens on the way."""

from __future__ import annotations

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

from pedcxr_client.cli.main import main
from pedcxr_client.evaluation import runs
from tests.support.fake_engine import TEXT, Answer, FakeEngine


@pytest.fixture
def films(tmp_path) -> Path:
    """A folder of 12 films that differ, and a manifest beside them."""
    folder = tmp_path / "films"
    folder.mkdir()
    for number in range(12):
        Image.linear_gradient("L").rotate(number).save(folder / f"Popescu-{number}.png")
    rows = [f"films/Popescu-{number}.png,case {number},{number + 1}y,F" for number in range(12)]
    (tmp_path / "manifest.csv").write_text("\n".join(["path,id,age,sex", *rows]))
    return folder


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out.jsonl"


def batch(source: Path, out: Path, url: str, *more: str) -> int:
    return main(["batch", str(source), "-o", str(out), "--url", url, "--concurrency", "3", *more])


def lines(out: Path) -> list[dict[str, Any]]:
    data = out.read_bytes()
    assert data.endswith(b"\n") or not data
    return [json.loads(line) for line in data.splitlines()]


def reported(out: Path) -> Counter[str]:
    return Counter(line["id"] for line in lines(out) if "text" in line)


IDS = Counter(f"case {number}" for number in range(12))


def test_a_manifest_becomes_a_line_a_film(engine, films, out, capsys):
    assert batch(films.parent / "manifest.csv", out, engine.url) == 0
    assert reported(out) == IDS
    line = next(line for line in lines(out) if line["id"] == "case 4")
    assert (line["schema"], line["text"], line["age"], line["sex"]) == ("pedcxr-report/1", TEXT, "5y", "F")
    assert line["model_revision"] == "rev-1"
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    said, err = capsys.readouterr()
    assert said == ""
    assert "12 reports written in" in err and "Not for diagnosis" in err
    assert "Popescu" not in out.read_text() + err, "the id stands for the file"


def test_a_folder_uses_paths_for_ids_and_says_how_many_are_none(engine, films, out, capsys):
    (films / "Notes.txt").write_text("x")
    assert batch(films, out, engine.url) == 0
    assert reported(out) == Counter(f"Popescu-{number}.png" for number in range(12))
    err = capsys.readouterr().err
    assert "left out: 1 x neither DICOM nor an image (--dry-run lists them)" in err
    assert "Notes" not in err


@pytest.mark.parametrize(("odd", "code"), [("\u2028\u2029", 0), ("\ud800", 4)], ids=["line ends", "surrogate"])
def test_what_a_model_may_write_is_one_line_of_utf8(engine, films, out, odd, code):
    text = f"FINDINGS: The lungs are clear.{odd} IMPRESSION: Normal chest."
    choice = {"delta": {"content": text}, "finish_reason": "stop"}
    engine.answer = Answer(raw=f"data: {json.dumps({'choices': [choice]})}\n\ndata: [DONE]\n\n".encode())
    assert batch(films, out, engine.url) == code
    assert len(out.read_text(encoding="utf-8").splitlines()) == 12
    kept = {line["error"]["text"] if "error" in line else line["text"] for line in lines(out)}
    assert kept == {text}


def test_evaluation_reads_what_a_batch_writes(engine, films, out):
    engine.reply(Answer(finish="length"))
    assert batch(films.parent / "manifest.csv", out, engine.url) == 4
    run = runs.read(out)
    assert (len(run.reports), len(run.failed), run.models) == (11, 1, ("fake@rev-1",))
    assert batch(films.parent / "manifest.csv", out, engine.url) == 0
    run = runs.read(out)
    assert (len(run.reports), len(run.failed)) == (12, 0)


def test_a_second_run_sends_nothing(engine, films, out, capsys):
    manifest = films.parent / "manifest.csv"
    batch(manifest, out, engine.url)
    before = out.read_bytes()
    engine.reset()
    assert batch(manifest, out, engine.url) == 0
    assert not engine.chats
    assert out.read_bytes() == before
    assert "0 reports written; 12 had one before" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "again"),
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
def test_what_makes_a_report_another_one(engine, films, out, tmp_path, monkeypatch, change, again):
    manifest = tmp_path / "manifest.csv"
    batch(manifest, out, engine.url)
    engine.reset()
    more: list[str] = []
    if change == "revision":
        engine.details = {"revision": "rev-2"}
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
    assert len(engine.chats) == again
    assert sum(reported(out).values()) == 12 + again


def test_errors_are_their_films_own(engine, films, out, tmp_path, capsys):
    (films / "broken.png").write_bytes(b"\x89PNG nothing more")
    manifest = tmp_path / "manifest.csv"
    rows = "\nfilms/missing.png,gone,5y,F\nfilms/broken.png,broken,5y,F\nfilms/Popescu-1.png,adult,30y,F"
    rows += "\nfilms/Popescu-1.png,age,62,F\nfilms/Popescu-1.png,sex,5y,Q"
    manifest.write_text(manifest.read_text() + rows)
    assert batch(manifest, out, engine.url) == 3
    assert reported(out) == IDS
    errors = {line["id"]: line["error"] for line in lines(out) if "error" in line}
    assert {name: (error["kind"], error["code"]) for name, error in errors.items()} == {
        "gone": ("refused", "input"),
        "broken": ("refused", "input"),
        "adult": ("refused", "blocked"),
        "age": ("refused", "input"),
        "sex": ("refused", "input"),
    }
    assert "No such file" in errors["gone"]["message"]
    assert "5 refused" in capsys.readouterr().err
    assert "Popescu" not in out.read_text() and "missing.png" not in out.read_text()
    before = out.read_bytes()
    assert batch(manifest, out, engine.url) == 3, "still not all have a report"
    assert out.read_bytes() == before, "nothing about them has changed, so nothing is said again"
    Image.linear_gradient("L").save(films / "missing.png")
    assert batch(manifest, out, engine.url, "--allow", "age") == 3
    assert reported(out)["gone"] == reported(out)["adult"] == 1


def test_what_the_server_failed_at_is_tried_again_by_the_next_run(engine, films, out, capsys):
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
    deadline = time.monotonic() + 30
    while not condition():
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_killed_in_the_middle_nothing_is_lost_or_done_twice(engine, films, out):
    engine.answer = Answer(first=0.05)
    manifest = films.parent / "manifest.csv"
    with start(manifest, out, engine.url) as process:
        wait_for(lambda: out.exists() and out.read_bytes().count(b"\n") >= 4, process)
        process.kill()
    kept = reported(out)
    assert 4 <= sum(kept.values()) < 12
    engine.reset()
    assert batch(manifest, out, engine.url) == 0
    assert reported(out) == IDS
    late = 3  # of the killed run, which the engine may see only now
    assert 12 - sum(kept.values()) <= len(engine.chats) <= 12 - sum(kept.values()) + late


def test_ctrl_c_keeps_what_is_done_and_closes_the_rest(engine, films, out):
    manifest = films.parent / "manifest.csv"
    engine.reply(*[Answer()] * 4)
    engine.answer = Answer(stall_after=2)
    with start(manifest, out, engine.url) as process:
        wait_for(lambda: len(engine.chats) == 7, process)
        process.send_signal(signal.SIGINT)
        err = process.communicate(timeout=30)[1].decode()
    assert process.returncode == 130
    assert "4 reports written" in err and "Traceback" not in err
    assert all(seen.disconnected.wait(5) for seen in engine.chats if not seen.answered.is_set())
    assert sum(reported(out).values()) == 4
    engine.reset()
    assert batch(manifest, out, engine.url) == 0
    assert reported(out) == IDS


@pytest.mark.parametrize("kept", [-1, -40, 1, 10, "nul"])
def test_a_torn_last_line_is_done_again(engine, films, out, kept):
    manifest = films.parent / "manifest.csv"
    batch(manifest, out, engine.url)
    data = out.read_bytes()
    last = data.rindex(b"\n", 0, -1) + 1
    torn = data[:last] + b"\0" * 50 if kept == "nul" else data[:kept] if kept < 0 else data[: last + kept]
    out.write_bytes(torn)
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
def test_a_file_of_another_kind_is_left_alone(engine, films, out, capsys, data):
    out.write_bytes(data)
    assert batch(films, out, engine.url) == 2
    assert "line 1 is no line of pedcxr batch" in capsys.readouterr().err
    assert out.read_bytes() == data
    assert not engine.chats


@pytest.mark.parametrize("where", [".", "missing/out.jsonl", "/dev/null"])
def test_an_output_that_cannot_be_written(engine, films, tmp_path, capsys, where):
    assert batch(films, tmp_path / where, engine.url) == 2
    assert "pedcxr: -o: " in capsys.readouterr().err
    assert not engine.chats


def test_a_second_start_is_refused_while_the_first_runs(engine, films, out, capsys):
    engine.answer = Answer(stall_after=1)
    with start(films, out, engine.url) as process:
        wait_for(lambda: engine.chats, process)
        assert batch(films, out, engine.url) == 2
        assert "another run writes this file" in capsys.readouterr().err
        process.kill()
    engine.reset()
    assert batch(films, out, engine.url) == 0, "a killed run leaves no lock behind"


def test_a_full_disk_stops_the_run_and_leaves_whole_lines(engine, films, out):
    limit = 12_000  # of about 23,000 bytes

    def small() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    with start(films, out, engine.url, preexec_fn=small) as process:
        err = process.communicate(timeout=30)[1].decode()
    assert process.returncode == 2
    assert "cannot be written: File too large" in err
    assert 0 < sum(reported(out).values()) < 12
    assert batch(films, out, engine.url) == 0
    assert sum(reported(out).values()) == 12


def test_lines_are_on_the_disk_before_they_count(engine, films, out, monkeypatch):
    synced: list[int] = []
    sync = os.fsync

    def spy(file: int) -> None:
        sync(file)
        synced.append(out.stat().st_size)

    monkeypatch.setattr(os, "fsync", spy)
    batch(films, out, engine.url)
    assert synced[-1] == out.stat().st_size
    assert len(synced) >= 12 / 3, "at most as many lines a sync as films at once"


def test_a_server_that_starts_again_makes_no_errors(films, out, capsys):
    manifest = films.parent / "manifest.csv"
    with FakeEngine() as engine:
        url, port = engine.url, int(engine.url.split(":")[2].split("/")[0])
        engine.reply(*[Answer()] * 3)
        engine.answer = Answer(stall_after=2)
        codes: list[int] = []
        runner = threading.Thread(target=lambda: codes.append(batch(manifest, out, url, "--give-up-after", "60")))
        runner.start()
        deadline = time.monotonic() + 30
        while len(engine.chats) < 6:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    # Gone, amid three answers. It comes back and is busy for a while.
    with FakeEngine(port=port) as engine:
        engine.reply(*[Answer(status=503, headers={"retry-after": "0.1"})] * 4, *[Answer(status=503)] * 2)
        engine.reply(Answer(status=429, headers={"retry-after": "0.1"}))
        runner.join(60)
    assert codes == [0]
    assert reported(out) == IDS
    assert not [line for line in lines(out) if "error" in line]
    assert "the server is away or busy" in capsys.readouterr().err


def test_a_server_that_stays_away_costs_no_film(engine, films, out, capsys):
    engine.reply(*[Answer()] * 3)
    engine.answer = Answer(status=503)
    assert batch(films, out, engine.url, "--give-up-after", "1") == 4
    err = capsys.readouterr().err
    assert "run the same command again to go on" in err
    assert "3 reports written" in err
    assert len(lines(out)) == 3, "no film is to blame"
    engine.reset()
    assert batch(films, out, engine.url) == 0
    assert sum(reported(out).values()) == 12


def test_a_server_that_says_to_come_back_tomorrow_is_not_waited_for(engine, films, out, capsys):
    engine.answer = Answer(status=429, headers={"retry-after": "40000"})
    began = time.monotonic()
    assert batch(films, out, engine.url) == 4
    assert time.monotonic() - began < 10
    assert lines(out) == []


def test_a_server_that_is_not_there_yet_is_waited_for(films, out, tmp_path):
    with FakeEngine() as taken:
        port = int(taken.url.split(":")[2].split("/")[0])
    codes: list[int] = []
    url = f"http://127.0.0.1:{port}/v1"
    runner = threading.Thread(target=lambda: codes.append(batch(films, out, url, "--give-up-after", "60")))
    runner.start()
    with FakeEngine(port=port):
        runner.join(60)
    assert codes == [0]


@pytest.mark.parametrize("bad", [Answer(cut_after=2), Answer(status=500), Answer(error_after=1)])
def test_a_film_that_fells_the_server_does_not_hold_up_the_others(engine, films, out, bad):
    Image.linear_gradient("L").rotate(200).save(films / "Popescu-5.png")
    whole = engine._chat
    marked = base64.b64encode((films / "Popescu-5.png").read_bytes()).decode()

    async def chat(seen: Any, reply: Any) -> None:
        if marked in seen.json["messages"][0]["content"][0]["image_url"]["url"]:
            engine._answers.appendleft(bad)
        await whole(seen, reply)

    engine._chat = chat
    try:
        assert batch(films, out, engine.url) == 4
    finally:
        del engine._chat
    [line] = [line for line in lines(out) if "error" in line]
    assert line["id"] == "Popescu-5.png" and line["error"]["kind"] == "failed"
    assert sum(reported(out).values()) == 11
    assert len(engine.chats) == 11 + 3


@pytest.mark.parametrize(("status", "says"), [(401, "PEDCXR_API_KEY"), (404, "model name")])
def test_what_befalls_every_film_alike_stops_the_run(engine, films, out, capsys, status, says):
    engine.answer = Answer(status=status)
    assert batch(films, out, engine.url) == 2
    assert says in capsys.readouterr().err
    assert lines(out) == []
    assert len(engine.chats) <= 3


def test_another_revision_after_an_outage_stops_the_run(engine, films, out, capsys):
    engine.reply(*[Answer()] * 5)

    whole = engine._chat

    async def chat(seen: Any, reply: Any) -> None:
        if len(engine.chats) > 5:
            engine.details = {"revision": "rev-2"}
            engine._answers.appendleft(Answer(status=503))
        await whole(seen, reply)

    engine._chat = chat
    try:
        assert batch(films, out, engine.url) == 2
    finally:
        del engine._chat
    assert "another model or revision" in capsys.readouterr().err
    assert {line["model_revision"] for line in lines(out)} == {"rev-1"}


@pytest.mark.parametrize(
    ("more", "code", "says"),
    [
        (["--age", "62"], 3, "write a number"),
        (["--allow", "everything"], 2, "is no check"),
        (["--concurrency", "0"], 2, "number above 0"),
        (["--prompt-profile", "training"], 2, "--system-file"),
        (["--dry-run"], 2, "not allowed with"),
    ],
)
def test_wrong_use_is_said_before_anything_is_sent(engine, films, out, capsys, more, code, says):
    assert batch(films, out, engine.url, *more) == code
    assert says in capsys.readouterr().err
    assert not engine.requests


def test_the_bar_shows_rate_and_time_left_when_asked(engine, films, out, capsys):
    batch(films, out, engine.url)
    assert "films/s" not in capsys.readouterr().err
    (films / "Popescu-3.png").unlink()
    Image.linear_gradient("L").rotate(77).save(films / "Popescu-99.png")
    batch(films, out, engine.url, "--progress")
    err = capsys.readouterr().err
    assert "1/1 [" in err and "films/s" in err, "of what there is to do; what is done already does not count"
