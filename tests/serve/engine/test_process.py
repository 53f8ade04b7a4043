"""Parsing vLLM's log, and ending its process group."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

from pedcxr_serve.engine import process, vllm_main
from pedcxr_serve.engine.process import Engine, LogLine
from pedcxr_serve.vllm_plugin import VLLM_SERIES, check_version


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("(APIServer pid=5) INFO 11-23 21:24:40 [model.py:1] text", logging.INFO),
        ("WARNING 11-23 21:24:40 [model.py:1] text", logging.WARNING),
        ("\x1b[0;36m(EngineCore pid=7)\x1b[0;0m ERROR 11-23 21:24:40 [core.py:1] text", logging.ERROR),
        ("INFO:     Application startup complete.", logging.INFO),
    ],
)
def test_log_line_has_its_own_level(text: str, level: int) -> None:
    assert process.parse(text, logging.DEBUG).level == level


def test_log_line_without_level_has_the_previous_level() -> None:
    assert process.parse('  File "x.py", line 1\n', logging.ERROR) == LogLine(logging.ERROR, '  File "x.py", line 1')


def test_log_line_is_truncated() -> None:
    assert len(process.parse("x" * 100_000, logging.INFO).text) == 4096


@pytest.mark.parametrize("version", ["0.32.0", "0.32.1", "0.32.1+cpu"])
@pytest.mark.parametrize("cpu", [True, False])
def test_plugin_accepts_its_vllm_series(version: str, cpu: bool) -> None:
    assert check_version(version, cpu=cpu) == ""


@pytest.mark.parametrize("version", ["0.33.0", "0.33.0rc1", "0.100.2", "1.32.0"])
def test_plugin_accepts_later_vllm_versions_on_a_gpu_only(version: str) -> None:
    assert f"tested with vLLM {VLLM_SERIES}, not {version}: " in check_version(version, cpu=False)
    with pytest.raises(RuntimeError, match=f"requires vLLM {VLLM_SERIES}.*not {version}"):
        check_version(version, cpu=True)


@pytest.mark.parametrize("version", ["0.31.9", "0.3.2", "dev", ""])
@pytest.mark.parametrize("cpu", [True, False])
def test_plugin_refuses_earlier_vllm_versions(version: str, cpu: bool) -> None:
    with pytest.raises(RuntimeError, match=f"requires vLLM {VLLM_SERIES}.*not {version}"):
        check_version(version, cpu=cpu)


def test_stages_on_a_gpu_only_move_forward() -> None:
    """The engine and two API servers write to one log; the API servers read the model's configuration later."""
    lines = (
        "(MainProcess pid=1) INFO 11-26 16:35:27 [api_utils.py:286] non-default args: {'model_tag': 'm'}",
        "(MainProcess pid=1) INFO 11-26 16:35:46 [model.py:733] Resolved architecture: Gemma3ForConditionalGeneration",
        "(EngineCore pid=2) INFO 11-26 16:36:04 [core.py:133] Initializing a V1 LLM engine (v0.32.0) with config: ...",
        "(ApiServer_0 pid=3) INFO 11-26 16:36:05 [model.py:733] Resolved architecture: Gemma3ForConditionalGeneration",
        "(EngineCore pid=2) INFO 11-26 16:36:07 [model_runner.py:392] Loading model from scratch...",
        "(ApiServer_1 pid=4) INFO 11-26 16:36:08 [model.py:733] Resolved architecture: Gemma3ForConditionalGeneration",
        "(EngineCore pid=2) INFO 11-26 16:36:10 [model_runner.py:424] Model loading took 8.2 GiB memory and 3 s",
    )
    stages: list[str] = []

    async def work() -> None:
        script = "import sys; print(*sys.argv[1:], sep='\\n')"
        engine = Engine((sys.executable, "-c", script, *lines), {}, lambda line: stages.append(engine.stage))
        await engine.start()
        await engine.wait()
        await engine.stop(0)

    asyncio.run(work())
    assert stages == [
        "reading the model's configuration",
        "starting the engine's process",
        *["starting the worker's process"] * 2,
        *["loading weights"] * 2,
        "warming up the model",
    ]


def test_engine_that_was_not_started_can_be_stopped() -> None:
    asyncio.run(Engine(process.vllm(("serve",)), {}, lambda line: None).stop(1))


def test_temporary_files_of_a_killed_process_are_removed() -> None:
    output: list[str] = []
    script = (
        "import os, tempfile, time; open(os.path.join(tempfile.gettempdir(), 'leftover'), 'w');"
        "print(tempfile.gettempdir(), os.environ['TORCHINDUCTOR_CACHE_DIR'], flush=True); time.sleep(60)"
    )

    async def work() -> None:
        engine = Engine((sys.executable, "-c", script), {}, lambda line: output.append(line.text))
        await engine.start()
        while not output:
            await asyncio.sleep(0.01)
        scratch, compiled = output[0].split()
        assert Path(scratch, "leftover").exists() and Path(scratch).stat().st_mode & 0o777 == 0o700
        assert not compiled.startswith(scratch)
        await engine.stop(0)
        assert not Path(scratch).exists()

    asyncio.run(work())


def test_engine_does_not_inherit_gateway_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEDCXR_AUDIT_KEY", "secret")
    monkeypatch.setenv("LANG", "C.UTF-8")
    output: list[str] = []

    async def work() -> None:
        script = "import os; print(sorted(n for n in os.environ if n.startswith('PEDCXR_')), os.environ['LANG'])"
        engine = Engine((sys.executable, "-c", script), {}, lambda line: output.append(line.text))
        await engine.start()
        assert await engine.wait() == 0
        await engine.stop(0)

    asyncio.run(work())
    assert output == ["['PEDCXR_LAUNCHER_PID'] C.UTF-8"]


def test_child_processes_of_the_engine_import_nothing_from_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "colorsys.py").write_text("raise SystemExit('imported')")
    monkeypatch.chdir(tmp_path)
    output: list[str] = []

    async def work() -> None:
        script = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import colorsys; print(1)'])"
        engine = Engine((sys.executable, "-c", script), {}, lambda line: output.append(line.text))
        await engine.start()
        await engine.wait()
        await engine.stop(0)

    asyncio.run(work())
    assert output == ["1"]


def test_compile_cache_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = process.compile_cache()
    assert folder == tmp_path / "cache" / "pedcxr" / "torchinductor"
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)
    assert process.compile_cache() is None, "another user could have written code into it"
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert process.compile_cache() is None


def test_compile_cache_on_a_read_only_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert process.compile_cache() is not None
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)  # root may write into any other folder
    assert process.compile_cache() is None


def test_later_vllm_versions_run_their_own_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM 0.33 has no `vllm.entrypoints.serve.utils.api_utils.cli_env_setup`."""
    commands: list[list[str]] = []
    modules = {name: ModuleType(name) for name in ("vllm", "vllm.entrypoints", "vllm.entrypoints.cli")}
    modules["vllm.entrypoints.cli.main"] = command = ModuleType("vllm.entrypoints.cli.main")
    command.main = lambda: commands.append(sys.argv)  # type: ignore[attr-defined]
    for name, module in modules.items():
        module.__path__ = []
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(sys, "argv", ["before"])
    vllm_main.run_vllm(["serve", "DIR"])
    assert commands == [["vllm", "serve", "DIR"]]
