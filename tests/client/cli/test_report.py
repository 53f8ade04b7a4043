"""The command ``pedcxr``: in this process, or in a child process where signals and pipes matter."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pedcxr_client import DISCLAIMER, __version__
from pedcxr_client.cli.main import main
from tests.support.http_server import reserved_port
from tests.support.servers.fake_engine import TEXT, Answer


@pytest.fixture
def path(tmp_path, film) -> str:
    path = tmp_path / "film.png"
    path.write_bytes(film)
    return str(path)


def test_stdout_holds_only_the_report(engine, path, capsys):
    assert main(["report", path, "--age", "5y", "--sex", "M", "--url", engine.url]) == 0
    out, err = capsys.readouterr()
    assert out == TEXT + "\n"
    assert err == DISCLAIMER + "\n"
    prompt = engine.chats[0].json["messages"][0]["content"][1]["text"]
    assert prompt == "Generate a radiology report for this chest X-ray of a 5-year-old male."


def test_stream_prints_the_same_text(engine, path, capsys):
    assert main(["report", path, "--stream", "--url", engine.url]) == 0
    assert capsys.readouterr() == (TEXT + "\n", DISCLAIMER + "\n")


def test_json_is_one_object_with_all_fields(engine, path, capsys):
    assert main(["report", path, "--json", "--url", engine.url, "--max-tokens", "77"]) == 0
    out, err = capsys.readouterr()
    assert out.count("\n") == 1
    report = json.loads(out)
    assert report["text"] == TEXT
    assert report["impression"] == "Normal chest."
    assert report["disclaimer"] == DISCLAIMER
    assert report["parameters"] == {"temperature": 0, "max_tokens": 77}
    assert report["timing"]["tpot"] is not None
    assert report["image"]["how"] == ["original bytes"]
    assert err == DISCLAIMER + "\n"


def test_demo_model_adds_its_notice(engine, path, capsys):
    engine.answer = Answer(headers={"x-pedcxr-demo": "1"})
    assert main(["report", path, "--url", engine.url]) == 0
    out, err = capsys.readouterr()
    assert out == TEXT + "\n"
    assert err == "demo model: synthetic, not a medical report\n" + DISCLAIMER + "\n"


def test_characters_outside_the_terminal_encoding_are_escaped(engine, path):
    engine.answer = Answer(pieces=("Lungs clear: caf\u00e9.",))
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "pedcxr_client", "report", path, "--url", engine.url]
    process = subprocess.run(command, capture_output=True, env=environment, check=True)
    assert process.stdout == b"Lungs clear: caf\\xe9.\n"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "required"),
        (["report"], 2, "FILE"),
        (["report", "FILM", "--sex", "male"], 2, "invalid choice"),
        (["report", "FILM", "--max-tokens", "0"], 2, "must be an integer above 0"),
        (["report", "FILM", "--timeout", "inf"], 2, "must be a number above 0"),
        (["report", "FILM", "--stream", "--json"], 2, "not allowed with"),
        (["report", "FILM", "--streem"], 2, "unrecognized"),
        (["report", "FILM", "--url", "http://10.1.2.3/v1"], 2, "--insecure-http"),
        (["report", "FILM", "--api-key-env", "PEDCXR_NOT_SET"], 2, "PEDCXR_NOT_SET is not set"),
        (["report", "FILM", "--age", "62"], 3, "write a number and one of"),
        (["report", "missing.png"], 3, "missing.png: No such file"),
        (["report", __file__], 3, "not an image"),
    ],
)
def test_usage_errors_are_short_and_precede_any_request(engine, path, capsys, monkeypatch, arguments, code, message):
    monkeypatch.delenv("PEDCXR_NOT_SET", raising=False)
    arguments = [path if argument == "FILM" else argument for argument in arguments]
    if "--url" not in arguments and arguments:
        arguments += ["--url", engine.url]
    assert main(arguments) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert "Traceback" not in err
    assert not engine.chats


@pytest.mark.parametrize(
    ("answer", "code", "message"),
    [
        (Answer(status=400, error={"message": "image too large", "param": "messages"}), 3, "image too large"),
        (Answer(status=401), 2, "set PEDCXR_API_KEY"),
        (Answer(status=500), 4, "engine died"),
        (Answer(finish="length"), 4, "--stream shows the unfinished text"),
        (Answer(cut_after=2), 4, "connection broke"),
        (Answer(pieces=()), 4, "wrote nothing"),
    ],
)
def test_server_failures_are_reported_in_at_most_two_lines(engine, path, capsys, answer, code, message):
    engine.answer = answer
    assert main(["report", path, "--url", engine.url]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") <= 2


def test_broken_stream_keeps_the_text_received(engine, path, capsys):
    engine.answer = Answer(cut_after=2)
    assert main(["report", path, "--stream", "--url", engine.url]) == 4
    assert capsys.readouterr().out == "FINDINGS: The lungs\n"


def test_error_without_a_server_names_the_start_command(path, capsys):
    with reserved_port() as port:
        assert main(["report", path, "--url", f"http://127.0.0.1:{port}/v1", "--timeout", "5"]) == 4
    err = capsys.readouterr().err
    assert "pedcxr-serve start" in err
    assert err.count("\n") == 1


def test_command_waits_for_a_starting_server(engine, path, capsys):
    engine.reply(*[Answer(status=503, headers={"retry-after": "0.1"})] * 3)
    assert main(["report", path, "--url", engine.url]) == 0
    out, err = capsys.readouterr()
    assert out == TEXT + "\n"
    assert err.count("the server is starting or busy; retrying in") == 3


def test_api_key_is_read_from_the_environment(engine, path, monkeypatch):
    monkeypatch.setenv("PEDCXR_API_KEY", "key-1")
    monkeypatch.setenv("OTHER_KEY", "key-2")
    main(["report", path, "--url", engine.url])
    main(["report", path, "--url", engine.url, "--api-key-env", "OTHER_KEY"])
    assert [chat.headers["authorization"] for chat in engine.chats] == ["Bearer key-1", "Bearer key-2"]


def test_version_and_help(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"pedcxr {__version__}\n"
    assert main(["report", "--help"]) == 0
    assert "exit codes: 0 done" in capsys.readouterr().out


def start(*arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-W", "error", "-m", "pedcxr_client", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_ctrl_c_exits_silently_and_closes_the_request(engine, path):
    engine.answer = Answer(stall_after=1)
    with start("report", path, "--stream", "--url", engine.url) as process:
        assert process.stdout.read(9) == b"FINDINGS:"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == b""
    assert engine.chats[0].disconnected.wait(30)


def test_broken_pipe_exits_silently(engine, path):
    engine.answer = Answer(pieces=("x" * 5000,) * 50, gap=0.002)
    with start("report", path, "--stream", "--url", engine.url) as process:
        assert process.stdout.read(1) == b"x"
        process.stdout.close()
        err = process.stderr.read()
        process.wait(60)
    assert process.returncode == 141
    assert err == b""
    assert engine.chats[0].disconnected.wait(30)


def test_error_of_the_system_is_not_blamed_on_stdout(monkeypatch):
    def fails(_):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("pedcxr_client.cli.main._run", fails)
    with pytest.raises(OSError, match="Too many open files"):
        main(["report", "film.png"])


def test_command_is_installed(engine, path):
    command = Path(sys.executable).with_name("pedcxr")
    if not command.exists():
        pytest.skip("pedcxr is not installed beside this Python")
    environment = os.environ | {"PYTHONWARNINGS": "error"}
    process = subprocess.run([command, "--version"], capture_output=True, text=True, env=environment, check=True)
    assert process.stdout == f"pedcxr {__version__}\n"
