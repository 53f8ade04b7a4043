"""Which films a second run sends again, and what earlier versions or an unexpected error left in OUT.jsonl."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from pedcxr_client.batch import outage, runner
from pedcxr_client.checks import rules
from pedcxr_client.errors import RateLimited
from tests.client.batch.helpers import IDS, batch, lines, reported, write_films
from tests.support.films import dicom_maker
from tests.support.servers.fake_engine import Answer


@pytest.fixture
def three(tmp_path) -> Path:
    """A folder of three different films."""
    return write_films(tmp_path / "three", 3)


@pytest.fixture
def no_waits(monkeypatch):
    monkeypatch.setattr(outage, "back_off", lambda *_: 0.0)


def kinds(out: Path) -> Counter[str]:
    return Counter(line["error"]["kind"] for line in lines(out) if "error" in line)


def test_film_that_needed_a_missing_package_is_read_again(engine, three, out, monkeypatch):
    (three / "film.dcm").write_bytes(dicom_maker.film())
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pydicom", None)
        assert batch(three, out, engine.url) == 4
    [error] = [line["error"] for line in lines(out) if "error" in line]
    assert (error["kind"], error["type"]) == ("failed", "MissingResource")
    assert 'pip install "pedcxr[dicom]"' in error["message"]
    assert batch(three, out, engine.url) == 0
    assert reported(out)["film.dcm"] == 1


@pytest.mark.parametrize(
    ("status", "attempts", "kind"),
    [(408, 3, "failed"), (409, 3, "failed"), (425, 3, "failed"), (413, 1, "failed"), (431, 1, "failed"),
     (451, 1, "failed"), (400, 1, "refused"), (422, 1, "refused")],
)  # fmt: skip
def test_rejections_that_another_run_repeats(engine, three, out, no_waits, status, attempts, kind):
    engine.answer = Answer(status=status)
    assert batch(three, out, engine.url) == (4 if kind == "failed" else 3)
    assert len(engine.chats) == 3 * attempts
    assert kinds(out) == Counter({kind: 3})
    engine.reset()
    assert batch(three, out, engine.url) == (0 if kind == "failed" else 3)
    assert sum(reported(out).values()) == (3 if kind == "failed" else 0)


@pytest.mark.parametrize(
    "error", [MemoryError(), RecursionError("Popescu"), KeyError("Popescu"), type("E", (Exception,), {})()]
)
def test_no_exception_of_one_film_ends_the_run(engine, three, out, monkeypatch, error):
    (three / "bad.png").write_bytes(b"\x89PNG of Popescu")
    read = Path.read_bytes

    def fail(path: Path) -> bytes:
        if path.name == "bad.png":
            raise error
        return read(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", fail)
        assert batch(three, out, engine.url) == 4
    assert kinds(out) == {"failed": 1}
    assert sum(reported(out).values()) == 3
    assert "Popescu" not in out.read_text()
    Image.linear_gradient("L").rotate(9).save(three / "bad.png")
    assert batch(three, out, engine.url) == 0


def test_memory_that_is_missing_while_a_film_is_decoded(engine, three, out, monkeypatch):
    (three / "film.dcm").write_bytes(dicom_maker.film())
    with monkeypatch.context() as patch:
        patch.setattr("pedcxr_client.films.dicom.render", lambda *_: [0] * (1 << 62))
        assert batch(three, out, engine.url) == 4
    [error] = [line["error"] for line in lines(out) if "error" in line]
    assert (error["kind"], error["type"]) == ("failed", "MissingResource")
    assert batch(three, out, engine.url) == 0


@pytest.mark.parametrize("status", [401, 413, 500, 503])
def test_error_body_that_is_cut(engine, three, out, no_waits, status):
    cut = Answer(status=status, raw=b'{"error": ', headers={"content-length": "500"}, content_type="application/json")
    engine.reply(cut)
    assert batch(three, out, engine.url) in (0, 2, 4), "how an error is reported is for the client to decide"
    assert batch(three, out, engine.url) == 0
    assert reported(out) == Counter(f"{number}.png" for number in range(3))


def test_newer_rules_look_again_at_what_was_refused(engine, three, out, monkeypatch):
    (three / "adult.dcm").write_bytes(dicom_maker.film(PatientAge="045Y"))
    (three / "broken.png").write_bytes(b"\x89PNG nothing more")
    assert batch(three, out, engine.url) == 3
    assert {line["rules"] for line in lines(out) if "error" in line} == {rules.VERSION}
    before = out.read_bytes()
    engine.reset()
    assert batch(three, out, engine.url) == 3
    assert out.read_bytes() == before
    monkeypatch.setattr(rules, "VERSION", "another")
    monkeypatch.setattr(rules, "is_adult", lambda age: False)
    assert batch(three, out, engine.url) == 3
    assert reported(out)["adult.dcm"] == 1
    assert kinds(out) == {"refused": 3}, "the damaged film is still damaged"
    assert len(engine.chats) == 1, "reports do not depend on the rules"


def test_key_is_that_of_earlier_versions(engine, out, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG nothing more")
    manifest = tmp_path / "manifest.csv"
    manifest.write_text("path,id,age,sex\nbroken.png,broken,5y,F\n")
    batch(manifest, out, engine.url)
    [line] = lines(out)
    assert line["key"] == "be87d477a756fa557e090e69bc5938d6"


def test_file_of_another_version_is_resumed(engine, films, out):
    """Older versions wrote fewer keys. A later one may write more, and kinds of errors that this one does not know."""
    manifest = films.parent / "manifest.csv"
    (films / "Popescu-3.png").write_bytes(b"\x89PNG nothing more")
    batch(manifest, out, engine.url)
    old = []
    for line in lines(out):
        for key in ("study", "served_model", "rules"):
            line.pop(key, None)
        old.append(json.dumps(line | {"tomorrow": {"a": [1]}}))
    unknown = {"schema": "pedcxr-error/1", "id": "case 3", "key": "00" * 16, "error": {"kind": "postponed"}}
    out.write_text("\n".join([*old, json.dumps(unknown), '{"schema": "pedcxr-rep']))
    engine.reset()
    Image.linear_gradient("L").rotate(3).save(films / "Popescu-3.png")
    assert batch(manifest, out, engine.url) == 0
    assert len(engine.chats) == 1
    assert reported(out) == IDS


def test_refusal_of_an_earlier_version_is_looked_at_again(engine, three, out):
    (three / "broken.png").write_bytes(b"\x89PNG nothing more")
    batch(three, out, engine.url)
    entries = lines(out)
    for entry in entries:
        entry.pop("rules", None)
    out.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    assert batch(three, out, engine.url) == 3
    assert kinds(out) == {"refused": 2}


def test_ages_written_differently_are_one_key(engine, three, out, tmp_path):
    manifest = tmp_path / "ages.csv"
    for age in ("5y", "05Y", " 005 y "):
        manifest.write_text(f"path,age\nthree/0.png,{age}\n")
        assert batch(manifest, out, engine.url) == 0
    assert [line["age"] for line in lines(out)] == ["5y"]


def test_other_revision_is_explained_before_anything_is_sent(engine, three, out, capsys):
    batch(three, out, engine.url)
    engine.reset()
    engine.details = {"revision": "rev-2"}
    before = out.read_bytes()
    assert batch(three, out, engine.url) == 2
    assert not engine.chats and out.read_bytes() == before
    err = capsys.readouterr().err
    assert "its last report is of fake at revision rev-1, but the server serves fake at revision rev-2" in err
    assert "Add --redo" in err
    engine.reply(Answer(status=413))
    assert batch(three, out, engine.url, "--redo") == 4
    assert batch(three, out, engine.url) == 0, "an unfinished --redo is resumed without it"
    assert Counter(line["model_revision"] for line in lines(out) if "text" in line) == {"rev-1": 3, "rev-2": 3}
    engine.reset()
    assert batch(three, out, engine.url) == 2, "rev-1 serves again"
    assert not engine.chats


def test_other_model_of_the_same_revision_is_explained(engine, three, out, capsys):
    batch(three, out, engine.url)
    engine.models = ("other",)
    assert batch(three, out, engine.url) == 2
    assert "fake at revision rev-1, but the server serves other at revision rev-1" in capsys.readouterr().err


def test_film_listed_twice_is_reported_once(engine, three, out, tmp_path, capsys):
    (three / "copy.png").write_bytes((three / "0.png").read_bytes())
    manifest = tmp_path / "twice.csv"
    rows = ["three/0.png,a,5y", "three/0.png,b,5y", "three/copy.png,c,05Y", "three/0.png,d,6y"]
    manifest.write_text("path,id,age\n" + "\n".join(rows))
    assert batch(manifest, out, engine.url) == 0
    assert reported(out) == Counter("ad")
    skipped = {line["id"]: line["error"]["message"] for line in lines(out) if "error" in line}
    assert skipped == dict.fromkeys(
        "bc", "the same film with the same options is listed before; the report is that of id a"
    )
    assert kinds(out) == {"skipped": 2}
    assert "skipped: 2 x the same film with the same options is listed before" in capsys.readouterr().err
    before = out.read_bytes()
    for _ in range(2):
        assert batch(manifest, out, engine.url) == 0
    assert out.read_bytes() == before and len(engine.chats) == 2


def test_first_of_two_entries_is_reported_although_it_is_read_later(engine, three, out, tmp_path, monkeypatch):
    (three / "copy.png").write_bytes((three / "0.png").read_bytes())
    manifest = tmp_path / "twice.csv"
    manifest.write_text("path,id\nthree/0.png,a\nthree/copy.png,b\n")
    second_was_read = threading.Event()
    read = runner._read

    def slow_first(entry):
        if entry.id == "a":
            assert second_was_read.wait(30)
        content = read(entry)
        if entry.id == "b":
            second_was_read.set()
        return content

    monkeypatch.setattr(runner, "_read", slow_first)
    assert batch(manifest, out, engine.url, "--age", "5y") == 0
    assert reported(out) == Counter("a")


def test_unreadable_films_are_no_copies_of_each_other(engine, out, tmp_path):
    manifest = tmp_path / "gone.csv"
    manifest.write_text("path,id\ngone.png,a\ngone.png,b\nother.png,c\n")
    assert batch(manifest, out, engine.url) == 3
    assert kinds(out) == {"refused": 3}


def test_request_that_succeeds_during_an_outage_does_not_break_the_wait():
    """While some requests wait, another request may end the outage."""
    polls = 0

    async def poll() -> None:
        nonlocal polls
        polls += 1
        if polls < 3:
            waiter.end()
            raise RateLimited("busy")

    now = iter(range(100, 10_000, 100))
    waiter = outage.Outage(poll, 150, lambda _: None, clock=lambda: next(now))
    error = RateLimited("busy")
    error.retry_after = 0.0

    async def main() -> None:
        await asyncio.wait_for(waiter.wait(error), 30)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outage, "back_off", lambda *_: 0.0)
        asyncio.run(main())
    assert polls == 3


def test_any_answer_of_the_server_ends_an_outage(engine, three, out, capsys):
    busy = Answer(status=503, headers={"retry-after": "0"})
    engine.reply(busy, Answer(status=400), busy, Answer(finish="length"), busy)
    assert batch(three, out, engine.url, "--concurrency", "1") == 4
    assert capsys.readouterr().err.count("the server is unavailable or busy") == 3
