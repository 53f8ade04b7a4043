"""The private folder of the engine's socket."""

from __future__ import annotations

import os
import socket as socketlib
import stat
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from pedcxr_serve.engine import socket_dir
from pedcxr_serve.engine.socket_dir import socket_folder
from pedcxr_serve.errors import ConfigError


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return a folder with a path that is short enough for a Unix socket, as that of ``tmp_path`` may not be."""
    with TemporaryDirectory(prefix="pedcxr-", dir="/tmp") as name:
        yield Path(name)


def test_temporary_folder_is_private_and_removed() -> None:
    with socket_folder() as socket:
        assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
        socket.touch()
    assert not socket.parent.exists()


def test_existing_folder_is_kept_and_sockets_are_removed(folder: Path) -> None:
    folder.chmod(0o700)
    (folder / "notes.txt").touch()
    leave_socket(folder / "engine.sock")  # left by a server that was killed
    with socket_folder(str(folder)) as socket:
        assert not socket.exists()
        leave_socket(socket)
        leave_socket(folder / "rpc")
    assert {path.name for path in folder.iterdir()} == {"lock", "notes.txt"}


def leave_socket(path: Path) -> None:
    with socketlib.socket(socketlib.AF_UNIX) as bound:
        bound.bind(str(path))


def test_created_folder_is_removed(folder: Path) -> None:
    with socket_folder(str(folder / "new")):
        pass
    assert not (folder / "new").exists()


def test_second_server_on_the_same_folder_is_refused(folder: Path) -> None:
    folder.chmod(0o700)
    with socket_folder(str(folder)) as socket:
        socket.touch()
        with pytest.raises(ConfigError, match="in use by a running server"), socket_folder(str(folder)):
            pass
        assert socket.exists()


@pytest.mark.parametrize("mode", [0o750, 0o701, 0o777])
def test_folder_accessible_to_others_is_refused(folder: Path, mode: int) -> None:
    folder.chmod(mode)
    with pytest.raises(ConfigError, match="chmod 700"), socket_folder(str(folder)):
        pass


def test_path_too_long_for_a_socket_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="too long"), socket_folder(str(folder / ("x" * 80))):
        pass


def test_file_instead_of_folder_is_refused(folder: Path) -> None:
    (folder / "file").touch()
    with pytest.raises(ConfigError, match="cannot be used"), socket_folder(str(folder / "file")):
        pass


def make_old(folder: Path, lock: str, *others: str) -> Path:
    """Create a folder that a server left a while ago."""
    folder.mkdir()
    for name in (lock, *others):
        (folder / name).touch()
    os.utime(folder, (0, 0))
    return folder


def test_folders_of_killed_servers_are_removed(folder: Path) -> None:
    sockets = make_old(folder / "pedcxr-abc", "lock")
    leave_socket(sockets / "engine.sock")
    scratch = make_old(folder / "pedcxr-engine-abc", ".pedcxr-lock", "rendezvous")
    os.utime(sockets, (0, 0))
    assert set(socket_dir.remove_stale_folders(folder)) == {sockets, scratch}
    assert list(folder.iterdir()) == []


def test_folders_in_use_and_those_of_others_are_kept(folder: Path) -> None:
    used = make_old(folder / "pedcxr-engine-used", "data")
    lock = socket_dir.lock_scratch(used)
    os.utime(used, (0, 0))
    new = folder / "pedcxr-engine-new"
    new.mkdir()
    (new / ".pedcxr-lock").touch()
    kept = {
        used,
        new,
        make_old(folder / "pedcxr-data", "lock", "notes.txt"),
        make_old(folder / "pedcxr-films", "film.dcm"),
        make_old(folder / "other", "lock"),
    }
    (folder / "pedcxr-engine-link").symlink_to(folder / "pedcxr-data")
    socket_dir.remove_stale_folders(folder)
    assert set(folder.iterdir()) == kept | {folder / "pedcxr-engine-link"}
    assert (folder / "pedcxr-data" / "notes.txt").exists()
    os.close(lock)
    socket_dir.remove_stale_folders(folder)
    assert not used.exists(), "the process that used it has ended"
