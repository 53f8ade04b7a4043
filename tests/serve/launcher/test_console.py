"""The log of a running server: text and JSON lines, and a stderr that stalls or is gone."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import logging
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pedcxr_serve.config import load
from pedcxr_serve.engine.process import Engine, LogLine
from pedcxr_serve.launcher import line_writer, start
from pedcxr_serve.launcher.console import Console

WAIT_S = 30
NOISY = (
    "import sys\nfor number in range(5000):\n"
    "    print('ERROR 11-27 00:00:00 [x.py:1] line', number, 'x' * 100, flush=True)"
)


class Gone(io.StringIO):
    """A terminal that was closed."""

    def write(self, text: str) -> int:
        raise OSError(5, "Input/output error")


def run_noisy_engine(on_line: Callable[[LogLine], None]) -> Engine:
    async def work() -> Engine:
        engine = Engine((sys.executable, "-c", NOISY), {}, on_line)
        await engine.start()
        assert await asyncio.wait_for(engine.wait(), WAIT_S) == 0, "the engine could write its whole log"
        await engine.stop(0)
        return engine

    return asyncio.run(work())


def test_engine_runs_on_without_a_terminal() -> None:
    engine = run_noisy_engine(Console(0, Gone()).print_engine_line)
    assert "line 4999" in engine.tail[-1]


def test_engine_runs_on_if_a_line_cannot_be_shown() -> None:
    def fail(_: LogLine) -> None:
        raise RuntimeError

    engine = run_noisy_engine(fail)
    assert "could not be shown" in engine.tail[-1]


def test_stalled_stderr_does_not_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody reads the pipe, as after Ctrl-S; later the reader comes back."""
    monkeypatch.setattr(line_writer, "_MAX_LINES", 100)
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as out:
        console = Console(0, out)
        for number in range(5000):  # more than pipe and queue hold
            console.print_line(f"{number} " + "x" * 1000)
        received: list[bytes] = []
        thread = threading.Thread(target=lambda: received.extend(iter(lambda: os.read(reader, 65536), b"")))
        thread.start()
        while console._writer._texts.qsize():
            os.sched_yield()
        console.print_line("the last line")
        console.close()
    thread.join(WAIT_S)
    os.close(reader)
    lines = b"".join(received).decode().splitlines()
    assert lines[0].startswith("0 xxx") and lines[-1] == "the last line"
    notes = [line for line in lines if line.endswith("log lines were dropped: stderr was not read")]
    assert notes
    assert sum(int(note.split()[0]) for note in notes) == 5001 - (len(lines) - len(notes)), "no line is lost uncounted"


def test_records_have_the_time_in_utc() -> None:
    out = io.StringIO()
    console = Console(logging.ERROR, out)
    logger = logging.getLogger("pedcxr.test")
    with console.attached("pedcxr.test", logging.WARNING):
        logger.info("not shown")
        logger.warning("shown %d", 1)
    assert not logger.handlers
    assert out.getvalue().startswith("gateway | WARNING 20") and out.getvalue().endswith("Z shown 1\n")


def test_json_lines() -> None:
    out = io.StringIO()
    console = Console(logging.WARNING, out, json_lines=True)
    with console.attached("pedcxr.test", logging.INFO):
        console.print_line("  12.0 s  loading weights")
        console.print_engine_line(LogLine(logging.ERROR, "(EngineCore pid=7) ERROR 11-23 text"))
        console.print_engine_line(LogLine(logging.INFO, "not shown"))
        logging.getLogger("pedcxr.test").info("request r-1", extra={"fields": {"request_id": "r-1", "status": 200}})
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert all(line.pop("time").endswith("Z") for line in lines)
    assert lines == [
        {"level": "info", "source": "launcher", "message": "12.0 s  loading weights"},
        {"level": "error", "source": "engine", "message": "(EngineCore pid=7) ERROR 11-23 text"},
        {"level": "info", "source": "gateway", "message": "request r-1", "request_id": "r-1", "status": 200},
    ]


@pytest.mark.parametrize("json_lines", [False, True])
def test_exceptions_of_every_logger_are_printed_without_their_messages(json_lines: bool) -> None:
    out = io.StringIO()
    console = Console(logging.INFO, out, json_lines=json_lines)

    async def fail() -> None:
        try:
            raise ValueError("Jane Doe")
        except ValueError as error:
            raise RuntimeError("Jane Doe") from error

    def fail_in_callback(data: bytes) -> None:
        raise RuntimeError(data)

    async def work() -> None:
        task = asyncio.create_task(fail())
        await asyncio.wait((task,))
        del task  # its exception was never retrieved
        asyncio.get_running_loop().call_soon(fail_in_callback, b"Jane Doe")
        with pytest.raises(RuntimeError) as caught:
            await fail()
        logging.getLogger("pedcxr.test").error("ours", exc_info=caught.value)
        logging.getLogger("uvicorn.error").error("Exception in ASGI application\n", exc_info=caught.value)

    with console.attached("pedcxr.test", logging.INFO):
        asyncio.run(work())
        gc.collect()
    text = out.getvalue()
    assert "Jane" not in text
    assert text.count("RuntimeError at test_console.py:") == 4
    assert text.count("; caused by ValueError at test_console.py:") == 3
    for words in ("ours: ", "ASGI application: ", "never retrieved: ", "fail_in_callback: "):
        assert words + "RuntimeError" in text
    if json_lines:
        assert {json.loads(line)["source"] for line in text.splitlines()} == {"gateway"}


def test_a_gateway_prints_each_record_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    names = ("pedcxr.gateway", "uvicorn.error", "opentelemetry.exporter")
    with start.gateway_console(load.load(None, {})):
        for name in names:
            logging.getLogger(name).warning("from %s", name)
    lines = sys.stderr.getvalue().splitlines()
    assert [line.rpartition(" from ")[2] for line in lines] == [*names]


def test_process_ends_while_stderr_stalls(tmp_path: Path) -> None:
    """Python would wait for a lock of sys.stderr that the writing thread holds."""
    script = (
        "import sys\nfrom pedcxr_serve.launcher.console import Console\n"
        "console = Console(0, sys.stderr)\n"
        "for _ in range(200): console.print_line('x' * 1000)\n"
        "console.close(); print('done', flush=True)"
    )

    async def work() -> None:
        reader, writer = os.pipe()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", script, stderr=writer, stdout=asyncio.subprocess.PIPE
        )
        output, _ = await asyncio.wait_for(process.communicate(), WAIT_S)
        os.close(writer)
        os.close(reader)
        assert (process.returncode, output) == (0, b"done\n")

    asyncio.run(work())


def test_server_whose_stderr_is_closed_at_its_start_prints_nothing() -> None:
    script = (
        "from pedcxr_serve.launcher.console import Console\n"
        "console = Console(0)\nconsole.print_line('x')\nconsole.close()\nprint('done')"
    )
    command = f"exec {shlex.quote(sys.executable)} -c {shlex.quote(script)} 2>&-"
    assert subprocess.check_output(["/bin/sh", "-c", command], text=True, timeout=WAIT_S) == "done\n"
