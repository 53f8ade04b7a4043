"""The lock of OUT.jsonl without flock, its folder, and a disk that fails."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pedcxr_client.batch.output_file import OutputFile
from pedcxr_client.errors import ConfigurationError
from tests.client.batch.helpers import batch, reported


def unlock(monkeypatch, number: int) -> None:
    """Make flock fail as on a file system that does not support it."""

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", fail)


def lock_file(out: Path) -> Path:
    return out.with_name(out.name + ".lock")


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_lock_file_where_flock_is_not_supported(engine, films, out, capsys, monkeypatch, number):
    unlock(monkeypatch, number)
    assert batch(films, out, engine.url) == 0
    assert sum(reported(out).values()) == 12
    assert f"does not support file locks ({os.strerror(number)})" in capsys.readouterr().err
    assert not lock_file(out).exists()
    with OutputFile(str(out)):
        holder = json.loads(lock_file(out).read_text())
        assert (holder["host"], holder["pid"]) == (socket.gethostname(), os.getpid())
        assert batch(films, out, engine.url) == 2
        assert f"process {os.getpid()} on {socket.gethostname()} is writing this file" in capsys.readouterr().err
        assert lock_file(out).exists()
    assert batch(films, out, engine.url) == 0


@pytest.mark.parametrize("supported", [True, False])
def test_lock_file_of_a_killed_run_is_explained(engine, films, out, capsys, monkeypatch, supported):
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    lock_file(out).write_text(json.dumps({"host": socket.gethostname(), "pid": ended.pid}))
    if not supported:
        unlock(monkeypatch, errno.ENOSYS)
    assert batch(films, out, engine.url) == 2
    err = capsys.readouterr().err
    assert f"process {ended.pid} on this machine ended without removing its lock file; delete the file" in err
    lock_file(out).unlink()
    assert batch(films, out, engine.url) == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"host": "elsewhere", "pid": 1}', "process 1 on elsewhere is writing this file"),
        (json.dumps({"host": socket.gethostname(), "pid": 1}), "process 1 on"),
        ("", "does not state its process"),
        ("[]", "does not state its process"),
        ('{"host": "a", "pid": "Popescu"}', "does not state its process"),
    ],
)
def test_lock_file_of_another_process(engine, films, out, capsys, content, message):
    lock_file(out).write_text(content)
    assert batch(films, out, engine.url) == 2
    err = capsys.readouterr().err
    assert message in err and "Popescu" not in err
    assert not engine.chats


def test_other_errors_of_flock_are_not_another_run(engine, films, out, capsys, monkeypatch):
    unlock(monkeypatch, errno.EIO)
    assert batch(films, out, engine.url) == 2
    assert "-o: cannot be locked: Input/output error" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "code"), [(errno.EINVAL, 0), (errno.EIO, 2)])
def test_folder_that_cannot_be_synced(engine, films, out, capsys, monkeypatch, number, code):
    sync = os.fsync

    def fail_for_folders(file: int) -> None:
        if os.path.samestat(os.fstat(file), out.parent.stat()):
            raise OSError(number, os.strerror(number))
        sync(file)

    monkeypatch.setattr(os, "fsync", fail_for_folders)
    assert batch(films, out, engine.url) == code
    assert ("its folder cannot be written to disk" in capsys.readouterr().err) == bool(code)


def test_nothing_is_written_after_a_failed_write(out, monkeypatch):
    """The line after an incomplete one would join it, and no run could read the file."""

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    async def two_lines() -> None:
        with OutputFile(str(out)) as output:
            await output.append('{"id": "a", "key": "00"}')
            with monkeypatch.context() as patch:
                patch.setattr(os, "fsync", fail)
                patch.setattr(os, "ftruncate", fail)
                with pytest.raises(ConfigurationError, match="Input/output error"):
                    await output.append('{"id": "b", "key": "01"}')
            with pytest.raises(ConfigurationError, match="Input/output error"):
                await output.append('{"id": "c", "key": "02"}')

    asyncio.run(two_lines())
    assert [json.loads(line)["id"] for line in out.read_text().splitlines()] == ["a", "b"]
    with OutputFile(str(out)) as output:
        assert output.completed == {b"\0", b"\1"}
