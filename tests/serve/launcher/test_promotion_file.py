"""The gate of `require_promotion`: a server starts only with what `pedcxr-serve promote` said yes to."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pedcxr_serve.checkpoint import adapter, revision
from pedcxr_serve.cli import main
from pedcxr_serve.config import load
from pedcxr_serve.demo import CHECKPOINT
from pedcxr_serve.errors import CheckpointError
from pedcxr_serve.launcher import preparation, promotion_file
from tests.serve.launcher.test_promote import CLEAR, FILMS, write_run
from tests.support import lora_adapter

BASE = revision.of(CHECKPOINT)
Promote = Callable[..., Path]


@pytest.fixture
def promote(tmp_path: Path) -> Promote:
    """Return a function that decides on two runs of the command, and returns the result file."""

    def decided(served: str, *, good: bool = True) -> Path:
        new = write_run(tmp_path / "new.jsonl", [CLEAR] * FILMS, revision=served, errors=() if good else ("empty",))
        old = write_run(tmp_path / "old.jsonl", [CLEAR] * FILMS)
        words = ["promote", str(new), "--against", str(old), "--films", str(tmp_path), "--out", str(tmp_path / "out")]
        assert main(words) == (0 if good else 1)
        return tmp_path / "out/promotion.json"

    return decided


def check(path: Path, *words: str) -> int:
    return main(["check", "--require-promotion", str(path), *words])


def test_a_promoted_model_is_accepted(promote: Promote, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(promote(BASE)) == 0
    assert capsys.readouterr().out.endswith("promotion          as required\n")


def test_a_server_does_not_start_with_another_model(promote: Promote) -> None:
    settings = load.load(None, {"require_promotion": str(promote("sha256:0123456789abcdef"))})
    with pytest.raises(CheckpointError, match=f"is about revision sha256:0123456789abcdef, but {BASE} would be served"):
        preparation.prepare(settings)


def test_a_model_that_was_not_promoted_is_refused(promote: Promote, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(promote(BASE, good=False)) == 3
    error = capsys.readouterr().err
    assert "says no (films without a usable report). Run `pedcxr-serve promote` for it" in error


def test_another_vllm_needs_another_promotion(promote: Promote, capsys: pytest.CaptureFixture[str]) -> None:
    path = promote(BASE)
    result = json.loads(path.read_text())
    installed = promotion_file._engine(result["versions"])
    result["versions"] = {"vllm": "0.31.0"}
    path.write_text(json.dumps(result))
    assert check(path) == 3
    assert f"was decided with vLLM 0.31.0, but {installed} is installed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read (No such file or directory). Run `pedcxr-serve promote`"),
        ("{", "is not valid JSON"),
        ('{"promote": true}', "is no pedcxr-promotion/1 file. Give the promotion.json"),
    ],
)
def test_a_file_that_cannot_be_used_is_an_error_of_usage(
    tmp_path: Path, text: str | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "promotion.json"
    if text is not None:
        path.write_text(text)
    assert check(path) == 2
    assert message in capsys.readouterr().err
    assert main(["check-config", "--require-promotion", str(path)]) == 2
    assert message in capsys.readouterr().out


def test_an_adapter_has_a_promotion_of_its_own(
    promote: Promote, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = lora_adapter.make(tmp_path / "north")
    path = promote(f"{BASE}+{adapter.revision(folder)}")
    config = tmp_path / "serve.toml"
    config.write_text(f'[adapters.north]\npath = "{folder}"\nrequire_promotion = "{path}"\n')
    assert main(["check", "--config", str(config)]) == 0
    assert main(["check-config", "--config", str(config)]) == 0
    assert "adapters.north.require_promotion: yes, of 20" in capsys.readouterr().out
    lora_adapter.make(folder, seed=1)
    assert main(["check", "--config", str(config)]) == 3
    assert "adapters.north.require_promotion: " in capsys.readouterr().err


def test_promote_itself_needs_no_promotion(tmp_path: Path) -> None:
    from pedcxr_serve.launcher import promote as command

    settings = load.load(None, {"require_promotion": "absent.json"})
    side = command.resolve("new", "demo", settings, None, tmp_path)
    assert side.settings is not None
    assert side.settings.require_promotion == ""
