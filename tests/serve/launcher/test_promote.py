"""Promotion of a model, adapter or setting: thresholds on hand-written runs, and runs of a fake engine."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pedcxr_client.evaluation import lexicon, references
from pedcxr_serve.cli import main
from pedcxr_serve.config.settings import ServeConfig
from pedcxr_serve.errors import ConfigError
from pedcxr_serve.launcher import promote, promotion, start
from pedcxr_serve.launcher.promotion import Decision, Thresholds
from tests.support import lora_adapter
from tests.support.films.phantom_films import fresh
from tests.support.servers.fake_engine import Answer, FakeEngine

CLEAR = "The lungs are clear. No pleural effusion."
EFFUSION = "There is a left pleural effusion. The heart is normal."
FILMS = 40


def write_run(path: Path, texts: list[str], *, revision: str = "r", errors: tuple[str, ...] = ()) -> Path:
    """Write a run: a report of each text, then a film for each code of an error."""
    model = {"model": "m", "model_revision": revision}
    lines: list[dict[str, Any]] = [
        {"id": f"film-{number}", "text": text, "finish_reason": "stop", **model} for number, text in enumerate(texts)
    ]
    for number, code in enumerate(errors, len(texts)):
        lines.append({"id": f"film-{number}", "error": {"kind": "refused", "code": code, "text": "la la la"}})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def decide(
    folder: Path, new: list[str], old: list[str], *, reference: str | None = None, thresholds: Thresholds | None = None,
    new_errors: tuple[str, ...] = (), old_errors: tuple[str, ...] = (), revisions: tuple[str, str] = ("r+1", "r"),
) -> Decision:  # fmt: skip
    truth = None
    if reference is not None:
        (folder / "reference.csv").write_text(reference)
        truth = references.read(folder / "reference.csv", tuple(lexicon.load(lexicon.SHIPPED).findings))
    return promotion.decide(
        write_run(folder / "new.jsonl", new, revision=revisions[0], errors=new_errors),
        write_run(folder / "old.jsonl", old, revision=revisions[1], errors=old_errors),
        truth,
        thresholds or Thresholds(),
    )


def unmet(decision: Decision) -> list[str]:
    assert decision.promote is not any(not check.passed for check in decision.checks)
    return [check.name for check in decision.checks if not check.passed]


def test_the_same_reports_are_promoted(tmp_path: Path) -> None:
    decision = decide(tmp_path, [CLEAR] * FILMS, [CLEAR] * FILMS, revisions=("r", "r"))
    assert unmet(decision) == []
    assert (decision.films, decision.exact, decision.same_findings, decision.changed_findings) == (FILMS, 1, 1, {})
    assert promotion.table(decision).endswith("promote: yes")


def test_the_same_weights_must_give_the_same_reports(tmp_path: Path) -> None:
    reworded = [CLEAR] * (FILMS - 2) + ["Clear lungs. No pleural effusion."] * 2
    same = decide(tmp_path, reworded, [CLEAR] * FILMS, revisions=("r", "r"))
    assert unmet(same) == ["equal reports, of the same weights"]
    assert unmet(decide(tmp_path, reworded, [CLEAR] * FILMS)) == []
    assert unmet(decide(tmp_path, reworded, [CLEAR] * FILMS, revisions=("", ""))) == []
    loose = Thresholds(min_exact=0.95)
    assert unmet(decide(tmp_path, reworded, [CLEAR] * FILMS, revisions=("r", "r"), thresholds=loose)) == []


def test_without_a_reference_the_findings_must_stay(tmp_path: Path) -> None:
    decision = decide(tmp_path, [EFFUSION] * 3 + [CLEAR] * 37, [CLEAR] * FILMS)
    assert unmet(decision) == ["films with the same findings"]
    assert decision.changed_findings["pleural_effusion"] == (3, 0)
    assert unmet(decide(tmp_path, [EFFUSION] * 2 + [CLEAR] * 38, [CLEAR] * FILMS)) == []


@pytest.mark.parametrize("code", ["empty", "looping", "truncated", "not_text"])
def test_a_film_without_a_usable_report_is_a_failure(tmp_path: Path, code: str) -> None:
    decision = decide(tmp_path, [CLEAR] * FILMS, [CLEAR] * (FILMS + 1), new_errors=(code,))
    assert unmet(decision) == ["films without a usable report"]
    assert decision.new.outcomes == {"ok": FILMS, code: 1}
    assert f"1 {code}" in promotion.table(decision)
    both = decide(tmp_path, [CLEAR] * FILMS, [CLEAR] * FILMS, new_errors=(code,), old_errors=("looping",))
    assert unmet(both) == []


def test_few_films_and_other_lengths_are_not_promoted(tmp_path: Path) -> None:
    assert unmet(decide(tmp_path, [CLEAR] * 29, [CLEAR] * 29)) == ["films"]
    assert unmet(decide(tmp_path, [f"{CLEAR} {CLEAR}"] * 30, [CLEAR] * 30)) == ["mean words, new / old"]
    assert unmet(decide(tmp_path, [CLEAR] * 30, [f"{CLEAR} {CLEAR}"] * 30)) == ["mean words, new / old"]
    nothing = decide(tmp_path, [], [], new_errors=("empty",), old_errors=("empty",))
    assert unmet(nothing) == ["films", "films with the same findings", "mean words, new / old"]


def test_with_a_reference_a_finding_must_not_become_worse(tmp_path: Path) -> None:
    ill, well = 100, 100
    truth = [EFFUSION] * ill + [CLEAR] * well
    lines = "".join(f"film-{number},{int(number < ill)}\n" for number in range(ill + well))
    reference = "id,pleural_effusion\n" + lines
    same = decide(tmp_path, truth, truth, reference=reference)
    assert unmet(same) == []
    blind = decide(tmp_path, [CLEAR] * 10 + truth[10:], truth, reference=reference)
    assert unmet(blind) == ["sensitivity for any abnormality, new - old", "findings that became worse"]
    assert "sensitivity for pleural_effusion -0.100" in promotion.table(blind)
    alarms = decide(tmp_path, truth[:-10] + [EFFUSION] * 10, truth, reference=reference)
    assert unmet(alarms) == ["specificity for any abnormality, new - old", "findings that became worse"]
    better = decide(tmp_path, truth, [CLEAR] * 10 + truth[10:], reference=reference)
    assert unmet(better) == []


def test_too_few_films_with_a_finding_are_not_enough_for_a_yes(tmp_path: Path) -> None:
    truth = [EFFUSION] * 5 + [CLEAR] * 100
    lines = "".join(f"film-{number},{int(number < 5)}\n" for number in range(105))
    decision = decide(tmp_path, truth, truth, reference="id,pleural_effusion\n" + lines)
    assert unmet(decision) == ["sensitivity for any abnormality, new - old"]


def test_the_result_file_has_no_text_and_no_id(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = write_run(tmp_path / "new.jsonl", [EFFUSION] + [CLEAR] * 39, revision="r+1", errors=("looping",))
    old = write_run(tmp_path / "old.jsonl", [CLEAR] * FILMS, errors=("looping",))
    words = ["promote", str(new), "--against", str(old), "--films", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main(words) == 0
    assert capsys.readouterr().out.endswith("promote: yes\n")
    text = (tmp_path / "out/promotion.json").read_text()
    result = json.loads(text)
    assert (result["schema"], result["promote"], result["films"]) == ("pedcxr-promotion/1", True, FILMS)
    assert result["new"]["models"] == ["m@r+1"] and result["versions"]["pedcxr"]
    assert result["thresholds"]["min_films"] == 30
    assert not [word for word in ("film-", "lungs", "la la") if word in text]
    assert main([*words, "--min-films", "41"]) == 1
    assert json.loads((tmp_path / "out/promotion.json").read_text())["promote"] is False


@pytest.mark.parametrize(
    ("new", "more", "message"),
    [
        ("absent.jsonl", (), "absent.jsonl: no such file"),
        ("broken.jsonl", (), "broken.jsonl: line 1: not a JSON object"),
        ("absent.toml", (), "absent.toml: cannot be read"),
        ("good.jsonl", ("--reference", "absent.csv"), "--reference: .*absent.csv"),
        ("good.jsonl", ("--out", "good.jsonl"), "--out: .*good.jsonl: File exists"),
    ],
)
def test_wrong_input_is_a_usage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    new: str, more: tuple[str, ...], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "good.jsonl", [CLEAR])
    (tmp_path / "broken.jsonl").write_text("[\n")
    assert main(["promote", new, "--against", "good.jsonl", "--films", ".", *more]) == 2
    assert re.search(message, capsys.readouterr().err)


@pytest.fixture
def films(tmp_path: Path) -> Path:
    folder = tmp_path / "films"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.png").write_bytes(fresh().png)
    (folder / "list.csv").write_text("path,age,sex\n" + "".join(f"{number}.png,6y,M\n" for number in range(3)))
    return folder / "list.csv"


class Starts:
    """Stands for `start.start`: a fake engine that serves whatever it is asked to, and the settings of each start."""

    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.settings: list[ServeConfig] = []

    def __call__(self, settings: ServeConfig, *, work: Callable[[str], Awaitable[None]]) -> None:
        self.settings.append(settings)
        self.engine.models = (settings.served_name, *settings.adapters)
        asyncio.run(_awaited(work(self.engine.url)))


async def _awaited(work: Awaitable[None]) -> None:
    await work


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Starts]:
    with FakeEngine() as engine:
        starts = Starts(engine)
        monkeypatch.setattr(start, "start", starts)
        yield starts


def run(tmp_path: Path, films: Path, new: str, old: str, *words: str) -> int:
    out = str(tmp_path / "out")
    return main(["promote", new, "--against", old, "--films", str(films), "--out", out, "--min-films", "3", *words])


def test_an_adapter_and_its_base_share_one_engine(tmp_path: Path, films: Path, starts: Starts) -> None:
    folder = lora_adapter.make(tmp_path / "north")
    assert run(tmp_path, films, str(folder), "demo") == 0
    [settings] = starts.settings
    assert {name: adapter.path for name, adapter in settings.adapters.items()} == {"new": str(folder)}
    assert (settings.model, settings.gateway.port, settings.gateway.tenants) == ("demo", 0, "")
    assert [request.json["model"] for request in starts.engine.chats] == ["pedcxr-demo"] * 3 + ["new"] * 3


def test_two_adapters_share_one_engine(tmp_path: Path, films: Path, starts: Starts) -> None:
    new, old = (str(lora_adapter.make(tmp_path / name)) for name in ("a", "b"))
    assert run(tmp_path, films, new, old, "--base", "demo") == 0
    [settings] = starts.settings
    assert {name: adapter.path for name, adapter in settings.adapters.items()} == {"new": new, "old": old}


def test_models_and_settings_get_an_engine_each(tmp_path: Path, films: Path, starts: Starts) -> None:
    flags = tmp_path / "serve.toml"
    flags.write_text('[gateway]\nport = 9000\n[engine]\nmax_num_seqs = 4\n[adapters.a]\npath = "/absent"\n')
    assert run(tmp_path, films, str(flags), "demo") == 0
    assert [settings.engine.max_num_seqs for settings in starts.settings] == [None, 4]
    assert [settings.adapters for settings in starts.settings] == [{}, {}]
    assert [settings.gateway.port for settings in starts.settings] == [0, 0]


def test_a_new_model_has_the_engine_settings_of_the_old(tmp_path: Path, films: Path, starts: Starts) -> None:
    flags = tmp_path / "serve.toml"
    flags.write_text("[engine]\nmax_num_seqs = 4\n")
    assert run(tmp_path, films, str(tmp_path), str(flags), "--", "--max-tokens", "77") == 0
    assert [settings.engine.max_num_seqs for settings in starts.settings] == [4, 4]
    assert [settings.model for settings in starts.settings] == ["demo", str(tmp_path)]
    assert {request.json["max_tokens"] for request in starts.engine.chats} == {77}


def test_a_model_that_loops_is_not_promoted(tmp_path: Path, films: Path, starts: Starts) -> None:
    starts.engine.reply(*[Answer()] * 3, Answer(pieces=("The lungs are clear. ",) * 40))
    assert run(tmp_path, films, str(tmp_path), "demo") == 1
    assert json.loads((tmp_path / "out/promotion.json").read_text())["new"]["outcomes"] == {"ok": 2, "looping": 1}


def test_a_batch_that_fails_is_an_error(
    tmp_path: Path, films: Path, starts: Starts, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, films, "demo", "demo", "--", "--no-such-option") == 2
    assert "pedcxr batch ended with exit code 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No such file or directory; check the path"),
        ("path,report\n0.png,Clear.\n", "unknown column 2; rename or remove it"),
        ("path\n", "lists no film"),
        ("", "holds no film"),
    ],
)
def test_films_are_checked_before_an_engine_starts(
    tmp_path: Path, films: Path, starts: Starts, capsys: pytest.CaptureFixture[str], text: str | None, message: str
) -> None:
    path = films.parent / "new.csv"
    if text == "":
        path.mkdir()
    elif text is not None:
        path.write_text(text)
    assert run(tmp_path, path, "demo", "demo") == 2
    assert f"--films {path}: " in (error := capsys.readouterr().err)
    assert message in error
    assert starts.settings == []


def test_an_existing_run_needs_no_engine(tmp_path: Path, films: Path, starts: Starts) -> None:
    assert run(tmp_path, films, "demo", "demo") == 0
    starts.settings.clear()
    earlier = tmp_path / "earlier.jsonl"
    (tmp_path / "out/old.jsonl").rename(earlier)
    assert run(tmp_path, films, "demo", str(earlier)) == 0
    assert len(starts.settings) == 1
    with pytest.raises(ConfigError, match="no such file"):
        promote.resolve("old", "absent.jsonl", starts.settings[0], None, tmp_path)
