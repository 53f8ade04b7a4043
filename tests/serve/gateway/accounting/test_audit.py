"""The audit log: chain, rotation, failed writes."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from pedcxr_serve.errors import AuditError, ConfigError
from pedcxr_serve.gateway.accounting import audit

SECRET = b"k" * 32


def test_audit_chain_detects_changes(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    for start in range(0, 40, 10):  # four runs of a server
        log = audit.AuditLog(path, SECRET, max_bytes=4000)
        for number in range(start, start + 10):
            log.write({"request_id": str(number)})
        log.close()
    assert "lines 0 to 39 are intact" in audit.verify(path, SECRET)
    older = sorted(tmp_path.glob("audit.jsonl.*"))
    assert older
    lines = path.read_bytes().splitlines(keepends=True)
    for damaged in (
        b"".join(lines[:1] + lines[2:]),
        b"".join([lines[1], lines[0], *lines[2:]]),
        b"".join(lines).replace(b'"request_id":"39"', b'"request_id":"38"'),
        b"".join(lines)[:-3],
        b"noise\n",
    ):
        path.write_bytes(damaged)
        with pytest.raises(AuditError, match=r"audit\.jsonl"):
            audit.verify(path, SECRET)
    path.write_bytes(b"".join(lines))
    with pytest.raises(AuditError, match="key is a different one"):
        audit.verify(path, b"x" * 32)
    older[0].unlink()
    assert "are in no file" in audit.verify(path, SECRET)
    path.write_bytes(b"".join(lines) + b'{"half')
    audit.AuditLog(path, SECRET).close()
    assert "to 39" in audit.verify(path, SECRET)


def test_audit_log_requires_a_key() -> None:
    for env in ({}, {audit.KEY_VARIABLE: "short"}):
        with pytest.raises(ConfigError, match="PEDCXR_AUDIT_KEY") as caught:
            audit.key_from(env)
        assert "'short'" not in str(caught.value)


def test_short_write_is_counted_and_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    log = audit.AuditLog(tmp_path / "audit.jsonl", SECRET)
    log.write({"request_id": "0"})
    assert log.failures == 0
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda file, data: write(file, data[:-1]))
        log.write({"request_id": "1"})
    log.close()
    assert log.failures == 1
    assert "audit line 1 not written" in caplog.text


def test_log_is_intact_after_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "audit.jsonl"
    log = audit.AuditLog(path, SECRET)
    log.write({"request_id": "0"})
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda file, data: write(file, data[:40]))
        log.write({"request_id": "lost"})
    log.write({"request_id": "1"})
    log.close()
    assert audit.verify(path, SECRET) == (
        f"{path}: lines 0 to 1 are intact and in order; 1 further requests could not be logged"
    )
    assert (log.failures, log.next_seq) == (1, 2)
    assert ["lost" in line for line in path.read_text().splitlines()] == [False, True]


@pytest.mark.parametrize("place", [0, 1], ids=["first line", "last line"])
def test_damaged_line_is_a_configuration_error(tmp_path: Path, place: int) -> None:
    path = tmp_path / "audit.jsonl"
    log = audit.AuditLog(path, SECRET)
    for number in range(2):
        log.write({"request_id": str(number)})
    log.close()
    lines = path.read_bytes().splitlines(keepends=True)
    lines[place] = b'{"seq": damaged\n'
    path.write_bytes(b"".join(lines))
    with pytest.raises(ConfigError, match=r"cannot be continued: its (first|last) line is not a line of an audit log"):
        audit.AuditLog(path, SECRET)


def test_failed_rotation_loses_no_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "audit.jsonl"
    log = audit.AuditLog(path, SECRET, max_bytes=600)
    opened = os.open

    def refuse(name: Path, *arguments: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    for number in range(9):
        with monkeypatch.context() as patch:
            patch.setattr(os, "open", refuse if number < 6 else opened)
            log.write({"request_id": str(number)})
    log.close()
    assert log.failures == 0
    assert "lines 0 to 8 are intact" in audit.verify(path, SECRET)
    assert list(tmp_path.glob("audit.jsonl.*")), "rotated once it is possible"


def test_second_server_on_one_log_is_refused(tmp_path: Path) -> None:
    log = audit.AuditLog(tmp_path / "audit.jsonl", SECRET)
    with pytest.raises(ConfigError, match="another server writes it"):
        audit.AuditLog(tmp_path / "audit.jsonl", SECRET)
    log.close()
    audit.AuditLog(tmp_path / "audit.jsonl", SECRET).close()
