"""``--export-aiperf``: the very bodies for other tools, and their commands."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pedcxr_client.cli.main import main
from tests.client.batch.helpers import write_films
from tests.client.cli.bench.helpers import WORKLOAD
from tests.support.servers.fake_engine import FakeEngine


def export(engine: FakeEngine, folder: Path, workload: str, *more: str) -> int:
    write_films(folder / "films", 4)
    (folder / "workload.toml").write_text(workload)
    options = ["--url", engine.url, "--export-aiperf", str(folder / "out"), "--requests", "10", *more]
    return main(["bench", "run", "--workload", str(folder / "workload.toml"), *options])


def test_bodies_and_commands_of_each_tenant(engine: FakeEngine, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("TEAM_KEY", "team-secret")
    tenants = '[[tenants]]\nname = "ward"\nkey_file = "key"\n[[tenants]]\nname = "clinic"\n'
    (tmp_path / "key").write_text("secret")
    assert (
        export(
            engine,
            tmp_path,
            WORKLOAD + tenants,
            "--metrics-url",
            "http://127.0.0.1:1/metrics",
            "--api-key-env",
            "TEAM_KEY",
        )
        == 0
    )
    out = capsys.readouterr().out
    check, *lines = (line for line in out.splitlines() if not line.startswith("#"))
    commands = [shlex.split(line) for line in lines]
    assert [("aiperf" in words, "vllm" in words) for words in commands] == [(True, False), (False, True)] * 2
    assert "--server-metrics http://127.0.0.1:1/metrics" in out
    assert out.count("--concurrency 2 ") == out.count("--max-concurrency 2 ") == 2  # 4 of two equal tenants
    for key in (f"$(cat {tmp_path / 'key'})", "$TEAM_KEY"):
        assert f'--api-key "{key}"\n' in out
        assert f'--header "Authorization=Bearer {key}"\n' in out
    for version, words in (("0.13.2", ""), ("0.14.0", "this aiperf is not 0.13\n")):
        script = f"aiperf() {{ echo {version}; }}; {check}"
        assert subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stderr == words
    assert "secret" not in out
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [f"{tenant}.{tool}.jsonl" for tenant in ("clinic", "ward") for tool in ("aiperf", "vllm")]
    bodies = [line for path in (tmp_path / "out").glob("*.aiperf.jsonl") for line in path.read_bytes().splitlines()]
    assert len(set(bodies)) == len(bodies) == 20
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()} == {0o600}
    assert engine.chats == []
    # aiperf parses each line and writes it again as compact JSON, so only compact JSON reaches the server unchanged.
    for body in bodies:
        assert json.dumps(json.loads(body), separators=(",", ":"), ensure_ascii=False).encode() == body
    contents = [json.loads(line) for line in (tmp_path / "out/ward.vllm.jsonl").read_text().splitlines()]
    assert [part["type"] for part in contents[0]["content"]] == ["image_url", "text"]


def test_an_open_loop_gives_each_tenant_its_share(engine: FakeEngine, tmp_path: Path, capsys: Any) -> None:
    load = WORKLOAD.replace('kind = "closed"', 'kind = "poisson"\nrate = 8')
    assert export(engine, tmp_path, load + '[[tenants]]\nname = "a"\nweight = 3\n[[tenants]]\nname = "b"\n') == 0
    out = capsys.readouterr().out
    assert "--request-rate 6 --arrival-pattern poisson" in out
    assert "--request-rate 2 " in out


@pytest.mark.parametrize(
    ("load", "words"),
    [
        ('kind = "steps"\nrates = [4, 8]\n', "no commands for load.kind = steps"),
        ('kind = "ramp"\nrate = 2\nto_rate = 20\n', "no commands for load.kind = ramp"),
        ("in_flight = 1\n", "2 tenants need load.in_flight of as many or more"),
    ],
)
def test_a_load_that_the_tools_cannot_send_is_refused(
    engine: FakeEngine, tmp_path: Path, capsys: Any, load: str, words: str
) -> None:
    tenants = '[[tenants]]\nname = "a"\n[[tenants]]\nname = "b"\n'
    assert export(engine, tmp_path, WORKLOAD.partition('kind = "closed"')[0] + load + tenants) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../../evil", "/evil", "a/b", "a\\nb", "\\u0000"])
def test_a_tenant_whose_name_is_no_file_name_is_refused(
    engine: FakeEngine, tmp_path: Path, capsys: Any, name: str
) -> None:
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    assert export(engine, folder, WORKLOAD + f'[[tenants]]\nname = "{name}"\n') == 2
    assert "is no file name; use printable ones without /" in capsys.readouterr().err
    assert not [*tmp_path.rglob("*.jsonl")]


def test_too_few_films_are_refused(engine: FakeEngine, tmp_path: Path, capsys: Any) -> None:
    assert export(engine, tmp_path, WORKLOAD.replace("count = 4", 'count = 4\nunique = "film"')) == 2
    assert "10 requests need as many films" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written(engine: FakeEngine, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "out").write_text("a file")
    assert export(engine, tmp_path, WORKLOAD) == 2
    assert "--export-aiperf: " in capsys.readouterr().err
