"""The private folder of the engine's socket."""

from __future__ import annotations

import socket as socketlib
import stat
from pathlib import Path

import pytest

from pedcxr_serve.engine.socket_dir import socket_folder
from pedcxr_serve.errors import ConfigError


def test_temporary_folder_is_private_and_removed() -> None:
    with socket_folder() as socket:
        assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
        socket.touch()
    assert not socket.parent.exists()


def test_existing_folder_is_kept_and_sockets_are_removed(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    (tmp_path / "notes.txt").touch()
    leave_socket(tmp_path / "engine.sock")  # left by a server that was killed
    with socket_folder(str(tmp_path)) as socket:
        assert not socket.exists()
        leave_socket(socket)
        leave_socket(tmp_path / "rpc")
    assert {path.name for path in tmp_path.iterdir()} == {"lock", "notes.txt"}


def leave_socket(path: Path) -> None:
    with socketlib.socket(socketlib.AF_UNIX) as bound:
        bound.bind(str(path))


def test_created_folder_is_removed(tmp_path: Path) -> None:
    with socket_folder(str(tmp_path / "new")):
        pass
    assert not (tmp_path / "new").exists()


def test_second_server_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    with socket_folder(str(tmp_path)) as socket:
        socket.touch()
        with pytest.raises(ConfigError, match="in use by a running server"), socket_folder(str(tmp_path)):
            pass
        assert socket.exists()


@pytest.mark.parametrize("mode", [0o750, 0o701, 0o777])
def test_folder_accessible_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    with pytest.raises(ConfigError, match="chmod 700"), socket_folder(str(tmp_path)):
        pass


def test_path_too_long_for_a_socket_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="too long"), socket_folder(str(tmp_path / ("x" * 80))):
        pass


def test_file_instead_of_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be used"), socket_folder(str(tmp_path / "file")):
        pass
